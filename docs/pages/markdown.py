"""Small pieces of Markdown, and the notes that people wrote."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["GENERATED", "anchor", "cell", "code", "notes", "table"]

GENERATED = "<!-- Made by `make docs` from the code. Change the code, or docs/notes.toml. -->\n"

_NOTES = Path(__file__).resolve().parent.parent / "notes.toml"


@functools.cache
def _all_notes() -> dict[str, Any]:
    return tomllib.loads(_NOTES.read_text(encoding="utf-8"))


def notes(section: str, wanted: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the notes of a section.

    Raises:
        SystemExit: a note is missing, or one is there that nothing needs.
    """
    found: dict[str, dict[str, str]] = _all_notes()[section]
    names = set(wanted)
    if set(found) != names:
        missing, extra = sorted(names - set(found)), sorted(set(found) - names)
        raise SystemExit(f"docs/notes.toml, [{section}.*]: missing {missing}, not needed {extra}")
    return found


def code(text: object) -> str:
    """Return inline code."""
    return f"`{text}`"


def cell(text: object) -> str:
    """Return a text that stays in one cell of a table."""
    return " ".join(str(text).replace("|", "\\|").split())


def anchor(heading: str) -> str:
    """Return the anchor that a heading gets."""
    kept = "".join(char for char in heading.lower() if char.isalnum() or char in " -_")
    return kept.replace(" ", "-")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; empty cells stay empty."""
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    lines += ["| " + " | ".join(cell(one) for one in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
