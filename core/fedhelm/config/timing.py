"""The times of the lease protocol and the inequalities that make them safe.

Safety never depends on these numbers (the log's exclusive create gives it); liveness and the promise to operators do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fedhelm.errors import BadInput

__all__ = ["PROFILES", "RHO", "Timing"]

RHO = 1e-3
"""The largest relative drift of one boot-time clock that the protocol allows for."""

_SLACK = 1e-9  # 0.25 + 0.25 must not fail by a rounding error
_LONGEST = 1e6


@dataclasses.dataclass(frozen=True)
class Timing:
    """One profile. All values are seconds.

    Attributes:
        name: The profile's name, for messages.
        lease: T, how long a lease lives without a renewal.
        renew: R, the holder renews this often; a standby beats this often.
        request: Q, the deadline of one request to the overseer.
        margin: M, how much earlier than the overseer the holder counts its lease as over.
        commit_alarm: C, an append that takes longer raises an alarm.
        observe: P, the overseer looks at the lease row this often.
        promote: S, what reading to the end, the fence and opening for service may take.
        retry: B, a site or a console asks again after this long.
        promise: The longest fail-over that operators are told of.
    """

    name: str
    lease: float
    renew: float
    request: float
    margin: float
    commit_alarm: float
    observe: float
    promote: float
    retry: float
    promise: float

    @property
    def holder_lease(self) -> float:
        """How long after *sending* a renewal the holder may count on it: ``T(1 - rho) - M``."""
        return self.lease * (1 - RHO) - self.margin

    @property
    def failover(self) -> float:
        """F, the longest fail-over that follows from the other times: ``T + 3P + Q + max(S, C) + B``."""
        return self.lease + 3 * self.observe + self.request + max(self.promote, self.commit_alarm) + self.retry

    def check(self, *, stop_when_unleased: bool = False) -> None:
        """Refuse times that cannot keep the promise.

        Args:
            stop_when_unleased: the primary's policy is ``stop``: it kills its child at ``deadline + M/2``.

        Raises:
            BadInput: names the value that is no positive number, or the inequality that does not hold.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "name" and not (math.isfinite(value) and value > 0):
                raise BadInput(f"timing {self.name}: {field.name} is {value}, it must be a positive number of seconds")
        rules = [
            ("(a) R + 2Q <= T(1-rho) - M", self.renew + 2 * self.request, self.holder_lease),
            ("(b) C <= M", self.commit_alarm, self.margin),
            ("(c) P <= R/2", self.observe, self.renew / 2),
            ("(d) 4R + M <= T", 4 * self.renew + self.margin, self.lease),
            ("(e) T + 3P + Q + max(S, C) + B <= promise", self.failover, self.promise),
        ]
        if stop_when_unleased:
            rules.append(("(f) deadline + M/2 <= T, policy stop", self.holder_lease + self.margin / 2, self.lease))
        for rule, left, right in rules:
            if left > right + _SLACK:
                raise BadInput(f"timing {self.name}: {rule} does not hold: {left:g} > {right:g}")

    def to_json(self) -> dict[str, Any]:
        """Return the values as a JSON object; :meth:`from_json` is the way back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Timing:
        """Build from a JSON object and :meth:`check` it.

        Raises:
            BadInput: not an object, a key is missing, unknown or not a number, or an inequality does not hold.
        """
        if not isinstance(data, Mapping):
            raise BadInput("timing: an object with the profile's values is needed")
        names = [field.name for field in dataclasses.fields(cls)]
        if set(data) != set(names):
            wrong = sorted(set(names) ^ set(map(str, data)))
            raise BadInput(f"timing: missing or unknown: {', '.join(wrong)}")
        for name in names[1:]:
            if isinstance(data[name], bool) or not isinstance(data[name], int | float):
                raise BadInput(f"timing: {name} is {data[name]!r}, it must be a number of seconds")
            if not abs(data[name]) <= _LONGEST:  # NaN too; an int may be beyond any float
                raise BadInput(f"timing: {name} is no number of seconds up to {_LONGEST:g}")
        timing = cls(str(data["name"]), *(float(data[name]) for name in names[1:]))
        timing.check()
        return timing


def _profile(name: str, values: str) -> Timing:
    return Timing(name, *map(float, values.split()))


PROFILES: Mapping[str, Timing] = MappingProxyType(
    {
        #                            T    R    Q    M   C    P    S   B    promise
        "fast": _profile("fast", "   1.5 0.25 0.25 0.3 0.25 0.1  0.3 0.1  3"),
        "default": _profile("default", "3 0.5  0.5  0.5 0.4  0.25 0.3 0.25 5"),
        "wan": _profile("wan", "     15  2.5  2    2   1.5  1    1   1    25"),
    }
)
"""The profiles that a project may name. ``default`` is what a project gets that names none."""
