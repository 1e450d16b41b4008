"""Hostile inputs: what hypothesis draws, and good inputs with something changed. The same seed gives the same inputs."""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tests.hostile.decoder import Decoder

__all__ = ["drawn", "inputs"]

NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**16, 10**400, 1e308,
    -0.0, 0.5, 1e-320, float("nan"), float("inf"), float("-inf"), True, False, None,
)  # fmt: skip
TEXTS: tuple[str, ...] = (
    "", " ", ".", "..", "../..", "../../../../etc/passwd", "/etc/passwd", "/", "//", "a/../b", "~", "C:\\x", "\\\\h\\s",
    "\0", "a\0b", "\n", "\r\n", "\x1b[2J", "\u202e", "\ufeff", "\ud800", "é", "é", "\ufb01", "İ", "ß", "\U0001d7d9", "\u0663", "²",
    "CON", "nul", "-rf", "--help", "%s%n", "{0.__class__}", "${PATH}", "$(id)", "`id`", "'; drop table jobs; --",
    "__proto__", "__class__", "__metadata__", "<<", "*a", "&a", "!!python/object/apply:os.system [id]", "nan", "inf",
    "1e999", "0x" + "f" * 4000, "9" * 5000, "a" * 300, "a" * 5000, "a." * 200, "-" * 64, "a@" * 40, "0" * 64, "f" * 64,
    "jobs/abcdefghijkl/0-1/sites", "abcdefghijkl", "fedhelm://poc/server/server1", "2026-01-01T00:00:00.000Z",
    "9999-99-99T99:99:99.999Z", "@ALL", "server1", "site-1", "postgresql://u:p@h/d", "://", "http://[::1", "\t",
)  # fmt: skip
SNIPPETS: tuple[bytes, ...] = (
    b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\x80", b"\x80" * 10, b"\xff" * 8,
    b"\x7f" * 4, b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"- ", b"0x" + b"f" * 5000, b"{}", b"[]", b"null", b"NaN", b"Infinity",
    b"-", b"1e999", b"9" * 5000, b"[" * 2000, b'{"a":' * 2000,
    b"[" * 100_000, b'"\\ud800"', b"\\u0000", b"!!python/name:os.system ",
    b"&a [*a, *a]", b"<<: *a", b"%YAML 9.9\n", b"---\n", b"? ", b"|\n", b"\x80\x04cos\nsystem\n(S'id'\ntR.",
    b"ustar\x0000", b"ustar  \0", b"GNU.sparse.size=99999999999\n", b"30 path=../../../../tmp/evil\n",
    b"20 size=-1\n", b"0" * 11 + b"\0", b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", b" " * 512, b"\0" * 1024,
    b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n", b"-----BEGIN PRIVATE KEY-----\n", b"\x30\x80",
    b"\x30\x84\xff\xff\xff\xff", b"\x06\x03\x55\x1d\x11", b"=", b"A" * 64, b"\xff\xff\xff\xff\x0f", b"\x12\xff\xff\xff\xff\x07",
)  # fmt: skip
VALUE = re.compile(rb"(?<=: )[^,}\]\n]+")
"""A value of JSON or YAML, more or less."""


def _words(decoders: Sequence[Decoder]) -> list[str]:
    """What good inputs say: keys and texts of their JSON."""
    found: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            found.update(value)
            for one in value.values():
                look(one)
        elif isinstance(value, list):
            for one in value:
                look(one)
        elif isinstance(value, str) and len(value) < 100:
            found.add(value)

    for decoder in decoders:
        for data in decoder.seeds:
            value = _parsed(data)
            if value is not None:
                look(value)
    return sorted(found)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _strategy(words: list[str]) -> st.SearchStrategy[bytes]:
    text = st.sampled_from([*words, *TEXTS]) | st.text(max_size=30)
    leaf = text | st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NUMBERS)
    deep = st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=6), max_leaves=12
    )
    as_json = deep.map(_dumped)
    characters = st.text(string.printable, max_size=60).map(str.encode)
    return as_json | as_json | st.binary(max_size=200) | text.map(_encoded) | characters


def _dumped(value: Any) -> bytes:
    return _encoded(json.dumps(value, ensure_ascii=False))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def drawn(decoders: Sequence[Decoder], count: int, seed: int) -> list[bytes]:
    """Return what hypothesis draws: JSON of the decoders' own words, texts, bytes."""
    found: list[bytes] = []

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_strategy(_words(decoders)))
    def draw(data: bytes) -> None:
        found.append(data)

    draw()
    return found


def inputs(decoder: Decoder, count: int, seed: int, pool: Sequence[bytes]) -> Iterator[bytes]:
    """Yield ``count`` inputs for one decoder: a fifth of them from ``pool``, the rest are good ones with changes."""
    chance = random.Random(f"{seed} {decoder.name}")
    for number in range(count):
        if number % 5 == 0 and pool:
            data = chance.choice(pool)
        else:
            data = chance.choice(decoder.seeds)
            if number % 2 and (value := _parsed(data)) is not None:
                data = _dumped(_changed(value, chance)).replace(b'"\\ue000"', b"[" * 3000)
            else:
                for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
                    data = _spoilt(data, chance, decoder.seeds)
        if decoder.repair is not None and number % 4:
            data = decoder.repair(data)
        yield data


def _spoilt(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """Return the bytes with one thing changed."""
    at = chance.randrange(len(data) + 1)
    to = min(len(data), at + chance.choice((1, 1, 2, 4, 8, 64, 512)))
    match chance.randrange(10):
        case 0 if at < len(data):
            return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
        case 1:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + data[to:]
        case 3:
            return data[:to] + data[at:]
        case 4:
            return data[:at] + chance.choice(SNIPPETS) + data[at:]
        case 5:
            return data[:at] + chance.choice(SNIPPETS) + data[to:]
        case 6:
            return data[:at]
        case 7:
            other = chance.choice(others)
            return data[:at] + other[chance.randrange(len(other) + 1) :]
        case 8:
            return data[:at] + chance.randbytes(to - at) + data[to:]
        case _:
            values = list(VALUE.finditer(data))
            if not values:
                return data + chance.choice(SNIPPETS)
            one = chance.choice(values)
            return data[: one.start()] + chance.choice(SNIPPETS) + data[one.end() :]


def _changed(value: Any, chance: random.Random) -> Any:
    """Return the JSON value with one or a few nodes replaced, dropped, doubled, renamed or buried."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        value = _one_changed(value, chance)
    return value


def _one_changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        changed = dict(value)
        match chance.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[chance.choice(TEXTS)] = changed.pop(key)
            case 2:
                changed[chance.choice(TEXTS)] = _odd(chance)
            case 3:
                changed[key] = changed[chance.choice(list(value))]
            case _:
                changed[key] = _one_changed(value[key], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        match chance.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[: at + 1] * chance.choice((2, 2, 50))
            case _:
                return [*value[:at], _one_changed(value[at], chance), *value[at + 1 :]]
    if isinstance(value, str) and value and chance.random() < 0.4:
        at = chance.randrange(len(value))
        return value[:at] + chance.choice(TEXTS) + value[at:]
    if isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.4:
        return value + chance.choice((-1, 1, 2**31, 2**53, 2**63))
    return _odd(chance)


def _odd(chance: random.Random) -> Any:
    match chance.randrange(6):
        case 0 | 1:
            return chance.choice(TEXTS)
        case 2 | 3:
            return chance.choice(NUMBERS)
        case 4:
            return chance.choice(([], {}, [[]], [None], {"": None}, [1, "2"], {"a": {"b": 1}}))
        case _:
            return "\ue000"  # becomes lists in lists in lists: json.dumps could not write them
