"""``fedhelm poc``: prepare, start, look at, stop and remove a local federation."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedhelm.config.kit import SQLITE
from fedhelm.errors import ExitStatus, NotFound, UsageError
from fedhelm.output import CommandParser, Format, add_output_option, emit, format_of, guarded, table
from fedhelm_lab.growth import add_server
from fedhelm_lab.workspace import ADMIN, Workspace, plan, prepare

__all__ = ["main"]

_ABOUT = """\
A whole federation on this machine, with the security and high availability of a real one: an overseer, FL servers
(one leads, the others stand by), sites, and an admin's kit.

actions:
  prepare   make the workspace: certificates, a signed kit and scripts for each participant, the shared store, examples
            (`fedhelm poc -n 2` is short for `fedhelm poc prepare -n 2`)
  start     start what is not running, and wait until all are ready (at most 60 s)
  status    show each participant: process, ready or not, processes below it
  stop      stop everything; no process stays behind
  add       one more server: its kit, which nobody else has to be told of; `start` starts it
  clean     stop, then remove the workspace
"""

_EXAMPLES = f"""\
a first federation:
  fedhelm poc prepare -n 2                     # ./poc: overseer, server1, server2, site-1, site-2, {ADMIN}
  fedhelm poc start
  ./poc/{ADMIN}/startup/fl_admin.sh   # the admin console; the examples are in its transfer folder
  fedhelm poc stop

ports on 127.0.0.1: overseer 8443, server1 8002 and 8003, server2 9002 and 9003; with --base-port P: overseer P,
server k P+2k-1 and P+2k. With --overseers N there are overseer2 and so on, at 9443 or at the ports after the servers'.
They share a PostgreSQL database, and its password stands in a file that is absolute or in each overseer's local folder:
  fedhelm poc prepare --overseers 2 --lease-store "postgresql://USER@HOST:PORT/DATABASE?passfile=FILE"

Exit statuses: 0 done, 1 failed, 2 usage, 4 kit refused, 5 not ready in time.
"""

_ACTIONS = ("prepare", "start", "status", "stop", "add", "clean")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="fedhelm poc",
        usage="fedhelm poc [ACTION] [-n SITES] [--servers K] [--overseers N --lease-store URL] [--base-port P] "
        "[-w DIR] [-o json]",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("action", nargs="?", choices=_ACTIONS, help=argparse.SUPPRESS)
    parser.add_argument("-n", type=int, metavar="SITES", help="prepare: number of sites (default 2)")
    parser.add_argument(
        "--servers", type=int, metavar="K", help="prepare: number of servers (default 2: one stands by)"
    )
    parser.add_argument("--overseers", type=int, metavar="N", help="prepare: number of overseers (default 1)")
    parser.add_argument(
        "--lease-store",
        metavar="URL",
        help="prepare: the PostgreSQL database that several overseers share (default: a file of the only one)",
    )
    parser.add_argument(
        "--base-port", type=int, metavar="P", help="prepare: first port of a free range; add: its two ports"
    )
    parser.add_argument("-w", "--workspace", type=Path, default=Path("poc"), metavar="DIR", help="default: ./poc")
    add_output_option(parser)
    return parser


def _parse(argv: list[str]) -> argparse.Namespace:
    args = _parser().parse_intermixed_args(argv)
    given = [
        option
        for option in ("n", "servers", "overseers", "lease_store", "base_port")
        if getattr(args, option) is not None
    ]
    if args.action is None:
        if args.n is None:
            raise UsageError(f"which action? one of {', '.join(_ACTIONS)}", hint="fedhelm poc -h")
        args.action = "prepare"
    elif given and args.action != "prepare" and (args.action, given) != ("add", ["base_port"]):
        name = "-n" if given[0] == "n" else f"--{given[0].replace('_', '-')}"
        raise UsageError(f"{name} belongs to prepare, not to {args.action}", hint="fedhelm poc -h")
    return args


def _prepare(args: argparse.Namespace, fmt: Format) -> ExitStatus:
    sites = 2 if args.n is None else args.n
    servers = 2 if args.servers is None else args.servers
    overseers = 1 if args.overseers is None else args.overseers
    project = plan(sites, servers, args.base_port, overseers=overseers, lease_store=args.lease_store or SQLITE)
    workspace = prepare(args.workspace, project)
    rows = [{"name": one.name, "role": one.role, "ports": list(one.ports)} for one in project.participants]

    def human() -> str:
        lines = [(one.name, one.role, ", ".join(map(str, one.ports)) or None) for one in project.participants]
        where = f" -w {args.workspace}" if args.workspace != Path("poc") else ""
        script = workspace.kit(ADMIN).startup / "fl_admin.sh"
        return (
            f"Workspace {workspace.root}\n\n{table(('name', 'role', 'ports'), lines)}\n\n"
            f"Next: fedhelm poc start{where}, then {script}"
        )

    return emit({"workspace": str(workspace.root), "participants": rows}, fmt, human)


def _status_table(rows: list[dict[str, Any]]) -> str:
    def state(row: dict[str, Any]) -> str:
        if not row["alive"]:
            return "stopped"
        return "ready" if row["ready"] else "starting"

    def below(row: dict[str, Any]) -> str | None:
        return ", ".join(f"{mark} {' '.join(map(str, pids))}" for mark, pids in row["children"].items() if pids) or None

    lines = [(row["name"], row["role"], state(row), row["pid"], below(row)) for row in rows]
    told = [f"{row['name']} is not ready: {row['reason']}" for row in rows if row["reason"]]
    return "\n".join([table(("name", "role", "state", "pid", "processes"), lines), *told])


def _start(args: argparse.Namespace, fmt: Format) -> ExitStatus:
    workspace = Workspace.open(args.workspace)
    started = workspace.start()
    rows = workspace.status()
    return emit(rows, fmt, lambda: f"{_status_table(rows)}\n\n{_sentence(started, 'started', 'all were running')}")


def _sentence(names: list[str], verb: str, otherwise: str) -> str:
    return f"{', '.join(names)} {verb}" if names else otherwise


def _status(args: argparse.Namespace, fmt: Format) -> ExitStatus:
    rows = Workspace.open(args.workspace).status()
    return emit(rows, fmt, lambda: _status_table(rows))


def _stop(args: argparse.Namespace, fmt: Format) -> ExitStatus:
    stopped = Workspace.open(args.workspace).stop()
    return emit({"stopped": stopped}, fmt, _sentence(stopped, "stopped", "nothing was running"))


def _add(args: argparse.Namespace, fmt: Format) -> ExitStatus:
    kit = add_server(Workspace.open(args.workspace), args.base_port)
    own = kit.own_server
    where = f" -w {args.workspace}" if args.workspace != Path("poc") else ""
    data = {"name": kit.name, "kit": str(kit.root), "ports": [own.fed_learn_port, own.admin_port]}
    return emit(data, fmt, f"{kit.name} has its kit: {kit.root}\n\nNext: fedhelm poc start{where}")


def _clean(args: argparse.Namespace, fmt: Format) -> ExitStatus:
    try:
        workspace = Workspace.open(args.workspace)
    except NotFound:
        return emit({"removed": None}, fmt, f"{args.workspace}: nothing to remove")
    workspace.clean()
    return emit({"removed": str(workspace.root)}, fmt, f"removed {workspace.root}")


_RUN: dict[str, Callable[[argparse.Namespace, Format], ExitStatus]] = {
    "prepare": _prepare,
    "start": _start,
    "status": _status,
    "stop": _stop,
    "add": _add,
    "clean": _clean,
}


def main(argv: list[str]) -> int:
    """Run ``fedhelm poc ARGV``; return its exit status."""
    fmt = format_of(argv)

    def body() -> int:
        args = _parse(argv)
        return _RUN[args.action](args, fmt)

    return guarded(body, fmt)
