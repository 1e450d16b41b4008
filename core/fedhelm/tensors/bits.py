"""The bits of one tensor, and the way from users' arrays to them and back."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhelm.errors import BadInput
from fedhelm.tensors.dtypes import BF16, DTYPES, float32_from_bf16, name_of

__all__ = ["Bits", "bits_from", "check_name"]


@dataclass(frozen=True, eq=False)
class Bits:
    """A tensor as its file holds it: ``data`` is little endian, C-contiguous, uint16 for BF16."""

    dtype: str
    data: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.data.shape

    def view(self) -> memoryview:
        """Return its bytes without copying."""
        return self.data.reshape(-1).view(np.uint8).data

    def numpy(self) -> npt.NDArray[Any]:
        """Return it as numpy knows it: BF16 becomes float32 (exactly), the rest stays."""
        return float32_from_bf16(self.data) if self.dtype == BF16 else self.data


def check_name(name: object) -> str:
    """Return ``name`` if a tensor may be called that.

    Raises:
        BadInput: it is no text, has no UTF-8, or is the layout's own ``__metadata__``.
    """
    if not isinstance(name, str):
        raise BadInput(f"a tensor's name must be a text, not {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadInput(f"a tensor's name has no UTF-8: {name!r}") from None
    if name == "__metadata__":
        raise BadInput("no tensor may be called '__metadata__'")
    return name


def _from_numpy(name: str, value: npt.NDArray[Any]) -> Bits:
    dtype = name_of(value.dtype)
    if dtype is None:
        raise BadInput(f"tensor {name!r} has elements of type {value.dtype}; known are {', '.join(DTYPES)}")
    # ascontiguousarray makes one dimension out of none
    return Bits(dtype, np.ascontiguousarray(value, dtype=DTYPES[dtype]).reshape(value.shape))


def bits_from(arrays: object) -> dict[str, Bits]:
    """Return the bits of named numpy arrays, torch tensors, `Bits` or single numbers, mixed as you like.

    Nothing that is contiguous already is copied, so the arrays must not change while the bits are in use. Tensors that
    share storage are each written in full. torch is imported only where a torch tensor is given.

    Raises:
        BadInput: a name or a type that the safetensors layout does not have; the message names the tensor.
    """
    if not isinstance(arrays, Mapping):
        raise BadInput(f"a model is a dictionary of named arrays, not {type(arrays).__name__}")
    found: dict[str, Bits] = {}
    torch = sys.modules.get("torch")
    for key, value in arrays.items():
        name = check_name(key)
        if isinstance(value, Bits):
            found[name] = value
        elif torch is not None and isinstance(value, torch.Tensor):
            from fedhelm.tensors.torch_bridge import bits_of

            found[name] = bits_of(name, value)
        elif isinstance(value, np.ndarray | np.generic | bool | int | float):
            found[name] = _from_numpy(name, np.asarray(value))
        else:
            raise BadInput(f"tensor {name!r} is a {type(value).__name__}, not a numpy array or a torch tensor")
    return found
