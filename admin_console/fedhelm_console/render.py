"""Text for people: tables that fit, durations, states as word, glyph and colour. Pure."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedhelm.output import one_line, plain_lines
from fedhelm.plain_json import parse_plain

if TYPE_CHECKING:
    from fedhelm.admin.models import (
        Event,
        Explanation,
        Failover,
        Job,
        JobDetail,
        Primary,
        Server,
        Site,
        Status,
        System,
    )

__all__ = [
    "Style",
    "counted",
    "duration",
    "events",
    "explanation",
    "failovers",
    "job_detail",
    "job_line",
    "jobs",
    "moment",
    "servers",
    "sites",
    "size",
    "standing",
    "status",
    "topology",
]

_LARGEST = 1e300
"""A metric that is larger is not shown; a whole number may be more than a float can hold."""

_NARROW = 20
"""A column is not made narrower than that."""

_NAMED = 4
"""So many sites are named one by one."""

_GLYPHS = {
    "SUBMITTED": ("…", ".", "33"),
    "DISPATCHED": ("»", ">", "33"),
    "RUNNING": ("▶", ">", "36"),
    "FINISHED:COMPLETED": ("✓", "+", "32"),
    "FINISHED:ABORTED": ("■", "#", "33"),
    "FINISHED:FAILED": ("✗", "x", "31"),
    "ACTIVE": ("●", "*", "32"),
    "STANDBY": ("○", "o", "36"),
    "PROMOTING": ("◐", "~", "33"),
    "DRAINING": ("◑", "~", "33"),
    "UNLEASED": ("◍", "!", "33"),
    "READONLY": ("◌", "!", "33"),
    "FENCED": ("⊘", "x", "31"),
    "DOWN": ("✗", "x", "31"),
    "CONNECTED": ("●", "*", "32"),
    "DISCONNECTED": ("✗", "x", "31"),
    "WAITING": ("…", ".", "33"),
    "TRAINING": ("▶", ">", "36"),
    "DONE": ("✓", "+", "32"),
    "FAILED": ("✗", "x", "31"),
    "yes": ("✓", "+", "32"),
    "no": ("✗", "x", "31"),
}


@dataclass(frozen=True)
class Style:
    """What the terminal can do: columns, colours, and characters beyond ASCII."""

    width: int = 80
    colour: bool = False
    ascii: bool = False

    def state(self, word: str) -> str:
        """Return a state as glyph and word."""
        plain, simple, _ = _GLYPHS.get(word, ("·", "-", ""))
        return f"{simple if self.ascii else plain} {word}"

    def paint(self, text: str, code: str) -> str:
        """Return text in a colour (an SGR code), where there are colours."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and code else text

    def plain(self, text: str) -> str:
        """Return text without characters that an ASCII terminal lacks."""
        if not self.ascii:
            return text
        for fancy, simple in (("…", "..."), ("→", "->"), ("·", "-"), ("▲", "^"), ("│", "|"), ("▸", ">"), ("●", "*")):
            text = text.replace(fancy, simple)
        return text.encode("ascii", "replace").decode()


def _colour_of(cell: str) -> str:
    word = cell.strip().rpartition(" ")[2]
    return _GLYPHS[word][2] if word in _GLYPHS else ""


def duration(seconds: float | None) -> str:
    """Return ``0.4 s``, ``12.3 s``, ``4 m 05 s``, ``3 h 12 m``, ``2 d 04 h``."""
    if seconds is None:
        return "-"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def size(count: float) -> str:
    """Return a number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def moment(iso: str | None) -> str:
    """Return ``2026-11-22 15:04:05`` (UTC) of an ISO time."""
    return iso[:19].replace("T", " ") if iso else "-"


def _wrapped(style: Style, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns under headers; where the terminal is too narrow the last one goes on below itself."""
    widths = [max(len(row[column]) for row in [list(headers), *rows]) for column in range(len(headers))]
    room = max(style.width - sum(widths[:-1]) - 2 * (len(widths) - 1), _NARROW)
    if widths[-1] > room:
        pieces = [(row, textwrap.wrap(row[-1], room) or [""]) for row in rows]
        empty = [""] * (len(headers) - 1)
        rows = [[*(row[:-1] if not at else empty), text] for row, texts in pieces for at, text in enumerate(texts)]
    return _table(style, headers, rows, flexible=len(headers) - 1)


def _table(style: Style, headers: Sequence[str], rows: Sequence[Sequence[str]], flexible: int) -> str:
    """Align columns under headers; the flexible one is cut where the terminal is too narrow."""
    everything = [list(headers), *[[one_line(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in everything) for column in range(len(headers))]
    excess = sum(widths) + 2 * (len(widths) - 1) - style.width
    if excess > 0:
        widths[flexible] = max(len(headers[flexible]), 8, widths[flexible] - excess)
    lines = []
    for number, row in enumerate(everything):
        cells = []
        for cell, width in zip(row, widths, strict=True):
            fitted = cell if len(cell) <= width else cell[: width - 1] + ("~" if style.ascii else "…")
            cells.append(style.paint(fitted.ljust(width), _colour_of(cell) if number else "1"))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _pairs(style: Style, pairs: Sequence[tuple[str, str, str]]) -> str:
    """Return a line for each: a name, a value of others, and the value's colour."""
    width = max(len(name) for name, _, _ in pairs)
    return "\n".join(
        f"{style.paint(name.ljust(width), '1')}  {style.paint(one_line(value), code)}" for name, value, code in pairs
    )


def jobs(found: Sequence[Job], style: Style, *, details: bool = False) -> str:
    """Return the list of jobs."""
    if not found:
        return "no jobs"
    headers = ["JOB", "NAME", "STATUS", "SUBMITTED", "TOOK"]
    rows = [
        [job.job_id, job.name, style.state(job.status), moment(job.submit_time), duration(job.duration_s)]
        for job in found
    ]
    if details:
        headers.append("BY")
        rows = [[*row, job.submitter] for row, job in zip(rows, found, strict=True)]
    return _table(style, headers, rows, flexible=1)


def job_detail(job: JobDetail, style: Style) -> str:
    """Return one job: its state, its sites, why it waits or ended."""
    summary = job.summary
    pairs = [
        ("job", job.job_id, ""),
        ("name", summary.name, ""),
        ("status", style.state(job.status), _colour_of(job.status)),
        ("submitted", moment(summary.submit_time) + (f" by {summary.submitter}" if summary.submitter else ""), ""),
        ("took", duration(summary.duration_s), ""),
        ("round", f"{job.round} of {job.rounds}", ""),
        ("sites", ", ".join(f"{site.name} {style.state(site.status)}" for site in job.sites) or "-", ""),
    ]
    if metrics := _metrics(job.metrics_json):
        pairs.append(("metrics", metrics, ""))
    if job.reason:
        pairs.append(("reason", job.reason, ""))
    text = _pairs(style, pairs)
    return f"{text}\n\n{plain_lines(job.traceback.rstrip())}" if job.traceback else text


def job_line(job: JobDetail, style: Style) -> str:
    """Return one line about a job that goes on: the round, what the sites do, the metrics; cut to the width."""
    if job.round == 0:
        parts = [style.state(job.status), job.reason]
    else:
        words = Counter(site.status for site in job.sites)
        if len(job.sites) <= _NAMED:
            sites = ", ".join(f"{site.name} {style.state(site.status)}" for site in job.sites)
        else:
            sites = ", ".join(f"{count} {style.state(word)}" for word, count in words.items())
        parts = [f"round {job.round} of {job.rounds}", sites, _metrics(job.metrics_json)]
    text = one_line("  ".join(" ".join(part.split()) for part in parts if part))
    # The last column stays free: a terminal would go on to the next line, and the line could not be written over.
    return text if len(text) < style.width else text[: style.width - 2] + ("~" if style.ascii else "…")


def _metrics(text: str) -> str:
    try:
        values: Any = parse_plain(text) if text else {}
    except ValueError:
        return ""
    if not isinstance(values, dict):
        return ""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if abs(value) < _LARGEST)


def counted(count: int, thing: str) -> str:
    """Return ``1 job``, ``2 jobs``, ``no job``."""
    return f"{count or 'no'} {thing}{'s' if count > 1 else ''}"


def servers(found: Sequence[Server], style: Style) -> str:
    """Return the servers as the overseer sees them; with their versions while those differ, as in an upgrade."""
    mixed = len({server.software for server in found}) > 1
    rows = [
        [
            server.name,
            *([server.software or "-"] if mixed else []),
            style.state(server.state),
            "-" if server.epoch is None else str(server.epoch),
            "-" if server.epoch is not None else style.state("yes" if server.candidate else "no"),
            "-" if server.lag is None else str(server.lag),
            "-" if server.beat_age_s is None else duration(server.beat_age_s),
            server.note or "",
        ]
        for server in found
    ]
    return (
        _wrapped(
            style,
            ["SERVER", *(["VERSION"] if mixed else []), "STATE", "EPOCH", "CANDIDATE", "LAG", "SEEN", "NOTE"],
            rows,
        )
        if rows
        else "no servers"
    )


def standing(found: Sequence[Server], system: System) -> list[str]:
    """Return what an operator has to know beside the table: a pause, a system that is down, no failover."""
    lines = []
    if system.down:
        lines.append("the system is down: it was shut down by an admin")
    if system.paused:
        by = f" by {system.paused_by}" if system.paused_by else ""
        lines.append(
            f"failover is paused{by}{f': {system.reason}' if system.reason else ''}; resume_failover ends that"
        )
    if any(one.state == "UNLEASED" for one in found):
        lines.append("DEGRADED: no failover, the primary cannot renew its lease")
    return [one_line(line) for line in lines]


def topology(word: str, leads: Primary, found: Sequence[Server], jobs: int | None, style: Style) -> str:
    """Return one line: ``before  server1 primary, epoch 4 · server2 ○ STANDBY · 2 jobs running``."""
    parts = [f"{leads.name} primary, epoch {leads.epoch}"]
    for one in found:
        if one.name != leads.name:
            # A server that has led ends its process, and starts another.
            going = one.state in ("DRAINING", "FENCED")
            parts.append(f"{one.name} {'comes back as a standby' if going else style.state(one.state)}")
    if jobs is not None:
        parts.append(f"{counted(jobs, 'job')} running")
    return style.plain(f"{word.ljust(6)}  {' · '.join(parts)}")


def explanation(found: Explanation, style: Style) -> str:
    """Return the verdict, each condition with its finding, and who would be next."""
    rows = [[one.name.replace("_", " "), style.state("yes" if one.ok else "no"), one.text] for one in found.checks]
    following = f"If the primary died now, {found.next or 'nobody'} would lead."
    verdict, following = one_line(found.verdict), one_line(following)
    parts = [verdict, "", _wrapped(style, ["CHECK", "OK", "FINDING"], rows), "", following]
    return "\n".join(parts if rows else [verdict, following])


def sites(found: Sequence[Site], style: Style) -> str:
    """Return the sites as the primary sees them."""
    if not found:
        return "no sites"
    rows = [
        [site.name, style.state("CONNECTED" if site.connected else "DISCONNECTED"), " ".join(site.jobs) or "-"]
        for site in found
    ]
    return _table(style, ["SITE", "STATE", "JOBS"], rows, flexible=2)


def status(found: Status, style: Style) -> str:
    """Return the primary's view of itself."""
    log = [f"slot {found.log_seq}"]
    if found.checkpoint:
        log.append(f"checkpoint in slot {found.checkpoint}")
    if found.low_water:
        log.append(f"kept from slot {found.low_water}")
    pairs = [
        ("primary", found.server, ""),
        ("state", style.state(found.role), _colour_of(found.role)),
        ("epoch", str(found.epoch), ""),
        ("log", ", ".join([*log, f"version {found.log_version}"]), ""),
        ("jobs", f"{found.jobs_running} running, {found.jobs_waiting} waiting", ""),
    ]
    if found.store_free:
        pairs.append(("store", f"{size(found.store_free)} free", ""))
    pairs += [("warning", one, "33") for one in found.warnings]
    return _pairs(style, pairs)


def events(found: Sequence[Event], style: Style) -> str:
    """Return events with their ids and times."""
    rows = [[str(one.id), moment(one.time), one.kind, " ".join(one.text.split())] for one in found]
    return _wrapped(style, ["ID", "TIME", "KIND", "WHAT"], rows) if rows else "no events"


def failovers(found: Sequence[Failover], style: Style) -> str:
    """Return the epochs with their causes and gaps, and the jobs that went on."""
    rows = [
        [
            str(one.epoch),
            moment(one.time),
            one.name,
            duration(one.gap_s),
            "-" if one.jobs is None else str(one.jobs),
            one.cause + (f", asked by {one.by}" if one.by else ""),
        ]
        for one in found
    ]
    return _wrapped(style, ["EPOCH", "GRANTED", "SERVER", "GAP", "JOBS", "CAUSE"], rows) if rows else "no history"
