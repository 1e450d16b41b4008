"""A contribution that is refused, and the bounds of a weight. Loads no numpy: servers and runners start with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from fedhelm.errors import BadInput

__all__ = ["MAX_WEIGHT", "Undecided", "Unfit", "weight_problem"]

MAX_WEIGHT: Final = 2.0**53
"""A weight is a number of examples: beyond this not even float64 counts them. Sums of such weights are finite."""

_MAX_REASON = 300
"""Characters; a reason may quote the name of a tensor, which a site chose."""


class Unfit(BadInput):
    """Contributions that cannot be averaged with the others.

    Attributes:
        reasons: site -> what is wrong with what it gave: what follows "the contribution of SITE".
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = {site: reasons[site][:_MAX_REASON] for site in sorted(reasons)}
        super().__init__("; ".join(f"the contribution of {site} {why}" for site, why in self.reasons.items()))


class Undecided(BadInput):
    """Contributions that do not fit one another, and nobody can tell yet whose fault it is: one more may."""


def weight_problem(weight: float) -> str | None:
    """Say what is wrong with a weight, None where nothing is."""
    if math.isfinite(weight) and 0 <= weight <= MAX_WEIGHT:
        return None
    return f"has weight {weight:g}, which is no number from 0 to {MAX_WEIGHT:.0f}"
