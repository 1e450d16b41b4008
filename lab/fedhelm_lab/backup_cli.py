"""``fedhelm backup`` and ``fedhelm restore``: a whole project, or the parts of it that are on this machine."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from fedhelm.config.kit import Kit
from fedhelm.errors import BadInput, ExitStatus, UsageError
from fedhelm.output import CommandParser, add_output_option, emit, format_of, guarded
from fedhelm.security.kit import open_kit
from fedhelm_lab.project_backup import Parts, back_up_project, remake_workspace, restore_project
from fedhelm_lab.workspace import MARKER, Workspace

__all__ = ["add_parts", "backup_parser", "main_backup", "main_restore", "parts_of", "restore_parser"]

_BACKUP = """\
Copy log and blobs, lease, root key and kits to a new folder; everything may run meanwhile. What is acknowledged when
the command begins is in the backup. It holds private keys: keep it as you keep those.
"""

_RESTORE = """\
Put a backup back. Stop everything first: all servers and overseers of the project, on every machine. The epoch rises by
1,048,576 above all that are known here, so that sites that saw later epochs follow again; jobs go on where the backup
saw them.
"""


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what of the project is on this machine."""
    parser.add_argument("-w", "--workspace", type=Path, metavar="DIR", help="a workspace of `fedhelm poc`")
    parser.add_argument(
        "--kit", type=Path, action="append", default=[], metavar="DIR", help="a kit of this machine; repeatable"
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help="the folder of the project's root key")


def parts_of(args: argparse.Namespace) -> Parts:
    """Return the parts that the options name.

    Raises:
        UsageError: none, or both ways at once.
        KitError: a kit is not one.
    """
    if (args.workspace is None) == (not args.kit):
        raise UsageError("give -w WORKSPACE, or --kit DIR for each kit of this machine", hint="-h")
    if args.workspace is not None:
        workspace = Workspace.open(args.workspace)
        return Parts(workspace.kits, workspace.root / "state", workspace.root / MARKER)
    kits: list[Kit] = [open_kit(path) for path in args.kit]
    if args.state is not None and not args.state.is_dir():
        raise BadInput(f"{args.state} is no folder")
    return Parts(tuple(kits), args.state)


def _parser(name: str, about: str, argument: str, what: str) -> CommandParser:
    parser = CommandParser(
        prog=f"fedhelm {name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("backup", type=Path, metavar=argument, help=what)
    add_parts(parser)
    add_output_option(parser)
    return parser


def backup_parser() -> CommandParser:
    """Return the parser of ``fedhelm backup``."""
    return _parser("backup", _BACKUP, "TARGET", "a folder that does not exist yet")


def restore_parser() -> CommandParser:
    """Return the parser of ``fedhelm restore``."""
    parser = _parser("restore", _RESTORE, "BACKUP", "a folder that `fedhelm backup` wrote")
    parser.add_argument("--replace", action="store_true", help="move a store that is there aside")
    return parser


def main_backup(argv: list[str]) -> int:
    """Run ``fedhelm backup ARGV``; return its exit status."""
    fmt = format_of(argv)

    def body() -> ExitStatus:
        args = backup_parser().parse_args(argv)
        facts = back_up_project(parts_of(args), args.backup)
        keys = ("project", "made", "parts", "kits", "store")
        data = {"backup": str(args.backup.resolve())} | {key: facts[key] for key in keys if key in facts}
        return emit(data, fmt, lambda: _told(data))

    return guarded(body, fmt)


def _told(data: dict[str, Any]) -> str:
    store = data.get("store")
    log = f", log up to slot {store['end'] - 1}, {store['blobs']} blobs" if store else ""
    return f"{data['backup']}: {''.join(f'{part}, ' for part in data['parts'])}kits of {', '.join(data['kits'])}{log}"


def main_restore(argv: list[str]) -> int:
    """Run ``fedhelm restore ARGV``; return its exit status."""
    fmt = format_of(argv)

    def body() -> ExitStatus:
        args = restore_parser().parse_args(argv)
        made = args.workspace is not None and not args.workspace.exists()
        if made:
            remake_workspace(args.backup, args.workspace, MARKER)
        try:
            done = restore_project(args.backup, parts_of(args), replace=args.replace)
        except BaseException:
            if made:  # a workspace without its store is none
                shutil.rmtree(args.workspace, ignore_errors=True)
            raise
        moved = "".join(f"\n{old} was moved to {new}" for old, new in done["moved"].items())
        text = f"restored the backup of {done['made']}: epoch {done['epoch']}, log up to slot {done['log_seq']}{moved}"
        return emit(done, fmt, text)

    return guarded(body, fmt)
