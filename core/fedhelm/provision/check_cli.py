"""``fedhelm check KIT``: whether a participant can be started here, before it is."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from fedhelm.errors import ExitStatus
from fedhelm.output import CommandParser, add_output_option, emit, format_of, guarded, one_line
from fedhelm.process import ParticipantLock
from fedhelm.provision.preflight import examine
from fedhelm.provision.reach import Finding, Level, worst

__all__ = ["main"]

_HEADS = {"ok": "ready to start", "warn": "can be started; see the warnings", "fail": "cannot work like this"}
_RUNNING = {"ok": "nothing is amiss", "warn": "see the warnings", "fail": "cannot work like this"}


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="fedhelm check",
        description="Look whether a participant can work on this machine: its files, certificate and clock, the names "
        "and ports of the others, its store, packages and GPUs. Nothing is changed. The exit status is 1 if anything "
        "failed.",
        allow_abbrev=False,
    )
    parser.add_argument("kit", type=Path, metavar="KIT", help="the participant's folder")
    parser.add_argument("--offline", action="store_true", help="ask nobody: no names, overseers or servers")
    add_output_option(parser)
    return parser


def _line(one: Finding) -> str:
    hint = f"\n{'':18}do: {one_line(one.hint)}" if one.hint and one.level != "ok" else ""
    return f"{one.level:<4}  {one.what:<11} {one_line(one.said)}{hint}"  # what others answered is in it


def _head(root: Path, level: Level) -> str:
    try:
        pid = ParticipantLock.holder(root / "run")
    except OSError:  # a kit of another user: one of the findings
        pid = None
    return f"{root}: {_HEADS[level]}" if pid is None else f"{root}: it runs, pid {pid}; {_RUNNING[level]}"


def main(argv: list[str]) -> int:
    """Run ``fedhelm check``; return its exit status."""
    fmt = format_of(argv)

    def body() -> int:
        args = _parser().parse_args(argv)
        findings = list(examine(args.kit, network=not args.offline))
        level = worst(findings)
        data = {"kit": str(args.kit), "level": level, "findings": [dataclasses.asdict(one) for one in findings]}
        lines = [*map(_line, findings), _head(args.kit, level)]
        emit(data, fmt, "\n".join(lines))
        return ExitStatus.FAILED if level == "fail" else ExitStatus.OK

    return guarded(body, fmt)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
