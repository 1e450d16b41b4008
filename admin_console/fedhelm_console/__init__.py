"""The admin console: one set of typed commands, for a prompt and for scripts."""
