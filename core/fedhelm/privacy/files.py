"""Where a site's privacy policy stands; a site without one need not load :mod:`fedhelm.privacy.policy`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fedhelm.errors import BadInput

__all__ = ["PRIVACY_FILE", "privacy_texts"]

PRIVACY_FILE: Final = "privacy.json"
"""Name of the file in ``startup/`` and ``local/`` of a site."""


def privacy_texts(startup: Path, local: Path) -> list[tuple[str, str]]:
    """Return path and content of the site's files, the project's defaults first; empty where there is none.

    Raises:
        BadInput: a file cannot be read.
    """
    found = []
    for path in (startup / PRIVACY_FILE, local / PRIVACY_FILE):
        try:
            found.append((str(path), path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: cannot be read: {error}") from error
    return found
