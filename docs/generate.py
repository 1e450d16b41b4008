"""Make the reference pages from the code: ``python -m docs.generate``; with ``--check``, only compare."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from docs.pages import commands, errors, job_yaml, overseer_api, rpc

__all__ = ["PAGES", "main"]

REFERENCE = Path(__file__).resolve().parent / "reference"

PAGES = {
    "commands.md": commands.page,
    "job-yaml.md": job_yaml.page,
    "errors.md": errors.page,
    "rpc.md": rpc.page,
    "overseer-api.md": overseer_api.page,
}
"""File name -> what makes its text."""


def main(argv: list[str], folder: Path = REFERENCE, pages: Mapping[str, Callable[[], str]] = PAGES) -> int:
    """Write the pages into ``folder``, or say which are out of date; return the exit status."""
    check = "--check" in argv
    stale = []
    for name, page in pages.items():
        path, text = folder / name, page()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if stale and check:
        sys.stderr.write(f"out of date: {', '.join(stale)} (run: make docs)\n")
        return 1
    sys.stdout.write("".join(f"docs/reference/{name}\n" for name in stale))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
