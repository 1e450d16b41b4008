"""The weighted average of many files of tensors, block by block: memory does not grow with sites or models.

The same contributions give the same bits, whatever the order of arrival, the size of a block, or the machine: sites
are summed in the order of their names, in float64, by elementwise multiply and add (no BLAS, nothing fused).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from fedhelm.errors import BadInput
from fedhelm.learning.fitness import misfits
from fedhelm.learning.refusals import Unfit, weight_problem
from fedhelm.learning.rounding import nearest, widen
from fedhelm.tensors.dtypes import DTYPES, item_size
from fedhelm.tensors.header import LENGTH_SIZE, Entry, Header, header_length, parse_header

__all__ = ["BLOCK_BYTES", "Source", "read_source_header", "weighted_average"]

BLOCK_BYTES: Final = 8 * 1024 * 1024


class Source(Protocol):
    """Bytes of a safetensors file that can be read anywhere: a blob, or a file."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read_into(self, offset: int, view: memoryview) -> object:
        """Fill all of ``view`` with the bytes from ``offset`` on; raises where it cannot. The result is not used."""
        ...


@dataclass(frozen=True)
class _Contribution:
    site: str
    weight: float
    source: Source
    data_start: int
    begins: Mapping[str, int]
    """Where each tensor begins in the data."""


def read_source_header(source: Source, what: str) -> tuple[Header, int]:
    """Return the header of a source, called ``what`` in errors, and where its data begin.

    Raises:
        BadInput: it is no safetensors file.
    """
    prefix = bytearray(min(LENGTH_SIZE, source.size))
    source.read_into(0, memoryview(prefix))
    length = header_length(bytes(prefix), source.size, what)
    text = bytearray(length)
    source.read_into(LENGTH_SIZE, memoryview(text))
    start = LENGTH_SIZE + length
    return parse_header(bytes(text), source.size - start, what), start


def _checked(
    sources: Sequence[tuple[str, float, Source]], model: Header | None, members: int | None
) -> tuple[Header, list[_Contribution], float]:
    ordered = sorted(sources, key=lambda one: one[0])
    if len({site for site, _, _ in ordered}) != len(ordered):
        raise BadInput("a site contributes twice to one round")
    unfit: dict[str, str] = {}
    headers: dict[str, Header] = {}
    starts: dict[str, int] = {}
    known: dict[Header, Header] = {}  # hundreds of sites have one header, and it may have thousands of tensors
    for site, weight, source in ordered:
        if (wrong := weight_problem(weight)) is not None:
            unfit[site] = wrong
            continue
        try:
            header, starts[site] = read_source_header(source, "it")
            headers[site] = known.setdefault(header, header)
        except BadInput as error:
            unfit[site] = f"cannot be read: {error.message}"
    unfit |= misfits(headers, model, members)
    if unfit:
        raise Unfit(unfit)
    total = sum(weight for _, weight, _ in ordered)
    if not total:
        names = ", ".join(site for site, _, _ in ordered) or "no site"
        raise BadInput(f"the weights of {names} add up to {total}: there is nothing to average")
    begins = {header: {entry.name: entry.begin for entry in header} for header in known}
    contributions = [
        _Contribution(site, weight, source, starts[site], begins[headers[site]]) for site, weight, source in ordered
    ]
    return _common_layout([*headers.values()]), contributions, total


def _common_layout(headers: Sequence[Header]) -> Header:
    """The layout that all have, or that of our own encoder."""
    first = headers[0]
    if all(header == first for header in headers):
        return first
    return Header.of((entry.name, entry.dtype, entry.shape) for entry in first)


class _Averager:
    """Buffers for one block, used again and again. Three of them, each of at most ``block_bytes``, plus masks."""

    def __init__(self, header: Header, contributions: list[_Contribution], total: float, block_bytes: int) -> None:
        self.header, self._contributions = header, contributions
        self._total = total
        self.block_elements = max(1, block_bytes // 8)  # the sums are float64
        self._raw = bytearray(self.block_elements * 8)
        self._sum = np.empty(self.block_elements, np.float64)

    def _read(self, one: _Contribution, entry: Entry, first: int, count: int) -> npt.NDArray[Any]:
        size = item_size(entry.dtype)
        view = memoryview(self._raw)[: count * size]
        one.source.read_into(one.data_start + one.begins[entry.name] + first * size, view)
        # any byte but 0 is true, which numpy's own bool would not survive
        dtype = np.dtype("u1") if entry.dtype == "BOOL" else DTYPES[entry.dtype]
        return np.frombuffer(view, dtype)

    def average(self, entry: Entry, first: int, count: int) -> npt.NDArray[Any]:
        """Return the average of ``count`` elements from ``first`` on, in the tensor's own type."""
        total = self._sum[:count]
        total.fill(0.0)
        # float64 does not hold the sum of equal 8-byte values to the last bit; where all agree there is no question
        exact = item_size(entry.dtype) == 8
        same: npt.NDArray[Any] | None = None
        kept: npt.NDArray[Any] | None = None
        for one in self._contributions:
            raw = self._read(one, entry, first, count)
            if exact and kept is None:
                kept, same = raw.copy(), np.ones(count, np.bool_)
            elif kept is not None and same is not None:
                same &= raw == kept
            part = widen(raw, entry.dtype)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found below
                np.multiply(part, one.weight, out=part)
                np.add(total, part, out=total)
        np.divide(total, self._total, out=total)
        if kept is not None and same is not None and entry.dtype == "F64":
            np.copyto(total, kept, where=same)
        if not np.isfinite(total).all():
            self._blame(entry, first, count)
        result = nearest(total, entry.dtype)
        return result if kept is None or same is None else np.where(same, kept, result)

    def _blame(self, entry: Entry, first: int, count: int) -> NoReturn:
        """Find everybody who spoils the average, at the cost of reading every contribution once more."""
        unfit: dict[str, str] = {}
        for one in self._contributions:
            if (wrong := self._spoils(one)) is not None:
                unfit[one.site] = wrong
        raise Unfit(unfit or self._largest(entry, first, count))

    def _spoils(self, one: _Contribution) -> str | None:
        for entry in self.header:
            for first in range(0, entry.elements, self.block_elements):
                count = min(self.block_elements, entry.elements - first)
                values = widen(self._read(one, entry, first, count), entry.dtype)
                with np.errstate(over="ignore", invalid="ignore"):
                    bad = np.flatnonzero(~np.isfinite(values * one.weight))
                if len(bad):
                    times = "" if not math.isfinite(values[bad[0]]) else f", and has weight {one.weight:g}"
                    return f"holds {values[bad[0]]} in tensor {entry.name!r} (element {first + int(bad[0])}){times}"
        return None

    def _largest(self, entry: Entry, first: int, count: int) -> dict[str, str]:
        """Each share is finite, and their sum is not: whoever gave the largest where it breaks is at fault."""
        total = self._sum[:count]
        at = int(np.flatnonzero(~np.isfinite(total))[0])
        shares = {
            one.site: float(widen(self._read(one, entry, first + at, 1), entry.dtype)[0]) * one.weight
            for one in self._contributions
        }
        site = max(sorted(shares), key=lambda name: abs(shares[name]))
        where = f"tensor {entry.name!r} (element {first + at})"
        return {site: f"gives {shares[site]:g} to {where}, with which the weighted sum is beyond float64"}


def weighted_average(
    sources: Sequence[tuple[str, float, Source]],
    sink: Callable[[memoryview], object],
    block_bytes: int = BLOCK_BYTES,
    *,
    model: Header | None = None,
    members: int | None = None,
) -> Header:
    """Write the average of ``(site, weight, file)`` to ``sink``, piece by piece, and return its header.

    Floats are ``sum(w * x) / sum(w)``, rounded to nearest even once, at the end; integers likewise (exact up to 2**53);
    a boolean is true where more than half of the weight says so. Where 8-byte values agree they are kept as they are.
    A NaN or an infinity in any contribution is refused: one site must not silently spoil the model of all.
    A call holds a few blocks of ``block_bytes``. ``sink`` has to use a piece before it returns.

    Args:
        sources: the contributions.
        sink: takes the pieces.
        block_bytes: size of a buffer.
        model: of the model that the round started from; None: there is none.
        members: how many sites the round was opened for (:func:`fedhelm.learning.fitness.misfits`).

    Raises:
        Unfit: contributions that are damaged, fit neither the model nor the others, have a weight that is no weight, or
            hold what is not finite; says whose they are. What ``sink`` got until then is worthless. Without them
            another call may succeed.
        Undecided: they do not fit one another, and nobody can tell whose fault it is.
        BadInput: nothing to average.
    """
    header, contributions, total = _checked(sources, model, members)
    averager = _Averager(header, contributions, total, block_bytes)
    sink(memoryview(header.encode()))
    for entry in header:
        for first in range(0, entry.elements, averager.block_elements):
            block = averager.average(entry, first, min(averager.block_elements, entry.elements - first))
            sink(block.view(np.uint8).data)
    return header
