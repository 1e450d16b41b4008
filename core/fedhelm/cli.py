"""The ``fedhelm`` command: an umbrella that imports a subcommand only when it is used."""

from __future__ import annotations

import difflib
import os
import sys
from importlib.metadata import EntryPoint, entry_points, version

from fedhelm.errors import ExitStatus, Interrupted, UnknownCommand
from fedhelm.output import emit_error, format_of

__all__ = ["main", "run"]

_SUMMARIES = {
    "demo": "watch a federation survive the death of its primary server",
    "poc": "prepare, start, stop a local federation",
    "examples": "copy example jobs into a folder",
    "provision": "make signed kits for every participant from one project file",
    "pki": "certificates: request, approve, list, renew, revoke, rotate the root",
    "kit": "put a newer kit in place while its participant runs",
    "check": "look whether a participant can work on this machine",
    "authz": "who may do what, by a kit's policy, and why",
    "audit": "who did what: verify, show, export; where a model comes from",
    "console": "the admin console; `-c CMD` for scripts",
    "overseer": "run an overseer from its kit",
    "server": "run an FL server from its kit",
    "client": "run a site from its kit",
    "fsck": "examine the store, and repair what can be",
    "backup": "copy a project: log, blobs, lease, root key, kits",
    "restore": "put a backup back",
    "failover": "make a standby lead when every overseer is lost",
}

_PRIVATE = frozenset(
    {"overseer", "server", "client", "console", "poc", "demo", "fsck", "backup", "restore", "failover"}
)
"""Commands that write a participant's files: logs, leases, jobs, results. `provision` and `pki` give each its mode."""


def _commands() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="fedhelm.commands")}


def _help(names: list[str]) -> str:
    order = [name for name in _SUMMARIES if name in names] + sorted(set(names) - set(_SUMMARIES))
    lines = [f"  {name:<10} {_SUMMARIES.get(name, '')}".rstrip() for name in order]
    return "usage: fedhelm COMMAND ...\n\n" + "\n".join(lines) + "\n\n`fedhelm COMMAND -h` explains each.\n"


def main(argv: list[str]) -> int:
    """Run one subcommand; return its exit status."""
    commands = _commands()
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help(list(commands)))
        return ExitStatus.OK if argv else ExitStatus.USAGE
    if argv[0] == "--version":
        sys.stdout.write(f"fedhelm {version('fedhelm')}\n")
        return ExitStatus.OK
    name = argv[0]
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "fedhelm -h"
        return emit_error(UnknownCommand(f"no command {name!r}", hint=hint), format_of(argv))
    return int(commands[name].load()(argv[1:]))


def run() -> None:
    """Entry point of the installed command; Ctrl-C before the subcommand has taken over is told like any other."""
    argv = sys.argv[1:]
    if argv and argv[0] in _PRIVATE:
        os.umask(0o077)  # of all processes below as well; what is made is for this user alone
    try:
        status = main(argv)
    except KeyboardInterrupt:
        status = emit_error(Interrupted("interrupted"), format_of(argv))
    sys.exit(int(status))


if __name__ == "__main__":
    run()
