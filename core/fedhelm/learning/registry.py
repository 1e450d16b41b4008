"""From a recorded step of ``job.yaml`` to the workflow that decides it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedhelm.learning.fedavg import FedAvg
from fedhelm.learning.workflow import Workflow

__all__ = ["workflow_of"]


def workflow_of(step: Mapping[str, Any]) -> Workflow:
    """Return the workflow of one step, as the log has it: checked when the job was submitted, plain JSON values."""
    return FedAvg(
        rounds=step["rounds"],
        min_responses=step.get("min_responses"),
        deadline_s=step.get("deadline"),
        evaluate=bool(step.get("evaluate")),
        best_metric=step.get("best_metric"),
    )
