"""From the book to what a workflow sees. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fedhelm.learning.workflow import ClosedView, ContributionView, RoundView, StepView
from fedhelm_server.job_state import JobState

__all__ = ["NOBODY", "given_in_log", "step_view"]

NOBODY: Mapping[str, str] = MappingProxyType({})
"""No site's contribution is refused."""


def given_in_log(job: JobState) -> dict[str, Mapping[str, Any]]:
    """Return the contributions to the open round that are in the log, by site."""
    return {site: placed.item for site, placed in job.open.contributions.items()} if job.open else {}


def step_view(
    job: JobState,
    step: int,
    opened_for_s: float,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    refused: Mapping[str, str] = NOBODY,
) -> StepView:
    """Return what the workflow may see of the job.

    Args:
        job: the job.
        step: of its workflow.
        opened_for_s: how long the round has been open.
        given: the contributions to the open round, if not the log's.
        refused: site -> why its contribution does not count: in this round the site is as one that failed.
    """
    given = given_in_log(job) if given is None else given
    given = {site: item for site, item in given.items() if site not in refused}
    closed = tuple(
        ClosedView(entry["round"], entry["kind"], entry["metrics"]) for entry in job.closed if entry["step"] == step
    )
    open_ = None
    if job.open is not None:
        contributions = {site: ContributionView(site, item["weight"], item["metrics"]) for site, item in given.items()}
        open_ = RoundView(
            step,
            job.open.round,
            job.open.kind,  # type: ignore[arg-type]
            job.open.members,
            contributions,
            opened_for_s,
        )
    failed = {site: entry["reason"] for site, entry in job.failed.items()}
    failed |= {site: f"the contribution of {site} {why}" for site, why in refused.items()}
    return StepView(closed, open_, job.sites, failed)
