"""What a site does next for one job. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from fedhelm_client.outbox import ContributionId

__all__ = ["Act", "Situation", "decide", "status_of"]


class Act(enum.Enum):
    """The next step."""

    WAIT = "wait for a change"
    START = "start the job process"
    HAND_OUT = "give the script its task"
    END_SCRIPT = "tell the script that the job has ended"
    STOP = "end the job process"
    RETURNED = "the script has returned and there is a task for it: a failure"
    DONE = "nothing runs here any more"


@dataclass(frozen=True)
class Situation:
    """One job at this site.

    Attributes:
        finished: how the log says the job ended (``COMPLETED``, ``ABORTED``, ``FAILED``), None while it runs.
        failed: its job process failed here in this attempt.
        process: of the job.
        task: what the log wants from this site and has not been answered.
        fetching: the task whose model is on its way to the script.
        in_hand: the task that the script works on.
        asking: the script waits for a task.
        patience: a completed job's script may still return by itself.
    """

    finished: str | None = None
    failed: bool = False
    process: Literal["none", "starting", "up", "over"] = "none"
    task: ContributionId | None = None
    fetching: ContributionId | None = None
    in_hand: ContributionId | None = None
    asking: bool = False
    patience: bool = True


def decide(now: Situation) -> Act:
    """Return the next step.

    A running task is never ended because another server leads: only what the log says of the job ends it.
    """
    if now.finished is not None:
        return _wind_up(now)
    if now.failed:
        return Act.STOP if now.process in ("starting", "up") else Act.WAIT
    if now.process == "none":
        return Act.START
    if now.process == "over":
        return Act.RETURNED if now.task is not None else Act.WAIT
    if now.process == "up" and now.asking and now.task is not None and now.task not in (now.fetching, now.in_hand):
        return Act.HAND_OUT
    return Act.WAIT


def _wind_up(now: Situation) -> Act:
    if now.process in ("none", "over"):
        return Act.DONE
    if now.finished != "COMPLETED" or not now.patience or now.process == "starting":
        return Act.STOP
    return Act.END_SCRIPT if now.asking else Act.WAIT


def status_of(now: Situation) -> str:
    """Return the word for a beat."""
    if now.finished is not None:
        return "ENDING"
    if now.failed:
        return "FAILED"
    if now.process in ("none", "starting"):
        return "STARTING"
    return "IDLE" if now.in_hand is None else "TRAINING"
