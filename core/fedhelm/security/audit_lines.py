"""The lines of an audit file: what one says, how they hang together, and how a file of them is examined. No writing.

A line is one JSON object: ``number`` (from 1), ``time``, ``by`` (role, name, org, serial), ``action``, ``object``,
``outcome``, ``why``, ``prev`` (the ``sha256`` of the line before; 64 zeros in the first) and ``sha256``, which is over
the line as it would be without it. So a line that is changed, taken out, put in or moved does not fit any more.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Final

from fedhelm.output import one_line
from fedhelm.security.identity import Principal

__all__ = [
    "CONTINUED",
    "LOST",
    "MAX_LINE",
    "MISSING",
    "NO_LINE",
    "START",
    "TORN",
    "Entry",
    "Line",
    "Outcome",
    "Report",
    "continued_entry",
    "encode",
    "examine",
    "lost_entry",
    "missing_entry",
    "parse_line",
    "read_lines",
    "torn_entry",
    "unsure_entry",
]

MAX_LINE: Final = 8192
"""Bytes of the longest line, its end included."""

START: Final = (0, "0" * 64)
"""Number and digest before the first line."""

CONTINUED: Final = "audit.continued"
"""Action of the first line of a file that goes on where another one, which was set aside, ends."""

TORN: Final = "audit.torn"
"""Action of the line after what a writer left unfinished, killed or out of room: how many bytes, and their digest."""

LOST: Final = "audit.lost"
"""Action of the line that says how many lines could not be written."""

MISSING: Final = "audit.missing"
"""Action of the line that says that lines which were written are gone: the file was moved, deleted, cut or exchanged.
Its number follows the last line that was written, whatever stands before it in the file."""

NO_LINE: Final = "is not a line of an audit file"
"""What `parse_line` says of bytes that are no line at all, such as the beginning of one."""

_MAX_VALUE: Final = 256
_MAX_SITES: Final = 2048  # of the value "site", which names all sites of a call
_MAX_WHY: Final = 384
_MAX_KEY: Final = 48
_MAX_ITEMS: Final = 8
_TAIL = re.compile(rb',"sha256":"([0-9a-f]{64})"\}')
_TAIL_LENGTH: Final = len(b',"sha256":""}') + 64
_KEYS: Final = ("number", "time", "by", "action", "object", "outcome", "why", "times", "prev", "sha256")


class Outcome(enum.StrEnum):
    """What became of an action."""

    ALLOWED = "allowed"
    DENIED = "denied"
    FAILED = "failed"


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is to be written.

    Attributes:
        action: what was asked: ``Admin.AbortJob``, ``POST /api/v1/promote``, ``start``.
        outcome: what became of it.
        by: who asked; None: the participant itself, or somebody who did not say who they are.
        object: what it was about, such as ``{"job": ..., "submitter": ..., "site": ...}``; at most 8 of them are kept.
        why: the rule, the reason or the error.
        time: ISO 8601 UTC; empty: when it is written.
        times: how often the same was asked in a row.
    """

    action: str
    outcome: Outcome
    by: Principal | None = None
    object: Mapping[str, object] = dataclasses.field(default_factory=dict)
    why: str = ""
    time: str = ""
    times: int = 1


@dataclasses.dataclass(frozen=True)
class Line:
    """A line as it stands in the file: ``raw`` without its end, ``body`` what it says."""

    number: int
    digest: str
    raw: bytes
    body: Mapping[str, Any]


def _clip(value: object, limit: int) -> str:
    """Return text that a line can hold: at most ``limit`` bytes as JSON, Unicode that every reader can write.

    No character of it gives a terminal an order.
    """
    text = one_line(str(value)[:limit]).encode("utf-8", "replace").decode()
    while len(json.dumps(text)) - 2 > limit:
        text = text[: -max(1, (len(json.dumps(text)) - 2 - limit) // 12)]
    return text


def _key(key: object) -> str:
    """Return a key of an object; none of them may look like the end of a line, so that no piece of a line does."""
    text = _clip(key, _MAX_KEY)
    return "digest" if text == "sha256" else text


def encode(entry: Entry, number: int, prev: str, time: str) -> Line:
    """Return the line for an entry: one line, within :data:`MAX_LINE`, whatever the entry holds."""
    by = entry.by
    who = {name: _clip(getattr(by, name), _MAX_VALUE) for name in ("role", "name", "org", "serial")} if by else None
    items = list(entry.object.items())[:_MAX_ITEMS]
    body: dict[str, Any] = {
        "number": number,
        "time": _clip(entry.time or time, _MAX_KEY),
        "by": who,
        "action": _clip(entry.action, _MAX_VALUE),
        "object": {_key(key): _clip(value, _MAX_SITES if key == "site" else _MAX_VALUE) for key, value in items},
        "outcome": str(entry.outcome),
        "why": _clip(entry.why, _MAX_WHY),
        **({"times": entry.times} if entry.times > 1 else {}),
        "prev": prev,
    }
    plain = json.dumps(body, separators=(",", ":")).encode()
    digest = hashlib.sha256(plain).hexdigest()
    raw = plain[:-1] + b',"sha256":"%s"}' % digest.encode()
    return Line(number, digest, raw, {**body, "sha256": digest})


def parse_line(raw: bytes) -> Line | str:
    """Return the line that these bytes (without their end) are, or say what is wrong with them."""
    tail = _TAIL.fullmatch(raw, max(0, len(raw) - _TAIL_LENGTH))
    if tail is None or len(raw) >= MAX_LINE:
        return NO_LINE
    plain = raw[:-_TAIL_LENGTH] + b"}"
    digest = tail[1].decode()
    if hashlib.sha256(plain).hexdigest() != digest:
        return "was changed: its sha256 is another"
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return "is not JSON"
    if not isinstance(body, dict) or {*body} | {"times"} != {*_KEYS}:
        return "does not have the keys of a line"
    number = body["number"]
    whole = isinstance(number, int) and not isinstance(number, bool) and number > 0
    if not whole or not isinstance(body["prev"], str) or not isinstance(body["object"], dict):
        return "does not have the values of a line"
    return Line(number, digest, raw, body)


def torn_entry(size: int, sha256: str) -> Entry:
    """Return the entry that notes what was left unfinished, its line end included."""
    why = "a writer was killed, or had no room, before it had finished a line"
    return Entry(TORN, Outcome.FAILED, object={"bytes": size, "digest": sha256}, why=why)


def unsure_entry(first: int, last: int) -> Entry:
    """Return the entry that notes lines that were written, but which the disk did not confirm."""
    why = "the disk did not confirm that it keeps these lines"
    return Entry("audit.not_synced", Outcome.FAILED, object={"first": first, "last": last}, why=why)


def lost_entry(action: str, count: int) -> Entry:
    """Return the entry that says how many lines were not written, or not handed on."""
    return Entry(action, Outcome.FAILED, object={"lines": count})


def missing_entry(known: tuple[int, str], found: int, why: str) -> Entry:
    """Return the entry that says that lines are gone.

    Args:
        known: number and digest of the last line that was written.
        found: number of the last line that is there.
        why: what was done to the file.
    """
    told = {"written": known[0], "digest": known[1], "found": found}
    return Entry(MISSING, Outcome.FAILED, object=told, why=why)


def continued_entry(number: int, digest: str) -> Entry:
    """Return the entry that a file begins with, which goes on after the line with this number and digest."""
    why = "the lines before are in files that were set aside"
    return Entry(CONTINUED, Outcome.ALLOWED, object={"after": number, "digest": digest}, why=why)


@dataclasses.dataclass
class Report:
    """What an examination found.

    Attributes:
        lines: how many lines fit.
        last: number and sha256 of the last one that fits.
        first: number of the first line; above 1 where the files before are not at hand.
        file: the name of the file that was read last, where there are several.
        problem: the first line that does not fit, by its place in the file, and why; None: all fit.
        torn: places in the file where a killed writer left something unfinished, and noted it when it came back.
        tail: bytes at the end that are no whole line yet; the next start notes them.
        missing: numbers of the lines that say that lines which were written are gone.
        lost: how many lines could not be written, as the file says itself.
    """

    lines: int = 0
    last: tuple[int, str] = START
    problem: str | None = None
    torn: list[int] = dataclasses.field(default_factory=list)
    tail: int = 0
    first: int = 1
    file: str = ""
    missing: list[int] = dataclasses.field(default_factory=list)
    lost: int = 0
    _left: hashlib._Hash | None = None
    _left_at: int = 0
    _left_ended: bool = False

    @property
    def sound(self) -> bool:
        """Whether every line fits."""
        return self.problem is None

    def take(self, place: int, raw: bytes) -> Line | None:
        """Take the next line of the file with its end; return it if it fits."""
        line = parse_line(raw.removesuffix(b"\n"))
        if line == NO_LINE:
            self._leave(place, raw)
        elif isinstance(line, str):
            self.problem = f"line {place} {line}"
        elif self._left is not None and not self._noted(line):
            self.problem = f"line {self._left_at} {NO_LINE}"
        elif (wrong := self._wrong(line)) is not None:
            self.problem = f"line {place} {wrong}"
        else:
            self.lines, self.last = self.lines + 1, (line.number, line.digest)
            if line.body["action"] == MISSING:
                self.missing.append(line.number)
            elif line.body["action"] == LOST and str(line.body["object"].get("lines")).isdecimal():
                self.lost += int(line.body["object"]["lines"])
            return line
        return None

    def end(self) -> Report:
        """Take note that the file ends here."""
        if self._left is not None and self._left_ended:
            self.problem = f"line {self._left_at} {NO_LINE}"
        return self

    def _leave(self, place: int, raw: bytes) -> None:
        """Take bytes that are no line: the line behind them has to account for them."""
        if self._left is None:
            self._left, self._left_at = hashlib.sha256(), place
        self._left.update(raw)
        self.tail += len(raw)
        self._left_ended = raw.endswith(b"\n")

    def _noted(self, line: Line) -> bool:
        """Tell whether this line accounts for the bytes before it."""
        assert self._left is not None
        noted = torn_entry(self.tail, self._left.hexdigest())
        if line.body["action"] != TORN or line.body["object"] != {key: str(one) for key, one in noted.object.items()}:
            return False
        self.torn.append(self._left_at)
        self._left, self.tail = None, 0
        return True

    def _wrong(self, line: Line) -> str | None:
        number, digest = self.last
        if self.last == START and line.body["action"] in (CONTINUED, MISSING):
            self.first = line.number
            return None
        if line.body["action"] == MISSING and line.number > number + 1:
            return None  # it says itself that there is a hole
        if line.number != number + 1:
            missing = ": a file before it is missing" if line.body["action"] == CONTINUED else ""
            return f"has number {line.number}, and {number + 1} is due{missing}"
        return None if line.body["prev"] == digest else f"(number {line.number}) does not follow the line before it"


def read_lines(file: BinaryIO, report: Report) -> Iterator[Line]:
    """Yield the lines that fit, up to the first that does not; ``report`` tells how it went."""
    place = 0
    while raw := file.readline(MAX_LINE):
        place += 1
        line = report.take(place, raw)
        if line is not None:
            yield line
        if report.problem is not None:
            return
    report.end()


def examine(file: BinaryIO) -> Report:
    """Read a whole audit file from its beginning and say whether every line fits."""
    report = Report()
    for _ in read_lines(file, report):
        pass
    return report
