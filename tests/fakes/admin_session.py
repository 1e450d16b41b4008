"""A session without a federation, for the console: canned answers, and a record of what was asked."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from types import SimpleNamespace

from fedhelm.admin.models import (
    Check,
    Event,
    Explanation,
    Failover,
    Job,
    JobDetail,
    Operated,
    Primary,
    Revocations,
    Server,
    Shutdown,
    SignedIn,
    Site,
    SiteStatus,
    Status,
    System,
    Told,
)
from fedhelm.errors import JobNotFound, KitError, NoPrimary

JOBS = [
    Job("k7m3tq4w2zpx", "hello-pt-tb", "RUNNING", "2026-11-22T12:03:41.120Z", 14.23, "admin@nvidia.com"),
    Job("k7m3aaaaaaaa", "hello-numpy", "FINISHED:COMPLETED", "2026-11-22T11:00:00.000Z", 2.5, "admin@nvidia.com"),
    Job("k6aaaaaaaaaa", "broken", "FINISHED:FAILED", "2026-11-21T11:00:00.000Z", 3700.0, "lead@nvidia.com"),
]

EXPLAINED = Explanation(
    "server2",
    False,
    "server2 cannot be granted the lease: it is 12 records behind.",
    (
        Check("heard", True, "heard 0.2 s ago"),
        Check("log", False, "epoch 1, slot 29, 12 records behind: promote_sp would be refused until it has read them"),
        Check("hold_down", True, "not held down"),
    ),
    "server3",
)


def failover(epoch=4):
    """The events of one failover, as the overseer publishes them."""
    noon = "2026-11-22T12:03:41.120Z"
    cause = "child exited with signal 9"
    facts = {"epoch": epoch, "name": "server2", "previous": "server1", "cause": cause}
    active = {**facts, "gap_s": 0.309}
    return [
        Event(1, "release", noon, "server1 released ...", {"epoch": epoch - 1, "name": "server1", "cause": cause}),
        Event(2, "grant", noon, f"epoch {epoch} granted to server2: {cause}", facts),
        Event(3, "member_down", noon, "server1 is down", {"name": "server1"}),
        Event(4, "active", noon, f"server2 leads, epoch {epoch}", active),
        Event(5, "failover", noon, f"failover server1 -> server2  epoch {epoch}  gap 0.3 s  ({cause})", active),
    ]


FAILOVER = [*failover(), Event(6, "member_up", "2026-11-22T12:03:44.000Z", "server1 is up", {"name": "server1"})]


class FakeSession:
    def __init__(self, root: Path):
        self.kit = SimpleNamespace(name="admin@nvidia.com", project="poc", run=root / "run", transfer=root / "transfer")
        self.asked = []
        self.found = list(JOBS)
        self.epoch = 1
        self.leader = "server1"
        self.reason = ""
        self.traceback = ""
        self.raises = {}
        self.states = {}
        self.signed_in = None
        self.standing = System()
        self.role = "ACTIVE"
        self.notes = {}
        self.lags = {}
        self.ended = Shutdown(("site-1",), (), ("server1", "server2"), ())
        self.missed = ()
        self.refused = {}
        self.own = False
        self.overseers = (Told("overseer", taken=True),)
        self._events = []
        self._more = threading.Condition()
        self._closed = False

    def _ask(self, verb, *what, **limits):
        self.asked.append((verb, what, limits))
        if verb in self.raises:
            raise self.raises[verb]

    def verbs(self):
        return [verb for verb, _, _ in self.asked]

    def sign_in(self, *, timeout):
        self._ask("sign_in", timeout=timeout)
        self.signed_in = SignedIn("admin@nvidia.com", "project_admin", "poc", self.leader, self.epoch, 1, 2, 2, 1)
        return self.signed_in

    def submit(self, folder, *, timeout, progress=None):
        self._ask("submit", folder, timeout=timeout)
        if progress is not None:
            progress(512, 2048)
        return SimpleNamespace(job_id="k7m3zzzzzzzz")

    def jobs(self, *, prefix="", limit=0, timeout):
        self._ask("jobs", prefix, limit, timeout=timeout)
        return [job for job in self.found if job.job_id.startswith(prefix)][: limit or None]

    def _find(self, job):
        for one in self.found:
            if one.job_id.startswith(job):
                return one
        raise JobNotFound(f"no job matches {job}", hint="list_jobs")

    def job(self, job, *, timeout):
        self._ask("job", job, timeout=timeout)
        sites = (SiteStatus("site-1", "DONE"), SiteStatus("site-2", "TRAINING"))
        return JobDetail(self._find(job), 2, 5, sites, self.reason, self.traceback, '{"accuracy": 0.9512, "loss": 0.2}')

    def wait(self, job, *, timeout, changed=None):
        self._ask("wait", job, timeout=timeout)
        if changed is not None:
            changed(self.job(job, timeout=timeout))
        return JobDetail(self._find(job), 5, 5, (), self.reason, self.traceback, "")

    def abort(self, job, *, reason, timeout):
        self._ask("abort", job, reason, timeout=timeout)
        one = self._find(job)
        return Job(one.job_id, one.name, "FINISHED:ABORTED", one.submit_time, one.duration_s, one.submitter)

    def download(self, job, folder, *, timeout, progress):
        self._ask("download", job, folder, timeout=timeout)
        return Path(folder).absolute() / self._find(job).job_id

    def check_status(self, *, timeout):
        self._ask("check_status", timeout=timeout)
        sites = (Site("site-1", True, ("k7m3tq4w2zpx",)), Site("site-2", False, ()))
        return Status(
            self.leader or "server1",
            self.role,
            self.epoch,
            41,
            sites,
            1,
            0,
            low_water=12,
            checkpoint=40,
            log_version=2,
            store_free=5 * 2**30,
            warnings=("the store has 4.9 GiB free, new jobs are refused below 1.0 GiB",),
        )

    def primary(self, *, timeout=None):
        self._ask("primary", timeout=timeout)
        if self.leader is None:
            raise NoPrimary("nobody leads at the moment")
        ports = {"server1": (8002, 8003), "server2": (9002, 9003)}[self.leader]
        return Primary(self.leader, self.epoch, "127.0.0.1", *ports, f"poc:{self.epoch}")

    def servers(self, *, timeout=None):
        self._ask("servers", timeout=timeout)
        return [
            Server(
                name,
                self.states.get(name, "ACTIVE" if name == self.leader else "STANDBY"),
                self.epoch if name == self.leader else None,
                41,
                0.2,
                note=self.notes.get(name),
                candidate=name != self.leader and self.states.get(name) != "DOWN",
                lag=self.lags.get(name, 0),
            )
            for name in ("server1", "server2")
        ]

    def history(self, *, timeout=None):
        self._ask("history", timeout=timeout)
        return [
            Failover(1, "server1", "first", "2026-11-22T11:00:00.000Z", None),
            Failover(2, "server2", "child of server1 died: SIGKILL", "2026-11-22T12:03:41.000Z", 0.412, None, 2),
        ]

    def recent_events(self, limit, *, timeout=None):
        self._ask("recent_events", limit, timeout=timeout)
        return FAILOVER[-limit:]

    def promote(self, server, *, timeout):
        self._ask("promote", server, timeout=timeout)
        self.leader, self.epoch = server, self.epoch + 1
        return self.primary()

    def system(self, *, timeout=None):
        self._ask("system", timeout=timeout)
        return self.standing

    def explain(self, server, *, timeout=None):
        self._ask("explain", server, timeout=timeout)
        return EXPLAINED

    def pause_failover(self, reason="", *, timeout):
        self._ask("pause_failover", reason, timeout=timeout)
        self.standing = System(True, "admin@nvidia.com", reason)

    def resume_failover(self, *, timeout):
        self._ask("resume_failover", timeout=timeout)
        self.standing = System()

    def remove_server(self, server, *, reason, timeout):
        self._ask("remove_server", server, reason, timeout=timeout)

    def read_revocations(self, data):
        if data != b"signed":
            raise KitError("the list of revoked certificates was not signed by this project's root")
        return Revocations(3, 2, ("site site-2", "server server9"), self.own)

    def revoke_certificates(self, data, *, timeout):
        self._ask("revoke_certificates", data, timeout=timeout)
        return self.overseers

    def operate_sites(self, action, sites, *, reason, timeout):
        self._ask("operate_sites", action, sites, reason, timeout=timeout)
        told = tuple(one for one in sites if one not in {*self.missed, *self.refused})
        return Operated(told, self.missed, self.refused)

    def restart_primary(self, *, reason, timeout):
        self._ask("restart_primary", reason, timeout=timeout)
        self.leader, self.epoch = "server2", self.epoch + 1
        return self.primary()

    def shutdown_system(self, *, reason, timeout):
        self._ask("shutdown_system", reason, timeout=timeout)
        return self.ended

    def delete_job(self, job, *, timeout):
        self._ask("delete_job", job, timeout=timeout)
        return self._find(job).job_id

    def publish(self, event: Event):
        with self._more:
            self._events.append(event)
            self._more.notify_all()

    def events(self, after=None):
        for at in itertools.count():
            with self._more:
                self._more.wait_for(lambda at=at: len(self._events) > at or self._closed)
                if self._closed:
                    return
                event = self._events[at]
            yield event

    def close(self):
        with self._more:
            self._closed = True
            self._more.notify_all()
