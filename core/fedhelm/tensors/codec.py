"""Files and streams of named tensors in the safetensors layout: written as views, never joined into one buffer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fedhelm.errors import BadInput
from fedhelm.tensors.bits import Bits, bits_from
from fedhelm.tensors.dtypes import DTYPES
from fedhelm.tensors.header import LENGTH_SIZE, Entry, Header, header_length, parse_header

__all__ = ["encode", "header_of", "read_bits", "read_file", "read_header", "write_file"]


def header_of(bits: Mapping[str, Bits]) -> Header:
    """Return the header of these tensors; the same names, types and shapes give the same header."""
    return Header.of((name, one.dtype, one.shape) for name, one in bits.items())


def encode(arrays: Mapping[str, Any]) -> Iterator[memoryview]:
    """Yield the bytes of a file: the header, then each tensor's own memory, uncopied where it is contiguous.

    Raises:
        BadInput: as `fedhelm.tensors.bits.bits_from`; before anything is yielded.
    """
    bits = bits_from(arrays)
    header = header_of(bits)
    encoded = header.encode()

    def views() -> Iterator[memoryview]:
        yield memoryview(encoded)
        for entry in header:
            if entry.end > entry.begin:
                yield bits[entry.name].view()

    return views()


def write_file(path: Path, arrays: Mapping[str, Any], *, sync: bool = True) -> int:
    """Write named arrays (numpy or torch) to ``path`` and return its bytes.

    The file appears whole or not at all: it is written beside ``path`` and renamed. With ``sync`` the file and its
    folder are on the disk when this returns.

    Raises:
        BadInput: a name or type that the layout does not have; nothing is written.
        OSError: the disk refused; nothing is left behind.
    """
    views = encode(arrays)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    size = 0
    try:
        with temporary.open("wb") as out:
            for view in views:
                out.write(view)
                size += len(view)
            if sync:
                out.flush()
                os.fsync(out.fileno())
        temporary.replace(path)
    except BaseException:  # whatever ended it, Ctrl-C too, half a file must not stay
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return size


def _open_header(file: IO[bytes], what: str, size: int) -> Header:
    length = header_length(file.read(LENGTH_SIZE), size, what)
    text = file.read(length)
    if len(text) != length:
        raise BadInput(f"{what}: cut off in the header")
    return parse_header(text, size - LENGTH_SIZE - length, what)


def read_header(path: Path, what: str | None = None, offset: int = 0, size: int | None = None) -> Header:
    """Return the checked header of a file, or of ``size`` bytes from ``offset`` on in one; ``what`` is for errors.

    Raises:
        BadInput: it is no safetensors file, or one with types that Fedhelm does not carry.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(offset)
        whole = os.fstat(file.fileno()).st_size - offset
        return _open_header(file, what or str(path), whole if size is None else size)


def _load(file: IO[bytes], entry: Entry, what: str) -> Bits:
    # A type of its own for BOOL would take any byte for a truth value, and numpy does not: read numbers, then compare.
    dtype: np.dtype[Any] = np.dtype("u1") if entry.dtype == "BOOL" else DTYPES[entry.dtype]
    data: npt.NDArray[Any] = np.empty(entry.shape, dtype)
    view = data.reshape(-1).view(np.uint8).data
    at = 0
    while at < len(view):
        count = file.readinto(view[at:])  # type: ignore[attr-defined]  # IO lacks it, every binary file has it
        if not count:
            raise BadInput(f"{what}: cut off in tensor {entry.name!r}")
        at += count
    return Bits(entry.dtype, data != 0 if entry.dtype == "BOOL" else data)


def read_bits(path: Path) -> dict[str, Bits]:
    """Read a whole file; each tensor gets memory of its own. Sorted by name.

    Raises:
        BadInput: it is no safetensors file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header = _open_header(file, str(path), os.fstat(file.fileno()).st_size)
        found = {entry.name: _load(file, entry, str(path)) for entry in header}
    return dict(sorted(found.items()))


def read_file(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read a whole file as numpy arrays, sorted by name; BF16 becomes float32, exactly.

    Raises:
        BadInput: it is no safetensors file.
        OSError: it cannot be read.
    """
    return {name: bits.numpy() for name, bits in read_bits(path).items()}
