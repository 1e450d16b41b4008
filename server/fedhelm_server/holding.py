"""Contributions of ephemeral jobs, held in memory until their round is closed: each site keeps its own as long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedhelm_server.job_state import JobState, RoundKey

__all__ = ["Holding"]

Item = Mapping[str, Any]


class Holding:
    """What is held for each job. Lost with the process: the sites offer it again to the next primary."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[RoundKey, dict[str, Item]]] = {}
        self.on_take: list[Callable[[Item], None]] = []
        """Called with each item that is new."""

    def take(self, item: Item) -> Item:
        """Hold one contribution to the open round; return what is held of its site: an earlier one stays."""
        key = (item["step"], item["round"], item["kind"])
        if self._jobs.get(item["job"], (None,))[0] != key:
            self._jobs[item["job"]] = key, {}
        held = self._jobs[item["job"]][1].setdefault(item["site"], item)
        if held is item:
            for listener in self.on_take:
                listener(item)
        return held

    def of(self, job: str) -> Mapping[str, Item]:
        """Return what is held of a job's open round, by site."""
        return self._jobs[job][1] if job in self._jobs else {}

    def jobs_with(self, site: str) -> list[str]:
        """Return the jobs that something of ``site`` is held for."""
        return [job for job, (_, items) in self._jobs.items() if site in items]

    def keep(self, job: str, state: JobState | None) -> None:
        """Forget what is not of the job's open round."""
        if job in self._jobs and (state is None or state.open is None or state.open.key != self._jobs[job][0]):
            del self._jobs[job]
