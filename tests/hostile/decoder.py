"""One decoder of outside data, as the harness sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from fedhelm.errors import FedhelmError

Decode = Callable[[bytes], object]


@dataclass(frozen=True)
class Decoder:
    """What eats bytes.

    ``seeds`` are inputs that it takes. ``repair`` makes a changed input look whole again (its length, its hash, its
    signature), so that what lies behind that check is tried as well. ``refuses`` are the exceptions that may escape:
    those that its docstring names.
    """

    name: str
    decode: Decode
    seeds: tuple[bytes, ...]
    refuses: tuple[type[Exception], ...] = (FedhelmError,)
    repair: Callable[[bytes], bytes] | None = None


def as_json(take: Callable[[object], object]) -> Decode:
    """A decoder of parsed JSON; what is no JSON was refused by whoever parsed it."""

    def decode(data: bytes) -> object:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return take(value)

    return decode


def as_text(take: Callable[[str], object]) -> Decode:
    """A decoder of text. Halves of surrogate pairs come through: file names and command lines have them."""

    def decode(data: bytes) -> object:
        try:
            text = data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            text = data.decode("utf-8", "surrogateescape")
        return take(text)

    return decode


def as_utf8(take: Callable[[str], object]) -> Decode:
    """A decoder of text from a file, whose reader refused what is no UTF-8."""

    def decode(data: bytes) -> object:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return None
        return take(text)

    return decode


def dump(value: object) -> bytes:
    return json.dumps(value).encode()
