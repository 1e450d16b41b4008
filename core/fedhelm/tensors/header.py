"""The header of a safetensors file: what is in it, and where. The parser trusts nothing.

Layout: 8 bytes of header length (little endian), the header (JSON, padded with spaces to a multiple of 8), the data.
https://github.com/huggingface/safetensors, section *Format*.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fedhelm.errors import BadInput
from fedhelm.tensors.dtypes import DTYPES, item_size

__all__ = ["LENGTH_SIZE", "MAX_HEADER", "Entry", "Header", "header_length", "parse_header"]

LENGTH_SIZE: Final = 8
MAX_HEADER: Final = 16 * 1024 * 1024
_MAX_DIMENSIONS: Final = 32
_MAX_BYTES: Final = 2**62


@dataclass(frozen=True)
class Entry:
    """One tensor: its name, type, shape, and place ``[begin, end)`` in the data part."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """How many elements it has; 1 for a tensor without dimensions."""
        return math.prod(self.shape)


def _place(entry: Entry) -> tuple[int, int, str]:
    return entry.begin, entry.end, entry.name  # several empty tensors may share a place


@dataclass(frozen=True)
class Header:
    """The tensors of a file in the order of their data. Two headers are equal when everything but comments is."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Header:
        """Lay out ``(name, dtype, shape)``: wide elements first, so that every tensor is aligned, then by name."""
        entries: list[Entry] = []
        at = 0
        for name, dtype, shape in sorted(tensors, key=lambda one: (-item_size(one[1]), one[0])):
            end = at + math.prod(shape) * item_size(dtype)
            entries.append(Entry(name, dtype, shape, at, end))
            at = end
        return cls(tuple(sorted(entries, key=_place)))

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the order of the data."""
        return tuple(entry.name for entry in self.entries)

    @property
    def data_size(self) -> int:
        """Bytes of the data part."""
        return self.entries[-1].end if self.entries else 0

    def encode(self) -> bytes:
        """Return the length and the padded header: everything before the data. Deterministic.

        Raises:
            BadInput: more than ``MAX_HEADER`` bytes.
        """
        table = {e.name: {"dtype": e.dtype, "shape": e.shape, "data_offsets": (e.begin, e.end)} for e in self.entries}
        text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        if len(text) > MAX_HEADER:
            raise BadInput(f"the header of {len(self.entries)} tensors has {len(text)} bytes, more than {MAX_HEADER}")
        return len(text).to_bytes(LENGTH_SIZE, "little") + text

    def difference(self, other: Header) -> str | None:
        """Say in which tensor ``other`` differs first, for people; None where they are equal."""
        mine = {entry.name: entry for entry in self.entries}
        theirs = {entry.name: entry for entry in other.entries}
        for name in sorted(mine.keys() | theirs.keys()):
            if name not in theirs:
                return f"tensor {name!r} is missing"
            if name not in mine:
                return f"tensor {name!r} is not expected"
            want, got = mine[name], theirs[name]
            if (want.dtype, want.shape) != (got.dtype, got.shape):
                return f"tensor {name!r} is {got.dtype} {list(got.shape)}, expected is {want.dtype} {list(want.shape)}"
            if want != got:
                return f"tensor {name!r} is at another place in the file"
        return None


def header_length(prefix: bytes, size: int, what: str) -> int:
    """Return the length of the header from the first bytes of a file of ``size`` bytes, called ``what`` in errors.

    Raises:
        BadInput: there is no room for it, or it is over ``MAX_HEADER``.
    """
    if size < LENGTH_SIZE or len(prefix) < LENGTH_SIZE:
        raise BadInput(f"{what}: {size} bytes are too few for a safetensors file")
    length = int.from_bytes(prefix[:LENGTH_SIZE], "little")
    if length > MAX_HEADER:
        raise BadInput(f"{what}: not a safetensors file (a header of {length} bytes; {MAX_HEADER} are allowed)")
    if LENGTH_SIZE + length > size:
        raise BadInput(f"{what}: cut off in the header ({size} bytes)")
    return length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise BadInput(f"{key[:100]!r} occurs twice")
        found[key] = value
    return found


def _no_constant(text: str) -> Any:
    raise BadInput(f"{text} is not a number")


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_BYTES:
        raise BadInput(f"{what} is not a whole number of 0 or more")
    return value


def _entry(name: str, value: Any) -> Entry:
    name.encode()  # a lone surrogate has no UTF-8: UnicodeEncodeError, a ValueError
    what = f"tensor {name[:100]!r}"
    if not isinstance(value, Mapping) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadInput(f"{what} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadInput(f"{what} has dtype {str(dtype)[:20]!r}; known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        raise BadInput(f"{what} has no shape of at most {_MAX_DIMENSIONS} dimensions")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise BadInput(f"{what} needs two data_offsets")
    dimensions = tuple(_whole(one, f"{what}: a dimension") for one in shape)
    begin, end = (_whole(one, f"{what}: an offset") for one in offsets)
    # numpy refuses a shape whose non-zero dimensions alone overflow, even where a zero makes it empty
    if math.prod(one for one in dimensions if one) * item_size(dtype) > _MAX_BYTES:
        raise BadInput(f"{what} has a shape beyond any memory")
    if end - begin != math.prod(dimensions) * item_size(dtype):
        raise BadInput(f"{what}: {dtype} {list(dimensions)} does not fill the bytes {begin} to {end}")
    return Entry(name, dtype, dimensions, begin, end)


def _parse(text: bytes, data_size: int) -> Header:
    if not text.startswith(b"{"):
        raise BadInput("the header is not a JSON object")
    table = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    comments = table.pop("__metadata__", {})
    if not isinstance(comments, dict) or not all(isinstance(one, str) for one in comments.values()):
        raise BadInput("__metadata__ must map names to texts")
    entries = sorted((_entry(*item) for item in table.items()), key=_place)
    at = 0
    for entry in entries:
        if entry.begin != at:
            raise BadInput(f"tensor {entry.name[:100]!r} begins at byte {entry.begin}, not at {at}")
        at = entry.end
    if at != data_size:
        raise BadInput(f"the tensors have {at} bytes, the file has {data_size}")
    return Header(tuple(entries))


def parse_header(text: bytes, data_size: int, what: str) -> Header:
    """Parse the JSON part of a header over ``data_size`` bytes of data, called ``what`` in errors.

    Every byte of the data must belong to exactly one tensor.

    Raises:
        BadInput: anything is wrong; the message names the tensor.
    """
    try:
        return _parse(text, data_size)
    except BadInput as wrong:
        raise BadInput(f"{what}: not a safetensors file: {wrong.message}") from None
    except (ValueError, RecursionError):  # JSON, UTF-8, a number of thousands of digits, lists in lists in lists
        raise BadInput(f"{what}: not a safetensors file: the header is not JSON") from None
