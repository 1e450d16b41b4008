"""What a script's numbers, metrics and images must be; every refusal is a sentence for the script's author."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any, SupportsFloat

from fedhelm.errors import BadInput
from fedhelm.local.script_protocol import MAX_METRIC_NAME, MAX_METRICS, is_int64

__all__ = ["metrics", "number", "png", "step", "weight"]


def number(value: object, what: str) -> float:
    """Return ``value`` as a float: Python's, numpy's and torch's single numbers are taken.

    Raises:
        BadInput: it is none.
    """
    if isinstance(value, str | bytes | bool) or not isinstance(value, SupportsFloat):
        raise BadInput(f"{what} is {value!r}, it must be a number")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise BadInput(f"{what} is no single number: {error}") from error


def weight(value: object) -> float:
    """Return a weight: a positive, finite number.

    Raises:
        BadInput: it is none.
    """
    found = number(value, "weight")
    if not math.isfinite(found) or found <= 0:
        raise BadInput(f"weight is {found}, it must be a positive number", hint="the number of training samples")
    return found


def step(value: object) -> int | None:
    """Return a step: a whole number of 64 bits, or None.

    Raises:
        BadInput: it is neither.
    """
    if value is None:
        return None
    found = number(value, "step")
    if not found.is_integer() or not is_int64(int(found)):
        raise BadInput(f"step is {value!r:.80}, it must be a whole number of 64 bits")
    return int(found)


def metrics(values: Mapping[str, SupportsFloat] | None) -> dict[str, float]:
    """Return metrics: names and finite numbers.

    Raises:
        BadInput: something else; the message names the metric.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise BadInput(f"metrics is {values!r}, it must be a dictionary of names and numbers")
    if len(values) > MAX_METRICS:
        raise BadInput(f"{len(values)} metrics are more than {MAX_METRICS}", hint="site.log takes any number of values")
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if not isinstance(name, str) or not 0 < len(name) <= MAX_METRIC_NAME:
            raise BadInput(f"metrics: {name!r:.80} is not a name of at most {MAX_METRIC_NAME} characters")
        numbers[name] = number(value, f"the metric {name!r}")
        if not math.isfinite(numbers[name]):
            raise BadInput(f"the metric {name!r} is {numbers[name]}, it must be finite")
    return numbers


def png(image: Any, dataformats: str) -> bytes:
    """Return a PNG of a numpy array or torch tensor: floats from 0 to 1, or bytes; 1, 3 or 4 channels.

    Raises:
        BadInput: another shape.
    """
    import numpy as np

    pixels = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if sorted(dataformats) not in (sorted("CHW"), sorted("HW")) or pixels.ndim != len(dataformats):
        raise BadInput(f"an image of shape {pixels.shape} is not {dataformats}")
    pixels = pixels.transpose([dataformats.index(axis) for axis in "HWC" if axis in dataformats])
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    height, width, channels = pixels.shape
    if channels not in (1, 3, 4) or not height or not width:
        raise BadInput(f"an image has 1, 3 or 4 channels, not {channels}, and at least one pixel")
    if pixels.dtype != np.uint8:
        pixels = (np.nan_to_num(np.clip(pixels.astype(np.float64), 0.0, 1.0)) * 255.0).round().astype(np.uint8)
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), np.ascontiguousarray(pixels).reshape(height, width * channels)], axis=1
    )
    color = {1: 0, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6))
        + chunk(b"IEND", b"")
    )
