"""An update and the model it changes, as files that are read and written block by block: memory does not grow.

Every update that a filter touches is first copied to a file that the script cannot reach, in the one layout that its
model's names, types and shapes have: what was checked is what leaves, and neither names, layout, comments nor the
bytes of a truth value carry anything else out of the site.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from fedhelm.errors import BadInput, ProtocolError, Refused
from fedhelm.learning.aggregators import read_source_header
from fedhelm.learning.rounding import widen
from fedhelm.learning.sources import FileSource
from fedhelm.tensors.dtypes import DTYPES, item_size
from fedhelm.tensors.header import Entry, Header

__all__ = ["BLOCK_ELEMENTS", "FLOATS", "Change", "GoOn", "TensorFile", "Update", "check_plain", "copy_in"]

BLOCK_ELEMENTS: Final = 128 * 1024
"""Elements that are looked at together: a few MiB of memory, whatever the size of a tensor."""

FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""Types whose values filters can scale, blur and cut; all others are counted in whole steps."""

Raw = npt.NDArray[Any]
Change = Callable[[Entry, Raw, Raw], Raw]
"""From a tensor's entry, and a block of the update and of the model as in their files, to the block to write."""


GoOn = Callable[[], None]
"""Called before each block; raises to end the work."""


class TensorFile:
    """An open file of tensors, for reading blocks.

    Args:
        path: of the file.
        what: how messages call it.

    Raises:
        BadInput: it is no safetensors file.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._source = FileSource(path)
        try:
            self.header, self._start = read_source_header(self._source, what)
        except BaseException:
            self._source.close()
            raise
        self.entries = {entry.name: entry for entry in self.header}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()

    def read(self, name: str, first: int, count: int) -> Raw:
        """Return ``count`` elements of a tensor from ``first`` on; booleans as bytes that are 0 or 1, BF16 as bits.

        Raises:
            BadInput: the file ends before.
        """
        entry = self.entries[name]
        raw = np.empty(count, np.dtype("u1") if entry.dtype == "BOOL" else DTYPES[entry.dtype])
        self._source.read_into(self._start + entry.begin + first * item_size(entry.dtype), raw.view(np.uint8).data)
        return (raw != 0).view("u1") if entry.dtype == "BOOL" else raw


def _blocks(entry: Entry, go_on: GoOn) -> Iterator[tuple[int, int]]:
    for first in range(0, entry.elements, BLOCK_ELEMENTS):
        go_on()
        yield first, min(BLOCK_ELEMENTS, entry.elements - first)


class Update:
    """A copy of an update, and its model, open; both have the same names, types and shapes.

    Args:
        own: the copy.
        model: that of the round.
        held: see below; what earlier filters held.
        go_on: called for each block; it raises where the work is not wanted any more.

    Attributes:
        held: names of tensors that leave as the model has them: no filter looks at them any more.
    """

    def __init__(self, own: TensorFile, model: TensorFile, held: Iterable[str], go_on: GoOn) -> None:
        self._own, self._model, self._go_on = own, model, go_on
        self.held = set(held)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors, sorted."""
        return tuple(sorted(self._own.entries))

    @property
    def free(self) -> tuple[Entry, ...]:
        """The tensors that filters may still change, in the order of the file."""
        return tuple(entry for entry in self._own.header if entry.name not in self.held)

    def hold_integers(self) -> tuple[str, ...]:
        """Hold all tensors that are no floats; return their names, sorted."""
        found = sorted(entry.name for entry in self.free if entry.dtype not in FLOATS)
        self.held.update(found)
        return tuple(found)

    def changes(self, entry: Entry) -> Iterator[npt.NDArray[np.float64]]:
        """Yield what the update changes in a tensor, block by block, in float64.

        Raises:
            Refused: a change is not finite.
        """
        for first, count in _blocks(entry, self._go_on):
            own = widen(self._own.read(entry.name, first, count), entry.dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                own -= widen(self._model.read(entry.name, first, count), entry.dtype)
            if not np.isfinite(own).all():
                raise Refused(f"tensor {entry.name!r} holds a number that is not finite")
            yield own

    def rewrite(self, target: Path, change: Change) -> None:
        """Write the update with ``change`` applied to the tensors that are free, and the model's of those held.

        Raises:
            OSError: the disk refused.
        """
        with target.open("xb") as out:
            out.write(self._own.header.encode())
            for entry in self._own.header:
                for first, count in _blocks(entry, self._go_on):
                    model = self._model.read(entry.name, first, count)
                    if entry.name in self.held:
                        block = model
                    else:
                        block = change(entry, self._own.read(entry.name, first, count), model)
                    out.write(np.ascontiguousarray(block).view(np.uint8).data)


def copy_in(
    source: Path, target: Path, *, tensors: int | None, size: int | None, like: Path | None, go_on: GoOn
) -> None:
    """Copy a script's file to one that it cannot reach, in the one layout that its tensors have.

    Args:
        source: of user code, in a folder that this cannot reach. It may still write to the file while it is read.
        target: must not be there.
        tensors: the largest number of tensors that is taken.
        size: the largest number of bytes of elements that is taken.
        like: the round's model, whose names, types and shapes it must have.
        go_on: called for each block.

    Raises:
        Refused: too many tensors, too many bytes, or not those of the model; says nothing that the script chose.
        BadInput: it is no safetensors file.
        OSError: the disk refused.
    """
    try:
        own = TensorFile(source, "the update")
    except BadInput as error:
        raise Refused("the update is no safetensors file", hint=error.message) from None
    with own:
        if tensors is not None and len(own.entries) > tensors:
            raise Refused("the update has more tensors than may leave", hint=f"{len(own.entries)}, not {tensors}")
        if size is not None and own.header.data_size > size:
            raise Refused("the update has more bytes than may leave", hint=f"{own.header.data_size}, not {size}")
        if like is not None:
            with TensorFile(like, "the round's model") as model:
                _check_like(own.header, model.header)
        layout = Header.of((entry.name, entry.dtype, entry.shape) for entry in own.header)
        with target.open("xb") as out:
            out.write(layout.encode())
            for entry in layout:
                for first, count in _blocks(entry, go_on):
                    out.write(own.read(entry.name, first, count).view(np.uint8).data)


def _check_like(own: Header, model: Header) -> None:
    wrong = _laid_out(model).difference(_laid_out(own))
    if wrong is not None:
        raise Refused("the update does not have the names, types and shapes of the round's model", hint=wrong)


def _laid_out(header: Header) -> Header:
    return Header.of((entry.name, entry.dtype, entry.shape) for entry in header)


def check_plain(path: Path) -> None:
    """Refuse what is no plain file with one name; in a folder that the script cannot reach, it stays what it is.

    Raises:
        ProtocolError: it is none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ProtocolError(f"the result's file cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise ProtocolError("the result's file is not a plain file")
    finally:
        os.close(fd)
