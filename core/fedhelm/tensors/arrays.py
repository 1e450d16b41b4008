"""Named arrays in a file, as a script sees them: ``task.model``."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from fedhelm.tensors.bits import bits_from
from fedhelm.tensors.codec import read_bits, read_file, read_header
from fedhelm.tensors.header import Header

if TYPE_CHECKING:
    import torch

__all__ = ["Arrays", "arrays_from"]

# Anything that `write_file` takes: numpy arrays, torch tensors or plain numbers by name.
arrays_from = bits_from


class Arrays:
    """A file of named arrays. Nothing is read before it is asked for; every call reads anew and shares nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Arrays({str(self.path)!r})"

    @cached_property
    def header(self) -> Header:
        """Names, types and shapes.

        Raises:
            BadInput: the file is no safetensors file.
        """
        return read_header(self.path)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, sorted."""
        return tuple(sorted(self.header.names))

    def numpy(self) -> dict[str, npt.NDArray[Any]]:
        """Return numpy arrays of the caller's own, sorted by name. BF16 becomes float32, exactly."""
        return read_file(self.path)

    def torch(self) -> dict[str, torch.Tensor]:
        """Return CPU tensors of the caller's own, sorted by name, BF16 included. Imports torch."""
        from fedhelm.tensors.torch_bridge import tensor_of

        return {name: tensor_of(bits) for name, bits in read_bits(self.path).items()}
