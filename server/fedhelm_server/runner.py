"""The runner process of one job: reads the log, asks the workflow, aggregates, proposes. It never appends itself.

It holds no state of its own: started again on any server, it reads the log (from its newest checkpoint, where the log
was shortened) and goes on at the same step. The child
pokes it when the log has news for its job, and answers each proposal.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from fedhelm.clock import iso
from fedhelm.config.kit import Kit, read_kit
from fedhelm.errors import BadInput, Conflict, Corrupt, FedhelmError, StoreUnavailable, WrongStore
from fedhelm.learning.refusals import Undecided, Unfit
from fedhelm.learning.registry import workflow_of
from fedhelm.learning.workflow import (
    Action,
    CloseRound,
    ContributionView,
    Fail,
    Finish,
    OpenRound,
    Wait,
    weighted_metrics,
)
from fedhelm.local.frames import Frame, SyncChannel
from fedhelm.persist.blobs import BlobReader, BlobRef, BlobWriter
from fedhelm.persist.record import Record
from fedhelm.persist.store import Store, open_store
from fedhelm.process import die_with_parent
from fedhelm_server.blob_copy import copy_blob
from fedhelm_server.job_book import JobBook, JobState, finished
from fedhelm_server.job_state import RoundKey, RoundState
from fedhelm_server.places import job_folder, model_owner
from fedhelm_server.projection import LiveProjection
from fedhelm_server.segments import line_items, read_segments
from fedhelm_server.step_views import NOBODY, given_in_log, step_view

if TYPE_CHECKING:
    from fedhelm_server.job_provenance import Statement

__all__ = ["Runner", "main"]

_log = logging.getLogger("fedhelm.runner")


STORE_RETRY_S = 0.5


class _Gone(Exception):
    """The child is gone, or wants this runner to end."""


class Runner:
    """One job's loop: read on, decide, act, wait."""

    def __init__(self, kit: Kit, store: Store, job: str, channel: SyncChannel) -> None:
        self._kit = kit
        self._store = store
        self._id = job
        self._channel = channel
        self._book = JobBook()
        self._projection = self._new_projection()
        self._unprojected: list[Record] = []
        self._from_segments = False
        self._held: dict[RoundKey, dict[str, Mapping[str, Any]]] = {}
        self._refused: tuple[RoundKey, frozenset[str], dict[str, str]] | None = None
        self._told: set[tuple[RoundKey, str]] = set()
        self._proposals = 0
        self._said = 0
        self._statement: Statement | None = None
        self._round_since: tuple[tuple[int, int, str], float] | None = None

    @property
    def _job(self) -> JobState:
        return self._book.jobs[self._id]

    def _has_ended(self) -> bool:
        job = self._book.jobs.get(self._id)
        return job is None or finished(job.status)  # None: deleted since

    def _new_projection(self) -> LiveProjection:
        return LiveProjection(job_folder(self._kit.run, self._id) / "tensorboard")

    def run(self) -> None:
        """Drive the job to its end; return when it has ended."""
        self._read_on()
        if not self._has_ended() and self._job.status == "DISPATCHED":
            self._say(f"job {self._id} ({self._job.name}) runs on {', '.join(self._job.sites)}")
            self._propose("job_state", {})
        while not self._has_ended():
            self._step()
            self._read_on()
        self._project()
        self._projection.close()

    def _project(self) -> None:
        """Bring the event files up to date when nothing is more urgent: a new primary's runner has all lines to do."""
        if self._from_segments and not self._project_segments():
            return
        waiting, self._unprojected = self._unprojected, []
        for record in waiting:
            if record.seq > self._projection.seq:
                for item in line_items(record, self._id):
                    self._projection.add(item)

    def _project_segments(self) -> bool:
        job = self._book.jobs.get(self._id)
        try:
            for item in read_segments(self._store.blobs, job.segments if job else (), self._projection.seq):
                self._projection.add(item)
        except (Corrupt, StoreUnavailable) as error:
            # Merged into another one since, or out of reach: from the first line again, later.
            _log.info("lines of job %s cannot be read now: %s", self._id, error)
            self._projection.close()
            self._projection = self._new_projection()
            return False
        self._from_segments = False
        return True

    def _read_on(self) -> None:
        while True:
            try:
                batch = self._store.log.read_new()
                break
            except StoreUnavailable:  # a job outlives an outage of the store, however long
                self._wait(STORE_RETRY_S)
        if batch.base is not None:
            self._book = JobBook.restore(batch.base.state)
            self._from_segments = True
        for record in batch.records:
            self._book.apply(record)
            if record.kind == "metrics":
                self._unprojected.append(record)

    def _given(self) -> dict[str, Mapping[str, Any]]:
        """The contributions to the open round: those in the log, or those that the child holds (ephemeral)."""
        if self._job.ephemeral:
            return self._held.get(self._job.open.key, {}) if self._job.open else {}
        return given_in_log(self._job)

    def _step(self) -> None:
        job, step = self._job, 0
        workflow = workflow_of(job.config["workflow"][step])
        action = workflow.decide(step_view(job, step, self._opened_for(job), self._given(), self._unfit()))
        try:
            self._act(action, step)
        except Unfit as error:
            self._refuse(error)
        except Undecided as error:
            self._await_one_more(error)
        except StoreUnavailable:
            self._wait(STORE_RETRY_S)  # full or away: what is in the log is safe, try again
        except FedhelmError as error:
            number = job.open.round if job.open is not None else action.round if isinstance(action, OpenRound) else 0
            self._done("FINISHED:FAILED", f"round {number}: {error}")

    def _unfit(self) -> Mapping[str, str]:
        """Who gave what cannot be averaged, and why: found with exactly the contributions that there are now."""
        open_ = self._job.open
        if open_ is None or self._refused is None or self._refused[:2] != (open_.key, frozenset(self._given())):
            return NOBODY
        return self._refused[2]

    def _await_one_more(self, error: Undecided) -> None:
        """One more contribution may tell whose fault it is; where none can come the job ends."""
        job, open_ = self._job, self._job.open
        assert open_ is not None
        awaited = [site for site in open_.members if site not in self._given() and site not in job.failed]
        if not awaited:
            self._done("FINISHED:FAILED", f"round {open_.round}: {error}")
            return
        if (open_.key, str(error)) not in self._told:
            self._told.add((open_.key, str(error)))
            self._say(f"round {open_.round}: {error}; it waits for {', '.join(awaited)}")
        self._wait(None)

    def _refuse(self, error: Unfit) -> None:
        """Go on without these in this round. Another runner, from the same contributions, comes to the same."""
        open_ = self._job.open
        assert open_ is not None
        self._refused = (open_.key, frozenset(self._given()), {**self._unfit(), **error.reasons})
        for site, why in error.reasons.items():
            if (open_.key, site) not in self._told:
                self._told.add((open_.key, site))
                self._say(f"round {open_.round}: the contribution of {site} is refused: it {why}")

    def _act(self, action: Action, step: int) -> None:
        job = self._job
        match action:
            case OpenRound(round=number, rounds=rounds, kind=kind, deadline_s=deadline):
                self._open(step, number, rounds, kind, deadline)
            case CloseRound(sites=sites):
                self._close(sites)
            case Wait(for_sites=sites, wake_in_s=wake):
                self._wait(wake)
            case Finish():
                self._complete()
            case Fail(reason=reason):
                self._say(f"job {self._id} failed: {reason}")
                failures = [entry["traceback"] for entry in job.failed.values() if entry.get("traceback")]
                self._done("FINISHED:FAILED", reason, failures[0] if failures else "")

    def _opened_for(self, job: JobState) -> float:
        if job.open is None:
            return 0.0
        key = job.open.key
        if self._round_since is None or self._round_since[0] != key:
            # Counted from when this runner saw the round: no clock of another machine is compared with ours.
            self._round_since = (key, time.clock_gettime(time.CLOCK_BOOTTIME))
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self._round_since[1]

    # -- rounds -------------------------------------------------------------------------------------------------------

    def _open(self, step: int, number: int, rounds: int, kind: str, deadline: float | None) -> None:
        job = self._job
        model = job.model
        blob, sha256 = (model["model"], model["model_sha256"]) if model else self._initial_model()
        self._say(f"round {number} of {rounds} ({kind}) opens")
        body = {
            "attempt": job.attempt,
            "step": step,
            "round": number,
            "rounds": rounds,
            "kind": kind,
            "members": [site for site in sorted(job.sites) if site not in job.failed],
            "model": blob,
            "model_sha256": sha256,
            "deadline_s": deadline,
        }
        self._held.clear()
        self._propose("round_open", body)

    def _initial_model(self) -> tuple[dict[str, Any] | None, str | None]:
        name = self._job.config.get("initial_model")
        if not name:
            return None, None
        from fedhelm.job.bundle import copy_member

        writer, sha256 = BlobWriter(self._store.blobs, model_owner(self._id, 0, 0)), hashlib.sha256()

        def sink(data: bytes | memoryview) -> None:
            sha256.update(data)
            writer.write(data)

        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "bundle"
            with archive.open("wb") as file:
                copy_blob(BlobReader(self._store.blobs, BlobRef.from_json(self._job.bundle)), file.write)
            copy_member(archive, name, sink)
        return writer.finish().to_json(), sha256.hexdigest()

    def _close(self, sites: tuple[str, ...]) -> None:
        open_ = self._job.open
        assert open_ is not None
        given, refused = self._given(), self._unfit()
        items = {site: given[site] for site in sorted(given) if site not in refused}
        if set(items) != set(sites):
            raise RuntimeError("the workflow closes a round with other sites than the log has")
        body: dict[str, Any] = {
            "attempt": self._job.attempt,
            "step": open_.step,
            "round": open_.round,
            "kind": open_.kind,
            "members": sorted(given),
            "weights": {site: item["weight"] for site, item in items.items()},
            "metrics": weighted_metrics(
                [ContributionView(site, item["weight"], item["metrics"]) for site, item in items.items()]
            ),
            "site_metrics": {site: item["metrics"] for site, item in items.items()},
            "model": None,
            "model_sha256": None,
            "model_blake3": None,
            **({"refused": dict(refused)} if refused else {}),
        }
        if open_.kind == "train":
            body |= self._aggregate(open_, items)
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in sorted(body["metrics"].items()))
        self._say(f"round {open_.round} of {open_.rounds} ({open_.kind}) closes: {len(items)} sites; {numbers}")
        self._propose("round_close", body)

    def _aggregate(self, open_: RoundState, items: Mapping[str, Any]) -> dict[str, Any]:
        # numpy: not before the first round has been opened
        from fedhelm.learning.aggregators import read_source_header, weighted_average

        started_from = None
        if open_.model is not None:
            with contextlib.suppress(BadInput, Corrupt):  # then the contributions have only one another to fit
                reader = BlobReader(self._store.blobs, BlobRef.from_json(open_.model))
                started_from = read_source_header(reader, "the round's model")[0]
        sources = [
            (site, float(item["weight"]), BlobReader(self._store.blobs, BlobRef.from_json(item["blob"])))
            for site, item in items.items()
        ]
        writer = BlobWriter(self._store.blobs, model_owner(self._id, open_.step, open_.round))
        sha256, whole = hashlib.sha256(), blake3()

        def sink(block: memoryview) -> None:
            sha256.update(block)
            whole.update(block)
            writer.write(block)

        weighted_average(sources, sink, model=started_from, members=len(open_.members))
        ref = writer.finish()
        return {"model": ref.to_json(), "model_sha256": sha256.hexdigest(), "model_blake3": whole.hexdigest()}

    def _complete(self) -> None:
        """End the job, with the signed statement of where its models come from."""
        from fedhelm_server.job_provenance import Statement  # certificates are slow to import: not at every failover

        statement = self._statement = self._statement or Statement(self._kit, self._store.blobs)
        try:
            signed = statement.of(self._job)
        except Corrupt:  # merged under our hands: read on
            self._wait(STORE_RETRY_S)
            return
        if statement.problem:
            self._say(f"no signed statement of provenance: {statement.problem}")
        self._say(f"job {self._id} is complete")
        self._propose("job_done", {"status": "FINISHED:COMPLETED", "reason": "", "traceback": "", "provenance": signed})

    def _done(self, status: str, reason: str, traceback: str = "") -> None:
        self._propose("job_done", {"status": status, "reason": reason, "traceback": traceback})

    # -- the child ----------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        stamp = iso(datetime.now(UTC))
        line = {"kind": "log", "tag": "server", "value": text, "step": None, "time": stamp}
        self._said = max(self._said, self._job.lines.get(self._kit.name, 0)) + 1
        self._channel.send("log", first=self._said, lines=[line])
        _log.info(text)

    def _wait(self, seconds: float | None) -> None:
        self._project()
        self._take(_wait_for_frame(self._channel, seconds))

    def _take(self, frame: Frame | None) -> None:
        if frame is not None and frame["type"] == "held":
            item = frame["item"]
            self._held.setdefault((item["step"], item["round"], item["kind"]), {})[item["site"]] = item

    def _propose(self, kind: str, body: dict[str, Any]) -> None:
        """Have the child append; a refusal that another look at the log may cure is none.

        Raises:
            BadInput: the child can never append this.
        """
        self._proposals += 1
        try:
            self._channel.send("propose", id=self._proposals, kind=kind, body=body)
        except ConnectionError:
            raise _Gone from None
        while True:
            frame = self._channel.receive()
            if frame is None:
                raise _Gone
            if frame["type"] in ("committed", "rejected") and frame["id"] == self._proposals:
                break
            self._take(frame)
        if frame["type"] == "rejected":
            _log.info("%s was not taken: %s", kind, frame["reason"])
            if frame.get("code") == BadInput.code:
                raise BadInput(f"{kind} was refused: {frame['reason']}")
            if frame.get("code") != Conflict.code:  # a conflict is in the log already: no need to wait
                self._wait(STORE_RETRY_S)


def _wait_for_frame(channel: SyncChannel, seconds: float | None) -> Frame | None:
    try:
        frame = channel.receive(timeout=seconds)
    except TimeoutError:
        return None
    if frame is None:
        raise _Gone
    return frame


def main(argv: list[str]) -> int:
    """Run one job's runner; the child's own command, not for people."""
    parser = argparse.ArgumentParser(prog="fedhelm_server.runner")
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    options = parser.parse_args(argv)
    die_with_parent(options.parent_pid)
    kit = read_kit(options.kit)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    assert kit.store is not None
    channel = SyncChannel(socket.socket(fileno=options.control_fd))
    try:
        Runner(kit, _open_patiently(kit.store, kit.cluster, channel), options.job, channel).run()
    except (_Gone, ConnectionError):
        return 0
    return 0


def _open_patiently(root: Path, cluster: str, channel: SyncChannel) -> Store:
    while True:
        try:
            return open_store(root, cluster)
        except (StoreUnavailable, WrongStore):
            # The child has it open: it is the right one, and away (a directory that is not mounted looks like another).
            _wait_for_frame(channel, STORE_RETRY_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
