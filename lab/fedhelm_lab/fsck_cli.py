"""``fedhelm fsck``: look over a store, and mend what can be mended without losing what was acknowledged."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedhelm.errors import BadInput, ExitStatus, FedhelmError, Refused, StoreUnavailable, UsageError, WrongStore
from fedhelm.output import CommandParser, add_output_option, emit, format_of, guarded
from fedhelm.persist.fsck import Finding, Remedy, Report, examine, look_at, store_path
from fedhelm.persist.mending import repair
from fedhelm.persist.posix import PosixLogStore
from fedhelm_lab.backup_cli import add_parts, parts_of
from fedhelm_lab.collected import may_be_gone
from fedhelm_lab.project_backup import Parts, check_stopped

__all__ = ["main"]

_ABOUT = """\
Read every mark, slot and blob of a store, and say what is wrong. Nothing is changed, and servers may run.

With --repair, after all servers were stopped: litter is put aside, and damaged slots, marks and blobs are taken from a
backup (--from) if their hashes prove that they belong there. Exit status 1 while something is wrong.
"""


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="fedhelm fsck",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_parts(parser)
    parser.add_argument("--repair", action="store_true", help="mend what can be mended")
    parser.add_argument(
        "--from", dest="backup", type=Path, metavar="BACKUP", help="a folder that `fedhelm backup` wrote"
    )
    parser.add_argument(
        "--accept-loss",
        action="store_true",
        help="cut off a last slot that no backup has, and take a log that is shorter than the lease says as it is:"
        " whatever was there is lost, acknowledged or not",
    )
    add_output_option(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run ``fedhelm fsck ARGV``; return its exit status."""
    fmt = format_of(argv)

    def body() -> int:
        args = _parser().parse_args(argv)
        if not args.repair and (args.backup or args.accept_loss):
            raise UsageError("--from and --accept-loss belong to --repair", hint="fedhelm fsck -h")
        parts = parts_of(args)
        root = _store(parts)
        done: list[str] = []
        known = -1
        try:
            known = _known_end(parts)  # before the log is read, which may grow meanwhile
        except StoreUnavailable as error:
            if args.accept_loss:
                raise
            done.append(f"whether the lease knows of a longer log was not looked at: {error.message}")
        if args.repair:
            check_stopped(parts)
            done += _mend(root, args)
        report = examine(root, may_be_gone)
        if 0 < report.end <= known:
            if args.accept_loss and report.sound:
                done.append(_tell_lease(parts, report, known))
            else:
                report.findings.append(_short(report, known))
        data = asdict(report) | {"store": str(root), "sound": report.sound, "done": done}
        data["findings"] = [_row(one) for one in report.findings]
        emit(data, fmt, lambda: _told(root, report, done))
        return ExitStatus.OK if report.sound else ExitStatus.FAILED

    return guarded(body, fmt)


def _store(parts: Parts) -> Path:
    """Return where the store is.

    Raises:
        WrongStore: there is none, or it is another project's: nothing there is this project's to mend.
    """
    if parts.server is None or parts.server.store is None:
        raise BadInput("no server's kit was given: only servers know the store", hint="--kit DIR, or -w WORKSPACE")
    root = parts.server.store
    if not (root / "log").is_dir():
        raise WrongStore(f"{root} is not a store", hint="is the shared directory mounted?")
    genesis, _ = look_at(PosixLogStore(root), 0)
    if genesis is not None and (cluster := genesis.body.get("cluster")) != parts.server.cluster:
        raise WrongStore(
            f"{root} belongs to cluster {cluster!r}, not to {parts.server.cluster!r}",
            hint="the store of another federation: check the kit's store path",
        )
    return root


def _mend(root: Path, args: argparse.Namespace) -> list[str]:
    """Mend one finding after the other, as long as that gets anywhere; return what was done."""
    backup = None if args.backup is None else args.backup / "store"
    if backup is not None and not backup.is_dir():
        raise BadInput(f"{args.backup} holds no store", hint="a folder that `fedhelm backup` wrote")
    done: list[str] = []
    tried: set[str] = set()
    while True:
        findings = examine(root, may_be_gone).findings
        finding = next((one for one in findings if one.path not in tried and one.remedy is not Remedy.NONE), None)
        if finding is None:
            return done
        try:
            done.append(repair(root, finding, backup, accept_loss=args.accept_loss))
            tried = {one for one in tried if one != finding.path}
        except Refused as refusal:
            done.append(f"{finding.path} was left as it is: {refusal.message}")
        except FedhelmError as error:
            raise type(error)(f"{finding.path}: {error.message}", hint=error.hint) from error
        tried.add(finding.path)


def _known_end(parts: Parts) -> int:
    """Return the last slot that the lease knows of; -1 if it knows of none, or is not on this machine."""
    if parts.overseer is None:
        return -1
    from fedhelm_overseer.lease_copy import known_end

    return known_end(parts.overseer)


def _short(report: Report, known: int) -> Finding:
    """Say that the log ends too early: no server leads over it."""
    problem = f"is missing: the lease knows of slots up to {known}, the log ends with {report.end - 1}"
    advice = (
        "an older copy of the store? Then put the newest in its place; if there is none, stop all servers and"
        " overseers, and --repair --accept-loss: what was in those slots is lost"
    )
    return Finding("slot", store_path("log", report.end), problem, advice, Remedy.NONE)


def _tell_lease(parts: Parts, report: Report, known: int) -> str:
    """Have the lease know of no more than is left: without this no server would lead over it."""
    assert parts.overseer is not None
    from fedhelm_overseer.lease_copy import opened, tell_end

    with opened(parts.overseer) as (engines, key):
        tell_end(engines, key, report.end - 1)
    return f"the lease was told that the log ends with slot {report.end - 1}; it said {known}"


def _row(finding: Finding) -> dict[str, Any]:
    return asdict(finding) | {"remedy": finding.remedy.value, "harmless": finding.harmless}


def _told(root: Path, report: Report, done: list[str]) -> str:
    lines = [*done, *(f"{root / one.path}: {one.problem}; {one.advice}" for one in report.findings)]
    state = "sound" if report.sound else "NOT sound"
    lines.append(f"{root}: {state}; slots {report.low_water} to {report.end - 1}, {report.blobs} blobs that are needed")
    return "\n".join(lines)
