"""From a file's elements to float64 and back, each rounded once, to nearest even."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedhelm.tensors.dtypes import BF16, DTYPES, float32_from_bf16

__all__ = ["nearest", "widen"]

# The largest float64 that an integer type of 8 bytes holds; the next one is 2**63, or 2**64.
_MOST: Final = {"I64": float(2**63 - 1024), "U64": float(2**64 - 2048)}


def widen(raw: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float64]:
    """Return a float64 copy of elements as they are in a file; booleans as 0 and 1."""
    if dtype == BF16:
        raw = float32_from_bf16(raw)
    elif dtype == "BOOL":
        raw = raw != 0
    wide: npt.NDArray[np.float64] = raw.astype(np.float64)
    return wide


def _nearest_bf16(values: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    # Through float32 "rounded to odd", which keeps a trace of what was cut, so that the second rounding is right
    # (Boldo and Melquiond, 2008); through the nearest float32 a tie could be made that was none.
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    inexact = single != values
    beyond = np.abs(single.astype(np.float64)) > np.abs(values)
    bits = np.where(inexact, (bits - beyond) | 1, bits).astype(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2")


def nearest(values: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[Any]:
    """Return finite values as elements of a file, rounded to nearest, ties to even; a boolean is more than one half.

    Values beyond an integer type are its limits; an average never is, but for rounding.
    """
    if dtype == BF16:
        return _nearest_bf16(values)
    if dtype == "BOOL":
        return values > 0.5
    target: np.dtype[Any] = DTYPES[dtype]
    if target.kind in "iu":
        limits = np.iinfo(target)
        whole = np.clip(np.rint(values), float(limits.min), _MOST.get(dtype, float(limits.max)))
        return whole.astype(target)
    return values.astype(target)
