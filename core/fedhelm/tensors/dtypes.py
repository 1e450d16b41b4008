"""The element types of the safetensors layout that Fedhelm carries."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

__all__ = ["BF16", "DTYPES", "float32_from_bf16", "item_size", "name_of", "storage"]

BF16 = "BF16"

# Little endian, as the layout demands. BF16 has no numpy type: its bits travel as uint16.
DTYPES: Mapping[str, np.dtype[np.generic]] = MappingProxyType(
    {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        BF16: np.dtype("<u2"),
        "I64": np.dtype("<i8"),
        "I32": np.dtype("<i4"),
        "I16": np.dtype("<i2"),
        "I8": np.dtype("i1"),
        "U8": np.dtype("u1"),
        "U16": np.dtype("<u2"),
        "U32": np.dtype("<u4"),
        "U64": np.dtype("<u8"),
        "BOOL": np.dtype("?"),
    }
)

_NAMES = {dtype: name for name, dtype in DTYPES.items() if name != BF16}


def storage(name: str) -> np.dtype[np.generic]:
    """Return the numpy type that holds the bits of ``name``; KeyError for an unknown name."""
    return DTYPES[name]


def item_size(name: str) -> int:
    """Return the bytes of one element; KeyError for an unknown name."""
    return DTYPES[name].itemsize


def name_of(dtype: np.dtype[np.generic]) -> str | None:
    """Return the layout's name of a numpy type, whatever its byte order; None where it has none."""
    return _NAMES.get(dtype.newbyteorder("<"))


def float32_from_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return the float32 values, exactly, of bfloat16 ``bits``."""
    values: npt.NDArray[np.float32] = np.left_shift(bits.astype("<u4"), 16, dtype="<u4").view("<f4")
    return values
