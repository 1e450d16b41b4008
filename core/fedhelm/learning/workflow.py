"""What a workflow sees of its step, and what it may decide. Values only: no clock, no I/O.

A runner builds a ``StepView`` from the log, asks ``decide`` and carries the action out. The same view always gives
the same action, so a runner that starts again from the log goes on where the last one stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

__all__ = [
    "Action",
    "CloseRound",
    "ClosedView",
    "ContributionView",
    "Fail",
    "Finish",
    "Kind",
    "OpenRound",
    "RoundView",
    "StepView",
    "Wait",
    "Workflow",
    "best_round",
    "weighted_metrics",
]

Kind = Literal["train", "evaluate"]

_NONE_FAILED: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ContributionView:
    """One recorded contribution. ``weight`` is the site's number of examples, as its script gave it."""

    site: str
    weight: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RoundView:
    """The open round. ``members`` are the sites it was opened for; ``opened_for_s`` is how long it has been open."""

    step: int
    round: int
    kind: Kind
    members: tuple[str, ...]
    contributions: Mapping[str, ContributionView]
    opened_for_s: float


@dataclass(frozen=True)
class ClosedView:
    """A closed round and the weighted average of its metrics."""

    round: int
    kind: Kind
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class StepView:
    """One step of a job's workflow: closed rounds in the order of closing, the open one, sites and failures.

    ``members`` are the job's sites, fixed when it was dispatched; ``failed`` maps those that failed to the reason.
    """

    closed: tuple[ClosedView, ...]
    open: RoundView | None
    members: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=lambda: _NONE_FAILED)

    @property
    def living(self) -> tuple[str, ...]:
        """The members that have not failed, sorted: the sites a new round is opened for."""
        return tuple(sorted(site for site in self.members if site not in self.failed))


@dataclass(frozen=True)
class OpenRound:
    """Open this round for ``view.living``. ``deadline_s`` counts from the opening; None: no deadline."""

    round: int
    rounds: int
    kind: Kind
    deadline_s: float | None


@dataclass(frozen=True)
class CloseRound:
    """Close the open round with exactly these contributions, in canonical order (sorted by site)."""

    sites: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """Nothing to do until a contribution or a failure arrives, or ``wake_in_s`` seconds are over."""

    for_sites: tuple[str, ...]
    wake_in_s: float | None


@dataclass(frozen=True)
class Finish:
    """Every round of the step is closed."""


@dataclass(frozen=True)
class Fail:
    """The step cannot go on; ``reason`` is for people and names the site."""

    reason: str


Action = OpenRound | CloseRound | Wait | Finish | Fail


class Workflow(Protocol):
    """A pure policy over one step of a job."""

    @property
    def rounds(self) -> int:
        """How many training rounds the step has."""
        ...

    @property
    def best_metric(self) -> str | None:
        """The metric that chooses the best model; None: see `best_round`."""
        ...

    def decide(self, view: StepView) -> Action:
        """Return what to do now. The same view always gives the same action."""
        ...


def weighted_metrics(contributions: Iterable[ContributionView]) -> dict[str, float]:
    """Average each metric over the sites that reported it, weighted by their contribution's weight.

    Sums run sorted by site, so that the result does not depend on the order of arrival. Where all the weights are
    zero the plain mean is taken. A value that is not finite is left out, and so is a metric without any other.
    """
    ordered = sorted(contributions, key=lambda one: one.site)
    averages: dict[str, float] = {}
    for name in sorted({name for one in ordered for name in one.metrics}):
        rows = [(one.weight, one.metrics[name]) for one in ordered if math.isfinite(one.metrics.get(name, math.nan))]
        if not any(weight for weight, _ in rows):
            rows = [(1.0, value) for _, value in rows]
        total = sum(weight for weight, _ in rows)
        average = sum(weight * value for weight, value in rows) / total if rows else math.nan
        if math.isfinite(average):
            averages[name] = average
    return averages


def _lower_is_better(metric: str) -> bool:
    return metric == "loss" or metric.endswith(("_loss", "/loss"))


def best_round(closed: Sequence[ClosedView], best_metric: str | None = None) -> int | None:
    """Return the round whose global model is the best one; None before the first training round has closed.

    Evaluation rounds judge where there are any, else the metrics that came with the trained models. The metric is
    ``best_metric``, else ``accuracy`` where it was reported, else ``loss``. Higher is better, except for ``loss`` and
    names ending in ``_loss`` or ``/loss``. The earlier round wins a tie. Without any such metric it is the last round.
    """
    trained = [one.round for one in closed if one.kind == "train"]
    if not trained:
        return None
    judged = [one for one in closed if one.kind == "evaluate"] or list(closed)
    for metric in (best_metric,) if best_metric is not None else ("accuracy", "loss"):
        scores = [
            (one.metrics[metric], one.round) for one in judged if math.isfinite(one.metrics.get(metric, math.nan))
        ]
        if scores:
            sign = 1.0 if _lower_is_better(metric) else -1.0
            return min(scores, key=lambda score: (sign * score[0], score[1]))[1]
    return trained[-1]
