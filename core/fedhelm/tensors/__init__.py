"""Named arrays in the safetensors layout: codec, numpy and torch bridges. Imports numpy, and torch only on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedhelm.tensors.arrays import Arrays, arrays_from
from fedhelm.tensors.bits import Bits
from fedhelm.tensors.codec import encode, header_of, read_bits, read_file, read_header, write_file
from fedhelm.tensors.header import Entry, Header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

__all__ = [
    "Arrays",
    "Bits",
    "Entry",
    "Header",
    "arrays_from",
    "encode",
    "from_torch",
    "header_of",
    "read_bits",
    "read_file",
    "read_header",
    "to_torch",
    "write_file",
]


def from_torch(state: Mapping[str, Any]) -> dict[str, Bits]:
    """Return the bits of a torch state dictionary; as `arrays_from`."""
    return arrays_from(state)


def to_torch(path: Path) -> dict[str, torch.Tensor]:
    """Read a file as torch tensors; as `Arrays.torch`."""
    return Arrays(path).torch()
