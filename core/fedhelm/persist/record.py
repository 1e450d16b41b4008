"""The record: what one slot of the log holds, its canonical form and its hash.

One slot is one line of canonical JSON (sorted keys, no spaces, UTF-8, no NaN) and a newline. ``sha256`` is over the
canonical JSON without that key; ``prev`` is the ``sha256`` of the slot before. A reader takes the newest version and
the one before, and refuses every other by its number.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

from fedhelm.errors import BadInput, Corrupt

__all__ = [
    "KINDS",
    "MAX_DEPTH",
    "MAX_RECORD_BYTES",
    "NO_RECORD",
    "READABLE_VERSIONS",
    "VERSION",
    "By",
    "Draft",
    "Record",
    "canonical",
    "decode",
    "encode",
    "seal",
]

VERSION = 2
# N and N-1.
READABLE_VERSIONS = frozenset({VERSION - 1, VERSION})
# Every kind, and the version that brought it.
KINDS: Mapping[str, int] = MappingProxyType(
    {
        "genesis": 1,
        "fence": 1,
        "handoff": 1,
        "job_submitted": 1,
        "job_state": 1,
        "site_failed": 1,
        "round_open": 1,
        "contribution": 1,
        "metrics": 1,
        "round_close": 1,
        "job_done": 1,
        "checkpoint": 2,
        "config": 2,
        "epoch_repair": 2,
        "admin_action": 2,
        "job_deleted": 2,
    }
)
MAX_RECORD_BYTES = 4 * 1024 * 1024
# Levels of objects and lists in a body. Bounded so that no writer can make a record that a reader with a deeper stack
# cannot parse.
MAX_DEPTH = 64
NO_RECORD = "0" * 64

_KEYS = frozenset({"v", "seq", "epoch", "by", "nonce", "prev", "kind", "body", "sha256"})
_HEX64 = re.compile(r"[0-9a-f]{64}")
_MAX_NUMBER = 10**16 - 1
_MAX_NAME = 256


@dataclass(frozen=True)
class By:
    """Who wrote a record: a participant, and which life of it."""

    name: str
    incarnation: str


@dataclass(frozen=True)
class Draft:
    """What a writer wants to append; the log adds slot, chain and nonce."""

    kind: str
    epoch: int
    by: By
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """One slot of the log.

    Attributes:
        seq: The slot's number, from 0.
        epoch: The writer's epoch; 0 for genesis.
        by: The writer.
        nonce: Random id of the append: the writer knows its own record by it when the store's answer was lost.
        prev: ``sha256`` of the slot before; 64 zeros for slot 0.
        kind: What the record says; ``docs/architecture.md`` lists the kinds with their bodies.
        body: JSON values only. Shared by everyone who holds the record: not to be changed.
        sha256: Over the canonical JSON of everything else.
        v: Version of the format.
    """

    seq: int
    epoch: int
    by: By
    nonce: str
    prev: str
    kind: str
    body: dict[str, Any]
    sha256: str
    v: int = VERSION


def canonical(value: Any) -> bytes:
    """Return the one JSON text of ``value``: sorted keys, no spaces, UTF-8.

    Raises:
        BadInput: it is no JSON value (NaN and infinities are none), or its text is not Unicode.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"not a JSON value: {error}") from error


def _plain(record: Record) -> bytes:
    """Return the canonical JSON without ``sha256``."""
    return canonical(
        {
            "v": record.v,
            "seq": record.seq,
            "epoch": record.epoch,
            "by": {"name": record.by.name, "incarnation": record.by.incarnation},
            "nonce": record.nonce,
            "prev": record.prev,
            "kind": record.kind,
            "body": record.body,
        }
    )


def _with_hash(plain: bytes, sha256: str, version: int) -> bytes:
    # "sha256" sorts just before "v", which is always the last key: no need to serialise the body twice.
    tail = b'"v":%d}' % version
    return plain[: -len(tail)] + b'"sha256":"%s",' % sha256.encode() + tail + b"\n"


def encode(record: Record) -> bytes:
    """Return the bytes of the slot.

    Raises:
        BadInput: the body holds something that is not JSON.
    """
    return _with_hash(_plain(record), record.sha256, record.v)


def seal(draft: Draft, *, seq: int, prev: str, nonce: str, version: int = VERSION) -> tuple[Record, bytes]:
    """Return the record of ``version`` that ``draft`` becomes at slot ``seq``, and its bytes.

    The record is the one every reader will decode from these bytes (tuples have become lists, and nothing is shared
    with the draft): what readers would refuse is never written.

    Raises:
        BadInput: it is not JSON, too large, too deep, of a kind that the version does not have, or a field does not
            have its form.
    """
    body = dict(draft.body)
    open_record = Record(seq, draft.epoch, draft.by, nonce, prev, draft.kind, body, sha256=NO_RECORD, v=version)
    plain = _plain(open_record)
    data = _with_hash(plain, hashlib.sha256(plain).hexdigest(), version)
    try:
        return _parse(data, seq), data
    except _MalformedError as error:
        raise BadInput(f"this {draft.kind!r} record cannot be written: {error}") from error


def decode(data: bytes, slot: int) -> Record:
    """Return the record in ``data``, which was read from ``slot``.

    Raises:
        Corrupt: any byte is not what a writer of a readable version wrote; the message names the slot.
    """
    try:
        return _parse(data, slot)
    except _MalformedError as error:
        raise Corrupt(f"slot {slot}: {error}") from error


class _MalformedError(ValueError):
    """Why these bytes are no record."""


def _parse(data: bytes, slot: int) -> Record:
    if len(data) > MAX_RECORD_BYTES:
        raise _MalformedError(f"larger than {MAX_RECORD_BYTES} bytes")
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _MalformedError(f"not JSON ({error})") from error
    record = _shape(value)
    try:
        plain = _plain(record)
    except BadInput as error:
        raise _MalformedError(error.message) from error
    if hashlib.sha256(plain).hexdigest() != record.sha256:
        raise _MalformedError("its hash is wrong")
    if _with_hash(plain, record.sha256, record.v) != data:
        raise _MalformedError("not in canonical form")
    if record.seq != slot:
        raise _MalformedError(f"holds record {record.seq}")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _shape(value: Any) -> Record:
    if not isinstance(value, dict):
        raise _MalformedError("not an object")
    version = value.get("v")
    if type(version) is not int or version not in READABLE_VERSIONS:
        known = ", ".join(str(one) for one in sorted(READABLE_VERSIONS))
        raise _MalformedError(f"record version {version!r:.40}; this program reads {known}")
    if value.keys() != _KEYS:
        raise _MalformedError(f"wrong keys: {sorted(value.keys() ^ _KEYS)!r:.200}")
    by, body = value["by"], value["body"]
    if not isinstance(by, dict) or by.keys() != {"name", "incarnation"}:
        raise _MalformedError("by is not {name, incarnation}")
    if not isinstance(body, dict):
        raise _MalformedError("body is not an object")
    _check_depth(body)
    kind = value["kind"]
    if not isinstance(kind, str) or KINDS.get(kind, VERSION + 1) > version:
        raise _MalformedError(f"a record of unknown kind {kind!r:.40} in version {version}")
    return Record(
        seq=_number(value, "seq"),
        epoch=_number(value, "epoch"),
        by=By(_name(by, "name"), _name(by, "incarnation")),
        nonce=_name(value, "nonce"),
        prev=_matching(value, "prev", _HEX64),
        kind=kind,
        body=body,
        sha256=_matching(value, "sha256", _HEX64),
        v=version,
    )


def _number(value: dict[str, Any], key: str) -> int:
    number = value[key]
    if type(number) is not int or not 0 <= number <= _MAX_NUMBER:  # True is an int to isinstance
        raise _MalformedError(f"{key} is not a number from 0 to {_MAX_NUMBER}")
    return number


def _name(value: dict[str, Any], key: str) -> str:
    name = value[key]
    if not isinstance(name, str) or not 1 <= len(name) <= _MAX_NAME:
        raise _MalformedError(f"{key} is not a text of 1 to {_MAX_NAME} characters")
    return name


def _matching(value: dict[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    text = value[key]
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise _MalformedError(f"{key} does not have its form")
    return text


def _check_depth(body: dict[str, Any]) -> None:
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            inner.extend(value.values() if isinstance(value, dict) else value)
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return
    raise _MalformedError(f"nested deeper than {MAX_DEPTH} levels")
