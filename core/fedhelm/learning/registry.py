"""From a step of ``job.yaml`` to the workflow that decides it."""

from __future__ import annotations

from fedhelm.job.model import FedAvgStep
from fedhelm.learning.fedavg import FedAvg
from fedhelm.learning.workflow import Workflow

__all__ = ["workflow_of"]


def workflow_of(step: FedAvgStep) -> Workflow:
    """Return the workflow of a checked step."""
    return FedAvg(
        rounds=step.rounds,
        min_responses=step.min_responses,
        deadline_s=step.deadline,
        evaluate=step.evaluate,
        best_metric=step.best_metric,
    )
