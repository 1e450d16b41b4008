"""Federated averaging: McMahan et al., 2017, algorithm 1, with every dispatched site in every round."""

from __future__ import annotations

from dataclasses import dataclass

from fedhelm.errors import BadInput
from fedhelm.learning.workflow import Action, CloseRound, Fail, Finish, Kind, OpenRound, RoundView, StepView, Wait

__all__ = ["FedAvg"]


@dataclass(frozen=True)
class FedAvg:
    """``rounds`` training rounds, each closed with the weighted average of its contributions.

    A round waits for all of its members. With ``min_responses`` it is content with that many: as soon as they are in,
    or, with ``deadline_s`` too, not before the deadline unless every living member has answered. A deadline that
    passes with fewer answers changes nothing: the round waits on, and says for whom.

    A site that fails is gone for the rest of the job. The step goes on without it where ``min_responses`` is set and
    enough living members are left; otherwise it fails and names the site. A failure after the last answer that was
    needed is of no consequence.

    ``evaluate``: after each training round the new global model goes to the sites for metrics.
    """

    rounds: int
    min_responses: int | None = None
    deadline_s: float | None = None
    evaluate: bool = False
    best_metric: str | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise BadInput(f"rounds must be at least 1, not {self.rounds}")
        if self.min_responses is not None and self.min_responses < 1:
            raise BadInput(f"min_responses must be at least 1, not {self.min_responses}")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise BadInput(f"deadline must be more than 0 s, not {self.deadline_s}")

    def decide(self, view: StepView) -> Action:
        """Return what to do now; pure."""
        if view.open is not None:
            return self._in_round(view.open, view)
        upcoming = self._next_round(view)
        if upcoming is None:
            return Finish()
        if len(view.living) < self._needed(view.members):
            return self._give_up(view, len(view.living))
        number, kind = upcoming
        return OpenRound(number, self.rounds, kind, self.deadline_s)

    def _needed(self, members: tuple[str, ...]) -> int:
        return len(members) if self.min_responses is None else self.min_responses

    def _next_round(self, view: StepView) -> tuple[int, Kind] | None:
        trained = max((one.round for one in view.closed if one.kind == "train"), default=0)
        judged = max((one.round for one in view.closed if one.kind == "evaluate"), default=0)
        if self.evaluate and judged < trained:
            return trained, "evaluate"
        return (trained + 1, "train") if trained < self.rounds else None

    def _in_round(self, now: RoundView, view: StepView) -> Action:
        answered = tuple(sorted(site for site in now.members if site in now.contributions))
        missing = tuple(sorted(s for s in now.members if s not in now.contributions and s not in view.failed))
        needed = self._needed(now.members)
        if len(answered) == len(now.members):
            return CloseRound(answered)
        if len(answered) + len(missing) < needed:
            return self._give_up(view, len(answered) + len(missing), now)
        left = None if self.deadline_s is None else self.deadline_s - now.opened_for_s
        if len(answered) >= needed and (not missing or left is None or left <= 0):
            return CloseRound(answered)
        return Wait(missing, left if left is not None and left > 0 else None)

    def _give_up(self, view: StepView, possible: int, now: RoundView | None = None) -> Fail:
        gone = "; ".join(f"{site} failed: {view.failed[site]}" for site in sorted(view.failed))
        where = f" in round {now.round} of {self.rounds}" if now is not None else ""
        if self.min_responses is None:
            return Fail(f"{gone or 'no sites'}{where} (every round waits for all sites: no min_responses)")
        return Fail(f"{possible} answers are possible{where}, {self.min_responses} needed: {gone or 'too few sites'}")
