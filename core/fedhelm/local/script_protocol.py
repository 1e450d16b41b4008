"""What the user's script and the agent of its site say to each other, over frames on a Unix socket.

Script to agent: ``hello {token, pid}``, ``next {}``, ``result {key, file, weight, metrics}``, ``lines {lines}``.
Agent to script: ``welcome {site, job, name, members, options, workdir}``, ``task {...}``, ``end {status}``,
``accepted {key}``, ``rejected {key, reason}``, ``refused {reason}``. Models and results are files, never frames.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard

from fedhelm.errors import ProtocolError

__all__ = [
    "LINE_KINDS",
    "MAX_LINE",
    "MAX_METRICS",
    "MAX_METRIC_NAME",
    "SOCKET_ENV",
    "TOKEN_ENV",
    "Result",
    "TaskOrder",
    "Welcome",
    "check_line",
    "check_lines",
    "check_metrics",
    "is_int64",
    "json_length",
]

SOCKET_ENV = "FEDHELM_SOCKET"
"""Environment variable with the path of the agent's socket."""

TOKEN_ENV = "FEDHELM_TOKEN"  # noqa: S105 - the variable's name
"""Environment variable with the token of this job."""

MAX_METRICS = 1000
MAX_METRIC_NAME = 200
"""Bounds of a result's metrics: the primary takes no more."""

MAX_LINE = 900 * 1024
"""Largest value of one line (text, or an image as base64), characters of its JSON. A server takes 1 MiB at once."""

LINE_KINDS = ("scalar", "text", "image", "log")

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")


def _text(frame: Mapping[str, Any], key: str) -> str:
    value = frame.get(key)
    if not isinstance(value, str):
        raise ProtocolError(f"{frame.get('type')}: {key} is missing or not text")
    return value


def _count(frame: Mapping[str, Any], key: str) -> int:
    value = frame.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ProtocolError(f"{frame.get('type')}: {key} is missing or not a count")
    return value


@dataclass(frozen=True)
class Welcome:
    """What a script learns when it connects."""

    site: str
    job: str
    name: str
    members: tuple[str, ...]
    options: Mapping[str, Any]
    workdir: Path

    def fields(self) -> dict[str, Any]:
        """Return the frame's fields."""
        return {
            "site": self.site,
            "job": self.job,
            "name": self.name,
            "members": list(self.members),
            "options": dict(self.options),
            "workdir": str(self.workdir),
        }

    @classmethod
    def from_frame(cls, frame: Mapping[str, Any]) -> Welcome:
        """Parse a ``welcome``.

        Raises:
            ProtocolError: a field is missing or has the wrong type.
        """
        options, members = frame.get("options"), frame.get("members")
        if not isinstance(options, dict) or not isinstance(members, list):
            raise ProtocolError("welcome: options or members is missing")
        return cls(
            site=_text(frame, "site"),
            job=_text(frame, "job"),
            name=_text(frame, "name"),
            members=tuple(sorted(str(member) for member in members)),
            options=options,
            workdir=Path(_text(frame, "workdir")),
        )


@dataclass(frozen=True)
class TaskOrder:
    """One task as the agent hands it out. ``model`` is a file to read, ``result_dir`` a folder to write into."""

    key: str
    kind: str
    round: int
    rounds: int
    step: int
    sequence: int
    model: Path | None
    model_sha256: str
    result_dir: Path

    def fields(self) -> dict[str, Any]:
        """Return the frame's fields."""
        return {
            "key": self.key,
            "kind": self.kind,
            "round": self.round,
            "rounds": self.rounds,
            "step": self.step,
            "sequence": self.sequence,
            "model": None if self.model is None else str(self.model),
            "model_sha256": self.model_sha256,
            "result_dir": str(self.result_dir),
        }

    @classmethod
    def from_frame(cls, frame: Mapping[str, Any]) -> TaskOrder:
        """Parse a ``task``.

        Raises:
            ProtocolError: a field is missing or has the wrong type.
        """
        return cls(
            key=_text(frame, "key"),
            kind=_text(frame, "kind"),
            round=_count(frame, "round"),
            rounds=_count(frame, "rounds"),
            step=_count(frame, "step"),
            sequence=_count(frame, "sequence"),
            model=None if frame.get("model") is None else Path(_text(frame, "model")),
            model_sha256=_text(frame, "model_sha256"),
            result_dir=Path(_text(frame, "result_dir")),
        )


@dataclass(frozen=True)
class Result:
    """What a script submits. ``file`` is a bare name in the task's ``result_dir``, None without tensors."""

    key: str
    file: str | None
    weight: float
    metrics: Mapping[str, float]

    @classmethod
    def from_frame(cls, frame: Mapping[str, Any]) -> Result:
        """Parse and check a ``result``: it comes from user code.

        Raises:
            ProtocolError: says what is wrong, in words for the script's author.
        """
        file, weight = frame.get("file"), frame.get("weight")
        if file is not None and (not isinstance(file, str) or Path(file).name != file or file.startswith(".")):
            raise ProtocolError("result: file is not a plain name")
        if not _is_finite(weight) or weight <= 0:
            raise ProtocolError(f"result: weight is {weight!r:.80}, it must be a positive number")
        return cls(_text(frame, "key"), file, float(weight), check_metrics(frame.get("metrics")))


def _is_finite(value: object) -> TypeGuard[int | float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # JSON has whole numbers beyond any float; NaN is never below


def check_metrics(value: object) -> dict[str, float]:
    """Return metrics as a dictionary of finite numbers.

    Raises:
        ProtocolError: not a dictionary, a name that is no text, a value that is no finite number.
    """
    if not isinstance(value, dict):
        raise ProtocolError("metrics must be a dictionary of names and numbers")
    if len(value) > MAX_METRICS:
        raise ProtocolError(f"{len(value)} metrics are more than {MAX_METRICS}")
    for name, number in value.items():
        if not isinstance(name, str) or not name or len(name) > MAX_METRIC_NAME:
            raise ProtocolError(f"metrics: {name!r:.80} is not a name of at most {MAX_METRIC_NAME} characters")
        if not _is_finite(number):
            raise ProtocolError(f"metrics: {name} is {number!r:.80}, it must be a finite number")
    return {name: float(number) for name, number in value.items()}


def json_length(value: str) -> int:
    """Return how many characters a text has in JSON."""
    return len(json.dumps(value, ensure_ascii=False))


def is_int64(value: object) -> TypeGuard[int]:
    """Tell whether a value is a whole number of 64 bits: one without bounds can spell any text."""
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _is_moment(value: object) -> bool:
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value[:-1])
    except ValueError:
        return False
    return True


def _check_value(kind: object, value: object) -> None:
    if kind == "scalar":
        # JSON has no NaN: what is not finite travels as text that float() reads.
        if value not in ("nan", "inf", "-inf") and not isinstance(value, float) and not is_int64(value):
            raise ProtocolError(f"a scalar's value is {value!r:.80}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ProtocolError("a scalar that is not finite travels as text")
    elif not isinstance(value, str) or json_length(value) > MAX_LINE:
        raise ProtocolError(f"the value of a {kind} line is no text of at most {MAX_LINE} characters")


def check_line(line: object) -> dict[str, Any]:
    """Return a line ``{kind, tag, value, step, time}`` if it is one.

    ``value`` is a number, or ``"nan"``, ``"inf"``, ``"-inf"``, for a scalar; text for text and log; a PNG in base64 for
    an image. ``step`` is a whole number of 64 bits or None, ``time`` ISO 8601 UTC with milliseconds: whatever a site
    lets pass of a line by its kind and tag must not have room for other words.

    Raises:
        ProtocolError: it is not.
    """
    if not isinstance(line, dict) or set(line) != {"kind", "tag", "value", "step", "time"}:
        raise ProtocolError("a line has exactly kind, tag, value, step and time")
    kind, tag, step = line["kind"], line["tag"], line["step"]
    if kind not in LINE_KINDS:
        raise ProtocolError(f"a line of kind {kind!r:.80}")
    if not isinstance(tag, str) or len(tag) > 256:
        raise ProtocolError("a line's tag is no text of at most 256 characters")
    if not _is_moment(line["time"]):
        raise ProtocolError(f"a line's time is {line['time']!r:.80}, not one such as 2026-11-22T15:04:05.123Z")
    if step is not None and not is_int64(step):
        raise ProtocolError(f"a line's step is {step!r:.80}")
    _check_value(kind, line["value"])
    return line


def check_lines(lines: object) -> Sequence[dict[str, Any]]:
    """Return the lines of a ``lines`` frame.

    Raises:
        ProtocolError: one of them is malformed.
    """
    if not isinstance(lines, list):
        raise ProtocolError("lines: no list")
    return [check_line(line) for line in lines]
