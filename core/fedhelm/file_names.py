"""Names that are two here and one elsewhere: not every file system tells upper case from lower, or forms of accents."""

from __future__ import annotations

import unicodedata

__all__ = ["Spellings", "folded"]


def folded(name: str) -> str:
    """Return what two names have in common that some file system takes for one.

    That is canonical caseless matching (Unicode, section 3.13, D145), which ext4, NTFS and APFS do where they are told
    to, or at least a part of it. Pure.
    """
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


class Spellings:
    """The names of an archive as they come, and whether one of them is another one elsewhere."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def add(self, name: str) -> str | None:
        """Take a name, once or often; return the other spelling under which it came before, if there is one."""
        known = self._known.setdefault(folded(name), name)
        return None if known == name else known
