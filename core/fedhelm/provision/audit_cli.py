"""``fedhelm audit``: what was asked of a participant, whether the file was changed, and where a model comes from."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fedhelm.errors import BadInput, BadSignature, ExitStatus, FedhelmError, NotFound, Unreachable, UsageError
from fedhelm.output import CommandParser, Format, add_output_option, emit, format_of, guarded, one_line, table
from fedhelm.process import atomic_write
from fedhelm.provision.provenance_check import Check, check_folder, find_kit, revocations_of_kit, trust_of_kit
from fedhelm.security.audit_files import AUDIT_FILE, open_files, read_files
from fedhelm.security.audit_lines import MISSING, Line, Outcome, Report
from fedhelm.security.audit_memory import MEMORY_FILE, Remembered, read_memory
from fedhelm.security.provenance import VerifiedProvenance
from fedhelm.security.syslog import SYSLOG_URL, SyslogSink

__all__ = ["main"]

_ABOUT = """\
Look at the audit file of a participant. WHERE is its kit, or the file itself. Nothing is changed, and it may run.
What was set aside when the file had grown large (audit-NUMBER.jsonl beside it) is read as well, in its order.

  fedhelm audit verify WHERE            every line fits, or the first that does not
  fedhelm audit show WHERE              the newest lines
  fedhelm audit export WHERE --to TO    lines as they are: to a file, - (standard output), udp://HOST:PORT, tcp://HOST:PORT
  fedhelm audit provenance FOLDER       whether a downloaded result is what its signed statement says
"""


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="fedhelm audit",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(
        dest="action", metavar="ACTION", required=True, help="verify, show, export or provenance"
    )

    def action(name: str, summary: str, what: str = "WHERE") -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        told = "a kit, or an audit.jsonl" if what == "WHERE" else "what download_job made"
        sub.add_argument("where", type=Path, metavar=what, help=told)
        add_output_option(sub)
        return sub

    verify = action("verify", "whether every line fits the one before it")
    verify.add_argument("--expect", metavar="NUMBER:SHA256", help="a line that somebody else has kept, from syslog")
    verify.add_argument(
        "--known", type=int, default=0, metavar="NUMBER", help="it is known why lines are gone, up to this line"
    )
    show = action("show", "the newest lines")
    show.add_argument("-n", "--lines", type=int, default=20, metavar="N", help="how many (default 20); 0: all")
    show.add_argument("--denied", action="store_true", help="only what was denied")
    show.add_argument("--by", metavar="NAME", help="only what this caller asked")
    show.add_argument("--about", metavar="TEXT", help="only what is about this job, site or submitter")
    export = action("export", "lines as they are, to somebody else")
    export.add_argument("--to", required=True, metavar="TO", help="a file that is not there, -, udp://... or tcp://...")
    export.add_argument("--since", type=int, default=1, metavar="NUMBER", help="from this line on")
    provenance = action("provenance", "whether a downloaded result is what its signed statement says", "FOLDER")
    provenance.add_argument("--kit", type=Path, metavar="KIT", help="any kit of the project; else the one it lies in")
    provenance.add_argument(
        "--revoked",
        type=Path,
        metavar="FILE",
        help="the signed list of revoked certificates; else the kit's run/revoked.json",
    )
    provenance.add_argument(
        "--believe-time",
        action="store_true",
        help="a server revoked later than it says to have signed, whose key was not stolen",
    )
    add_output_option(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run ``fedhelm audit ARGV``; return its exit status."""
    fmt = format_of(argv)

    def body() -> int:
        args = _parser().parse_args(argv)
        return _ACTIONS[args.action](args, fmt)

    return guarded(body, fmt)


class _Kept(NamedTuple):
    """A line that is kept elsewhere too; ``told`` says where."""

    number: int
    digest: str
    told: str


@contextlib.contextmanager
def _opened(where: Path) -> Iterator[list[BinaryIO]]:
    path = where / AUDIT_FILE if where.is_dir() else where
    with contextlib.ExitStack() as stack:
        try:
            files = stack.enter_context(open_files(path))
        except FileNotFoundError:
            raise NotFound(f"{path}: there is none", hint="a participant makes it when it starts") from None
        except OSError as error:
            raise BadInput(f"{error.filename or path}: cannot be read: {error.strerror}") from error
        yield files


# -- verify ------------------------------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace, fmt: Format) -> ExitStatus:
    remembered = _remembered(args.where)
    with _opened(args.where) as files:
        report, gone = _examine(files, _kept(args.expect, remembered))
        names = [file.name for file in files]
    if report.problem is None and not report.lines and remembered is None:
        report.problem = "there is no line, and nothing says that there was none"
    unknown = [number for number in gone if number > args.known]
    data = {
        "file": report.file,
        "files": names,
        "sound": report.sound,
        "lines": report.lines,
        "first": report.first,
        "last": {"number": report.last[0], "sha256": report.last[1]},
        "problem": report.problem,
        "unfinished": report.torn,
        "tail": report.tail,
        "missing": report.missing,
        "lost": report.lost,
    }
    emit(data, fmt, lambda: _told(names, report, gone))
    return ExitStatus.OK if report.sound and not unknown else ExitStatus.FAILED


def _remembered(where: Path) -> Remembered | None:
    """Return what a kit remembers of its audit file; None for a file that is in no kit."""
    if not where.is_dir() and where.name != AUDIT_FILE:
        return None
    path = (where if where.is_dir() else where.parent) / "run" / MEMORY_FILE
    try:
        return read_memory(path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from error


def _kept(expect: str | None, remembered: Remembered | None) -> list[_Kept]:
    kept = [] if expect is None else [_Kept(*_expected(expect), "")]
    if remembered is not None and remembered.number:
        told = f" (run/{MEMORY_FILE} has {remembered.number}:{remembered.digest})"
        kept.append(_Kept(remembered.number, remembered.digest, told))
    return kept


def _told(names: list[str], report: Report, gone: dict[int, str]) -> str:
    older = len(names) - 1
    more = f" and {older} older file{'s' if older > 1 else ''}" if older else ""
    sound = f"{names[-1]}{more}: every line fits"
    if report.sound and not report.lines and not report.tail:
        return f"{names[-1]}: there is no line yet"
    lines = [f"{report.file}: {report.problem}" if report.problem else sound]
    lines += [f"line number {number} says that lines are gone: {one_line(why)}" for number, why in gone.items()]
    if report.first > 1:
        lines.append(f"begins with number {report.first}: what came before is in files that are not here")
    lines.append(f"{report.lines} lines, the last that fits is {report.last[0]}:{report.last[1]}")
    if report.torn:
        places = ", ".join(map(str, report.torn[:5]))
        what = "unfinished by writers that were killed or had no room, and noted"
        lines.append(f"{len(report.torn)} {what}: line {places}")
    if report.lost:
        lines.append(f"{report.lost} lines could not be written, as the file says itself (audit.lost)")
    if report.sound and report.tail:
        lines.append(f"{report.tail} bytes at the end are not a whole line yet")
    return "\n".join(lines)


def _expected(text: str) -> tuple[int, str]:
    number, _, digest = text.partition(":")
    if not number.isdecimal() or len(digest) != 64:
        raise UsageError(f"{text:.100} is not NUMBER:SHA256")
    return int(number), digest.lower()


def _examine(files: list[BinaryIO], kept: list[_Kept]) -> tuple[Report, dict[int, str]]:
    """Return what was found, and for each line that says that lines are gone, why."""
    report, gone = Report(), {}
    seen: dict[int, str] = {}
    for line in read_files(files, report):
        if line.number in {one.number for one in kept}:
            seen[line.number] = line.digest
        if line.body["action"] == MISSING:
            gone[line.number] = str(line.body["why"])
    for one in kept:
        if report.problem is None and seen.get(one.number) != one.digest:
            away = "it is in a file that is not here" if one.number < report.first else "the end was cut"
            found = "is another" if one.number in seen else f"is missing: {away}"
            report.problem = f"line number {one.number} {found}{one.told}"
    return report, gone


# -- show and export ---------------------------------------------------------------------------------------------------


def _sound_lines(files: list[BinaryIO]) -> Iterator[Line]:
    """Yield every line; a file that does not fit ends in an error, after the lines that do."""
    report = Report()
    yield from read_files(files, report)
    if report.problem is not None:
        raise BadSignature(f"{report.file}: {report.problem}", hint=f"fedhelm audit verify {files[-1].name}")


def _show(args: argparse.Namespace, fmt: Format) -> ExitStatus:
    if args.lines < 0:
        raise UsageError(f"-n {args.lines}: less than none")
    chosen: deque[Line] = deque(maxlen=args.lines or None)
    problem: FedhelmError | None = None
    with _opened(args.where) as files:
        try:
            chosen.extend(line for line in _sound_lines(files) if _wanted(line.body, args))
        except BadSignature as error:
            problem = error
    bodies = [line.body for line in chosen]
    emit({"lines": bodies, "problem": problem.message if problem else None}, fmt, lambda: _lines_table(bodies))
    if problem is not None and fmt == "table":
        raise problem
    return ExitStatus.OK if problem is None else problem.exit_status


def _wanted(body: Any, args: argparse.Namespace) -> bool:
    by = body["by"] if isinstance(body["by"], dict) else {}
    return (
        (not args.denied or body["outcome"] == Outcome.DENIED)
        and (args.by is None or by.get("name") == args.by)
        and (args.about is None or any(_is_about(value, args.about) for value in body["object"].values()))
    )


def _is_about(value: object, name: str) -> bool:
    """Tell whether a value is this, or names it among several."""
    return value == name or name in str(value).split(", ")


def _lines_table(bodies: list[Any]) -> str:
    if not bodies:
        return "no such line"
    rows = []
    for body in bodies:
        by = body["by"] if isinstance(body["by"], dict) else {}
        about = " ".join(f"{key}={value}" for key, value in body["object"].items())
        times = f" (x{body['times']})" if "times" in body else ""
        who = f"{by['role']} {by['name']}" if {"role", "name"} <= set(by) else None
        rows.append([body["number"], body["time"], who, body["action"] + times, body["outcome"], about, body["why"]])
    return table(["number", "time", "by", "action", "outcome", "about", "why"], rows)


def _export(args: argparse.Namespace, fmt: Format) -> ExitStatus:
    if args.to == "-" and fmt == "json":
        raise UsageError("--to - writes the lines themselves; -o json belongs to the other places")
    with _opened(args.where) as files:
        lines = (line for line in _sound_lines(files) if line.number >= args.since)
        if args.to == "-":
            for line in lines:
                sys.stdout.write(line.raw.decode() + "\n")
            return ExitStatus.OK
        if "://" in args.to:
            count = _send(SyslogSink(args.to, _participant(files[-1].name)), lines)
        else:
            count = _copy(Path(args.to), lines)
    return emit({"lines": count, "to": args.to}, fmt, f"{count} lines to {args.to}")


def _participant(name: str) -> str:
    return Path(name).resolve().parent.name


def _send(sink: SyslogSink, lines: Iterator[Line]) -> int:
    count = 0
    try:
        for line in lines:
            sink(line)
            count += 1
    except OSError as error:
        raise Unreachable(f"the receiver does not take them after {count} lines: {error}", hint=SYSLOG_URL) from error
    finally:
        sink.close()
    return count


def _copy(path: Path, lines: Iterator[Line]) -> int:
    if path.exists():
        raise BadInput(f"{path} is there already")
    taken = [line.raw for line in lines]
    try:
        atomic_write(path, b"".join(raw + b"\n" for raw in taken))
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {os.strerror(error.errno or 0)}") from error
    return len(taken)


# -- provenance --------------------------------------------------------------------------------------------------------


def _provenance(args: argparse.Namespace, fmt: Format) -> ExitStatus:
    kit = args.kit or find_kit(args.where)
    revocations = revocations_of_kit(kit, args.revoked, believe_time=args.believe_time)
    verified, checks = check_folder(args.where, *trust_of_kit(kit), revocations)
    bad = [check for check in checks if check.good is False]
    data = {
        "sound": not bad,
        "signer": verified.signer.name,
        "time": verified.time,
        "provenance": asdict(verified.provenance),
        "checks": [asdict(check) for check in checks],
    }
    emit(data, fmt, lambda: _provenance_told(verified, checks))
    return ExitStatus.FAILED if bad else ExitStatus.OK


def _provenance_told(verified: VerifiedProvenance, checks: list[Check]) -> str:
    one = verified.provenance
    rounds = [(r.round, r.kind, r.epoch, r.primary, len(r.members), (r.model_sha256 or "-")[:16]) for r in one.rounds]
    submitter = one.submitter + (f" ({one.submitter_org})" if one.submitter_org else "")
    said = [
        f"job {one.job} ({one.name}) of project {one.project}, submitted by {submitter}",
        f"signed by {verified.signer.name}, {verified.time}",
        f"trained by {', '.join(one.members) or 'nobody'}",
        f"software: {', '.join(f'{name} {version}' for name, version in one.software.items())}",
    ]
    words = {True: "ok", False: "WRONG", None: "-"}
    found = [one_line(f"{words[check.good]:<6} {check.what}: {check.told}") for check in checks]
    head = table(["round", "kind", "epoch", "primary", "members", "model"], rounds)
    return "\n".join([*map(one_line, said), "", head, "", *found])


_ACTIONS: dict[str, Callable[[argparse.Namespace, Format], ExitStatus]] = {
    "verify": _verify,
    "show": _show,
    "export": _export,
    "provenance": _provenance,
}
