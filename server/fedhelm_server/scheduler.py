"""Which waiting jobs start now, and why the others wait. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fedhelm_server.job_book import JobState

__all__ = ["ALL", "EPHEMERAL_WIRE", "Schedule", "deployed_sites", "schedule"]

ALL = "@ALL"


@dataclass(frozen=True)
class Schedule:
    """Jobs to dispatch, in order, each with its sites; and the reason of every other."""

    dispatch: tuple[tuple[str, tuple[str, ...]], ...]
    waits: Mapping[str, str]


def deployed_sites(config: Mapping[str, Any], project_sites: Collection[str]) -> tuple[str, ...]:
    """Return the sites a job is deployed to, sorted; ``@ALL`` stands for every site of the project."""
    named: set[str] = set()
    for sites in config["deploy"].values():
        named.update(project_sites if ALL in sites else sites)
    return tuple(sorted(named))


EPHEMERAL_WIRE = 2
"""The first wire version whose sites keep a result that is not in the log."""


def schedule(
    waiting: Iterable[JobState],
    connected: Collection[str],
    project_sites: Collection[str],
    versions: Mapping[str, int] = MappingProxyType({}),
) -> Schedule:
    """Decide which waiting jobs start: in order of submission, each as soon as its sites are connected.

    A job's sites are every deployed site that is connected now, at least ``min_sites`` (default: all of them) and
    all ``mandatory_sites``. An ephemeral job takes only sites that speak a wire version which has such jobs.

    Args:
        waiting: the jobs.
        connected: names of the sites with a stream.
        project_sites: all sites, for ``@ALL``.
        versions: wire version of the connected sites; a site that is not named speaks the newest.
    """
    dispatch: list[tuple[str, tuple[str, ...]]] = []
    waits: dict[str, str] = {}
    for job in waiting:
        deployed = deployed_sites(job.config, project_sites)
        old = {site for site in connected if job.ephemeral and versions.get(site, EPHEMERAL_WIRE) < EPHEMERAL_WIRE}
        here = tuple(site for site in deployed if site in connected and site not in old)
        needed = job.config.get("min_sites") or len(deployed)
        absent = [site for site in deployed if site not in here]
        mandatory = [site for site in job.config.get("mandatory_sites") or () if site not in here]
        if mandatory:
            waits[job.job] = f"waits for mandatory {', '.join(mandatory)} to connect"
        elif len(here) < needed:
            waits[job.job] = f"waits for {needed - len(here)} more of {', '.join(absent)} to connect"
        else:
            dispatch.append((job.job, here))
            continue
        if refused := [site for site in deployed if site in old]:
            waits[job.job] += f"; {', '.join(refused)} must be upgraded first: an ephemeral job needs wire version 2"
    return Schedule(tuple(dispatch), waits)
