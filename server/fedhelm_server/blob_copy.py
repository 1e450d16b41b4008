"""Copying a blob out of the store, a block at a time."""

from __future__ import annotations

from collections.abc import Callable

from fedhelm.persist.blobs import BlobReader

__all__ = ["copy_blob"]

BLOCK = 1024 * 1024


def copy_blob(reader: BlobReader, write: Callable[[memoryview], object]) -> None:
    """Hand every byte of a blob, verified, to ``write``; at most one block is in memory."""
    buffer = memoryview(bytearray(BLOCK))
    for offset in range(0, reader.size, BLOCK):
        view = buffer[: min(BLOCK, reader.size - offset)]
        reader.read_into(offset, view)
        write(view)
