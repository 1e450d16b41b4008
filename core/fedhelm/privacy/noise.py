"""Gaussian noise of a cryptographically secure generator.

A draw is the sum of four independent normal draws (Box and Muller, 1958), divided by two: its low bits do not betray
the draws (Holohan and Braghin, "Secure Random Sampling in Differential Privacy", 2021), as those of a single one do
(Mironov, 2012, for Laplace noise; Jin et al., 2022, for Gaussian noise).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["BYTES_EACH", "Random", "gaussian"]

Random = Callable[[int], bytes]
"""Returns so many random bytes; ``os.urandom`` in all but tests."""

BYTES_EACH: Final = 32
"""Random bytes that one draw takes."""


def gaussian(count: int, random: Random = os.urandom) -> npt.NDArray[np.float64]:
    """Return ``count`` draws from the normal distribution of mean 0 and standard deviation 1.

    Uniform numbers are of 52 bits and never 0, so no draw is beyond 12.2. Of the normal distribution's, one in
    10**33 is.
    """
    raw = np.frombuffer(random(BYTES_EACH * count), "<u8").reshape(4, count)
    uniform = ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    total = np.zeros(count)
    for length, angle in ((uniform[0], uniform[1]), (uniform[2], uniform[3])):
        turn = angle * (2 * np.pi)
        total += np.sqrt(-2.0 * np.log(length)) * (np.cos(turn) + np.sin(turn))
    return total / 2.0
