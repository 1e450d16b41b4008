"""The examples: jobs to submit at once, or to begin one's own with; ``fedhelm examples`` copies them."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
from pathlib import Path

from fedhelm.errors import FedhelmError, NotFound, WorkspaceExists
from fedhelm.output import CommandParser, add_output_option, emit, format_of, guarded

__all__ = ["example_folders", "main", "stage_examples"]

_EXAMPLES = """\
  fedhelm examples                                 # all of them into the current folder
  fedhelm examples -d admin@nvidia.com/transfer    # where submit_job in that kit's console finds them
  fedhelm examples hello-pt-tb -d jobs
"""


def example_folders() -> list[Path]:
    """Return the examples' folders: of the installed package, else of the repository; sorted."""
    here = Path(__file__).resolve().parent
    for folder in (here / "examples", here.parents[1] / "examples"):
        if folder.is_dir():
            return [one for one in sorted(folder.iterdir()) if one.is_dir() and not one.name.startswith((".", "_"))]
    return []


def stage_examples(target: Path, names: list[str] | None = None) -> list[Path]:
    """Copy examples into a folder; return where each is now.

    Args:
        target: the folder; made if it is not there.
        names: which; all if not given, or empty.

    Raises:
        NotFound: there is no such example.
        WorkspaceExists: something of one's name is there already; nothing was copied then.
        OSError: the operating system refuses; the example that was on its way is not there.
    """
    found = {one.name: one for one in example_folders()}
    for name in names or ():
        if name not in found:
            raise NotFound(f"no example is called {name!r}", hint=f"there are {', '.join(found) or 'none'}")
    wanted = [(found[name], target / name) for name in dict.fromkeys(names or found)]
    for _, place in wanted:
        if place.exists() or place.is_symlink():
            raise WorkspaceExists(f"{place} exists", hint="nothing is overwritten: name another folder with -d")
    target.mkdir(parents=True, exist_ok=True)
    for source, place in wanted:
        draft = target / f".{place.name}.{secrets.token_hex(4)}.tmp"
        try:
            shutil.copytree(source, draft, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
            draft.rename(place)
        except BaseException:  # Ctrl-C too: no half example
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return [place for _, place in wanted]


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="fedhelm examples",
        description="Copy example jobs into a folder, the transfer/ of an admin's kit for example.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all without any")
    parser.add_argument("-d", "--directory", type=Path, default=Path(), metavar="DIR", help="default: the current one")
    add_output_option(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run ``fedhelm examples``; return its exit status."""
    fmt = format_of(argv)

    def body() -> int:
        args = _parser().parse_args(argv)
        try:
            made = stage_examples(args.directory, args.names)
        except OSError as error:
            raise FedhelmError(f"{error.filename or args.directory}: {error.strerror or error}") from error
        return emit({"examples": [str(one) for one in made]}, fmt, lambda: "\n".join(map(str, made)))

    return guarded(body, fmt)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
