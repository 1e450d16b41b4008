"""How long nobody acknowledges anything when the primary dies, or hands over.

A job runs for as long as the measurement: in each of its sites a thread sends one metric line every 20 ms, and rounds
follow one another. The bench itself reads the servers' log every 5 ms and notes when it first sees each record. A line
or a result is acknowledged right after its record is in the log, so the first ``metrics`` or ``contribution`` record
under the new epoch is the first acknowledgement that a site gets.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from bench.federation import Federation, federation, now, until
from bench.machine import load
from bench.report import Figure
from fedhelm.persist import Log, open_store
from fedhelm.process import read_state

__all__ = ["LogProbe", "failover", "probing_job", "switchover"]

_POLL = 0.005
_LIMIT = 30.0

_PROBING = """\
import threading, time
import numpy as np
import fedhelm.script as fl

def probe(writer):
    number = 0
    while True:
        number += 1
        writer.add_scalar("probe", number, number)
        writer.flush()
        time.sleep(0.02)

with fl.connect() as site:
    threading.Thread(target=probe, args=(site.summary_writer(),), daemon=True).start()
    for task in site.tasks():
        time.sleep(0.05)
        task.submit({"w": np.zeros(10, np.float32)}, weight=1)
"""

_FOLLOWING = re.compile(r"(\S+Z) \S+ INFO following (\S+), epoch (\d+)")


@dataclass(frozen=True)
class Seen:
    """A record, and when the bench first saw it."""

    at: float
    kind: str
    epoch: int


class LogProbe:
    """Reads the log every 5 ms in a thread."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._seen: list[Seen] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log probe")

    def __enter__(self) -> Self:
        self._log.read_new()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_POLL):
            records = self._log.read_new().records
            moment = now()
            self._seen += [Seen(moment, record.kind, record.epoch) for record in records]

    def first(self, epoch: int, *kinds: str) -> Seen:
        """Wait for the first record of these kinds under an epoch above this one."""
        return until(lambda: self._first(epoch, kinds), _LIMIT, f"{kinds} above epoch {epoch}")

    def _first(self, epoch: int, kinds: tuple[str, ...]) -> Seen | None:
        return next((one for one in tuple(self._seen) if one.epoch > epoch and one.kind in kinds), None)

    def since(self, moment: float) -> list[Seen]:
        """Return the records first seen at ``moment`` or later."""
        return [one for one in tuple(self._seen) if one.at >= moment]

    def last(self, epoch: int, *kinds: str) -> Seen:
        """Return the last record of these kinds under this epoch."""
        return max(
            (one for one in tuple(self._seen) if one.epoch == epoch and one.kind in kinds), key=lambda one: one.at
        )


@dataclass(frozen=True)
class Gap:
    """Seconds of one hand-over: until a site was answered, until a round closed, until sites followed, in silence."""

    answered: float
    closed: float
    followed: float
    silent: float


def probing_job(made: Federation) -> Path:
    """Write the folder of a job that never ends by itself, and in which each site sends a line every 20 ms."""
    return made.job("probing", _PROBING, "workflow: [{type: fedavg, rounds: 1000000}]")


@contextlib.contextmanager
def _probed() -> Iterator[tuple[Federation, LogProbe]]:
    with federation() as made:
        job = made.session.submit(probing_job(made))
        kit = made.workspace.kit("server1")
        assert kit.store is not None
        with LogProbe(open_store(kit.store, kit.cluster).log) as probe:
            probe.first(0, "round_close")
            yield made, probe
        job.abort()


def _followed(made: Federation, epoch: int, wall: datetime) -> float | None:
    """Return the seconds until the last site followed the new epoch, by the sites' own logs."""
    moments = []
    for home in made.workspace.running_homes:
        if home.role == "site":
            found = [m for m in _FOLLOWING.findall(made.log_text(home.name)) if int(m[2]) > epoch]
            if not found:
                return None
            moments.append(datetime.fromisoformat(found[0][0]))
    return max((moment - wall).total_seconds() for moment in moments)


def _gap(made: Federation, probe: LogProbe, epoch: int, moment: float, wall: datetime) -> Gap:
    answered = probe.first(epoch, "metrics", "contribution")
    closed = probe.first(epoch, "round_close")
    followed = until(lambda: _followed(made, epoch, wall), _LIMIT, "the sites follow")
    silent = answered.at - probe.last(epoch, "metrics", "contribution").at
    return Gap(answered.at - moment, closed.at - moment, followed, silent)


def _settle(made: Federation, probe: LogProbe, epoch: int) -> None:
    """Wait until the federation is whole again, and rounds go on: each trial starts from the same place."""
    made.wait_for_standby()
    for home in made.workspace.running_homes:
        if home.role == "site":
            until(lambda home=home: read_state(home.run), 10, "the site's state")  # type: ignore[misc]
    mark = now()
    until(lambda: True if probe.last(epoch, "round_close").at > mark + 1 else None, _LIMIT, "rounds go on")


def _killed(trials: int) -> list[Gap]:
    gaps = []
    with _probed() as (made, probe):
        for _ in range(trials):
            leads = made.session.primary()
            _settle(made, probe, leads.epoch)
            wall = datetime.now(UTC)
            moment = made.kill_child(leads.name)
            gaps.append(_gap(made, probe, leads.epoch, moment, wall))
    return gaps


def _switched(trials: int) -> list[Gap]:
    gaps = []
    with _probed() as (made, probe):
        for _ in range(trials):
            leads = made.session.primary()
            _settle(made, probe, leads.epoch)
            other = next(one.name for one in made.session.servers() if one.name != leads.name)
            wall, moment = datetime.now(UTC), now()
            made.session.promote(other, timeout=_LIMIT)
            gaps.append(_gap(made, probe, leads.epoch, moment, wall))
            time.sleep(0.1)
    return gaps


_ANSWERED = (
    "until the first line or result of a site is in the log under the new epoch; each site sends a line every 20 ms, "
    "the log is read every 5 ms"
)


def failover(quick: bool) -> Iterator[Figure]:
    gaps = _killed(3 if quick else 10)
    yield Figure(
        "failover",
        "failover, kill -9 of the primary's child, as the sites see it",
        "s",
        [gap.answered for gap in gaps],
        f"from SIGKILL {_ANSWERED}",
        "1 s",
        load(),
    )
    yield Figure(
        "failover-follow",
        "of that, until both sites follow the new primary",
        "s",
        [gap.followed for gap in gaps],
        "from SIGKILL to the line in the later site's own log",
        None,
        load(),
    )
    yield Figure(
        "failover-round",
        "from the kill to the next finished round",
        "s",
        [gap.closed for gap in gaps],
        "from SIGKILL to the first `round_close` under the new epoch; a round takes about 0.1 s here, and in between a "
        "new process starts for the job's aggregation",
        None,
        load(),
    )


def switchover(quick: bool) -> Iterator[Figure]:
    gaps = _switched(3 if quick else 10)
    yield Figure(
        "switchover",
        "planned switchover, as the sites see it",
        "s",
        [gap.answered for gap in gaps],
        f"from the call of `promote_sp` {_ANSWERED}",
        "1 s",
        load(),
    )
    yield Figure(
        "switchover-silence",
        "of that, without an acknowledgement",
        "s",
        [gap.silent for gap in gaps],
        "between the last record of a site under the old epoch and the first under the new one",
        None,
        load(),
    )
