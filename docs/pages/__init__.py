"""The reference pages: each module has `page() -> str`, made from the code alone and the same on every machine."""
