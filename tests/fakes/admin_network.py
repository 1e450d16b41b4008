"""A federation in memory, for the admin library: servers that lead, stand by, die or hang; an overseer; a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

from blake3 import blake3

from fedhelm.config.kit import Kit, OverseerAddress, ServerAddress
from fedhelm.config.timing import PROFILES
from fedhelm.errors import DeadlineExceeded, JobNotFound, NoPrimary, NotFound, NotPrimary, Refused, Unreachable
from fedhelm.v1 import admin_pb2, common_pb2
from fedhelm.wire.overseer_api import Check, ExplainView, ServerView, SystemView


class FakeClock:
    def __init__(self):
        self.now = 1000.0
        self.waits = []
        self.at = []

    def boottime(self):
        return self.now

    def utcnow(self):
        return datetime(2026, 11, 22, 12, 3, 41, tzinfo=UTC)

    def pause(self, seconds):
        self.waits.append(seconds)
        self.now += seconds
        for moment, action in list(self.at):
            if self.now >= moment:
                self.at.remove((moment, action))
                action()


def make_kit(root: Path) -> Kit:
    return Kit(
        root=root,
        project="poc",
        cluster="0" * 32,
        role="project_admin",
        name="admin@nvidia.com",
        org="nvidia",
        overseers=(OverseerAddress("overseer", "127.0.0.1", 8443),),
        servers=(ServerAddress("server1", "127.0.0.1", 8002, 8003), ServerAddress("server2", "127.0.0.1", 9002, 9003)),
        sites=("site-1", "site-2"),
        timing=PROFILES["default"],
    )


@dataclass
class FakeCluster:
    """What all servers share: the log, as far as an admin sees it."""

    clock: FakeClock
    leader: str | None = "server1"
    epoch: int = 1
    down: set = field(default_factory=set)
    hanging: set = field(default_factory=set)
    overseer_up: bool = True
    overseer_names: str | None = None
    jobs: dict = field(default_factory=dict)
    requests: dict = field(default_factory=dict)
    files: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)
    before: list = field(default_factory=list)
    after: list = field(default_factory=list)
    channels: list = field(default_factory=list)
    standby_logins: bool = False
    promotes: bool = True
    generation: int = 1
    sites_up: set = field(default_factory=lambda: {"site-1", "site-2"})
    deaf: set = field(default_factory=set)
    refusing: dict = field(default_factory=dict)  # site -> why it does not obey
    operations: list = field(default_factory=list)
    handed_over: list = field(default_factory=list)
    overseers_said: tuple = ()
    shut_down: bool = False
    paused: bool = False
    extra_servers: tuple = ()
    overseer_hiccups: int = 0

    def fail_over(self, to="server2"):
        self.leader = to
        self.epoch += 1

    def kill(self, name):
        self.down.add(name)
        if self.leader == name:
            self.leader = None

    def names(self, method):
        return [server for server, called, _ in self.calls if called == method]


class FakeStub:
    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name

    def _enter(self, method, request, timeout, *, lead=True):
        cluster = self.cluster
        if cluster.before and cluster.before[0][0] == method:
            cluster.before.pop(0)[1]()
        if self.name in cluster.down:
            raise Unreachable(f"{self.name} cannot be reached")
        if self.name in cluster.hanging:
            cluster.clock.pause(timeout if timeout is not None else 1e6)
            raise DeadlineExceeded(f"{self.name} did not answer in time")
        if lead and cluster.leader != self.name:
            raise NotPrimary(f"{self.name} does not lead")
        cluster.calls.append((self.name, method, request))

    def _leave(self, method):
        cluster = self.cluster
        if cluster.after and cluster.after[0][0] == method:
            cluster.after.pop(0)[1]()
            raise Unreachable(f"{self.name}: the line broke")

    def challenge(self, timeout):
        self._enter("challenge", None, timeout, lead=not self.cluster.standby_logins)
        return admin_pb2.ChallengeReply(nonce=b"n" * 32)

    def login(self, request, timeout):
        self._enter("login", request, timeout, lead=not self.cluster.standby_logins)
        assert request.signature == b"signed:fedhelm-login\0" + request.nonce
        return admin_pb2.LoginReply(
            principal="admin@nvidia.com",
            role="project_admin",
            project="poc",
            server=self.name,
            epoch=self.cluster.epoch,
        )

    def submit_job(self, request, timeout):
        self._enter("submit_job", request, timeout)
        cluster = self.cluster
        if request.request_id not in cluster.requests:
            cluster.requests[request.request_id] = request.job
            cluster.jobs[request.job] = "SUBMITTED"
        self._leave("submit_job")
        return admin_pb2.SubmitJobReply(job=cluster.requests[request.request_id])

    def _summary(self, job):
        return admin_pb2.JobSummary(job=job, name="hello", status=self.cluster.jobs[job], duration_s=1.5)

    def list_jobs(self, request, timeout):
        self._enter("list_jobs", request, timeout)
        found = [
            self._summary(job) for job in sorted(self.cluster.jobs, reverse=True) if job.startswith(request.prefix)
        ]
        self._leave("list_jobs")
        return admin_pb2.ListJobsReply(jobs=found[: request.limit or None])

    def show_job(self, request, timeout):
        self._enter("show_job", request, timeout)
        matches = [job for job in self.cluster.jobs if job.startswith(request.job)]
        if not matches:
            raise JobNotFound(f"no job matches {request.job}", hint="list_jobs")
        return admin_pb2.JobDetail(summary=self._summary(matches[0]), round=1, rounds=5)

    def watch_job(self, request, timeout=None):
        self._enter("watch_job", request, timeout)
        yield admin_pb2.JobDetail(summary=self._summary(request.job), round=2, rounds=5)
        if self.cluster.after and self.cluster.after[0][0] == "watch_job":
            self._leave("watch_job")
        raise DeadlineExceeded("the stream's time is over")

    def abort_job(self, request, timeout):
        self._enter("abort_job", request, timeout)
        self.cluster.requests.setdefault(request.request_id, request.job)
        self.cluster.jobs[request.job] = "FINISHED:ABORTED"
        self._leave("abort_job")
        return self._summary(request.job)

    def delete_job(self, request, timeout):
        self._enter("delete_job", request, timeout)
        self.cluster.requests.setdefault(request.request_id, request.job)
        self.cluster.jobs.pop(request.job, None)
        self._leave("delete_job")
        return common_pb2.Empty()

    def operate(self, request, timeout):
        self._enter("operate", request, timeout)
        cluster = self.cluster
        if request.request_id not in cluster.requests:
            cluster.requests[request.request_id] = request.action
            if request.server:
                cluster.clock.at.append((cluster.clock.now + 0.2, lambda: cluster.fail_over("server2")))
                cluster.leader = None
            if request.action == "shutdown":
                cluster.sites_up &= cluster.deaf
        self._leave("operate")
        known = ["site-1", "site-2", "site-3"]
        refused = [admin_pb2.OrderRefusal(site=site, reason=why) for site, why in cluster.refusing.items()]
        told = [site for site in known[:2] if site not in cluster.refusing]
        return admin_pb2.OperateReply(sites=told, disconnected=known[2:], refused=refused)

    def prepare_download(self, request, timeout):
        self._enter("prepare_download", request, timeout)
        entries = [
            admin_pb2.DownloadEntry(path=path, size=len(data), blake3=blake3(data).hexdigest())
            for path, data in self.cluster.files.items()
        ]
        return admin_pb2.DownloadManifest(job=request.job, seq=self.cluster.generation, files=entries)

    def download_file(self, request, timeout=None):
        self._enter("download_file", request, timeout)
        if request.seq != self.cluster.generation:
            raise NotFound("that position is not here")
        data = self.cluster.files[request.path][request.offset :]
        for at in range(0, len(data), 4):
            yield data[at : at + 4]
            if at == 4:
                self._leave("download_file")

    def check_status(self, timeout):
        self._enter("check_status", None, timeout)
        sites = [
            admin_pb2.SiteConnection(name=name, connected=name in self.cluster.sites_up)
            for name in ("site-1", "site-2")
        ]
        return admin_pb2.StatusReply(server=self.name, role="ACTIVE", epoch=self.cluster.epoch, sites=sites)


class FakeChannel:
    closed = False

    def close(self):
        self.closed = True


PORTS = {"server1": (8002, 8003), "server2": (9002, 9003), "server3": (9102, 9103)}


class FakeOverseer:
    def __init__(self, cluster):
        self.cluster = cluster
        self.timeouts = []

    def _enter(self, timeout=None):
        self.timeouts.append(timeout)
        if self.cluster.overseer_hiccups:
            self.cluster.overseer_hiccups -= 1
            raise Unreachable("no overseer answers")
        if not self.cluster.overseer_up:
            raise Unreachable("no overseer answers")

    def primary(self, timeout=None):
        self._enter(timeout)
        name = self.cluster.overseer_names or self.cluster.leader
        if name is None:
            raise NoPrimary("nobody leads")
        ports = PORTS[name]
        return SimpleNamespace(
            name=name,
            epoch=self.cluster.epoch,
            host="127.0.0.1",
            fed_learn_port=ports[0],
            admin_port=ports[1],
            ssid=f"poc:{self.cluster.epoch}",
        )

    def recent(self, limit, timeout=None):
        self._enter(timeout)
        return [SimpleNamespace(id=7, kind="grant", time="t", text="x", data={"epoch": 1})][:limit]

    def promote(self, target, request_id, timeout=None):
        self._enter(timeout)
        if target == self.cluster.leader:
            raise Refused(f"{target} leads already")
        reply = SimpleNamespace(epoch=self.cluster.epoch, primary=self.cluster.leader, target=target)
        self.cluster.requests[request_id] = target
        back = target if self.cluster.promotes else self.cluster.leader
        self.cluster.leader = None
        self.cluster.clock.at.append((self.cluster.clock.now + 0.3, lambda: self.cluster.fail_over(back)))
        return reply

    def servers(self, timeout=None):
        self._enter(timeout)
        names = ("server1", "server2", *self.cluster.extra_servers)
        return [
            ServerView(
                name=name,
                host="127.0.0.1",
                state="DOWN" if name in self.cluster.down else "ACTIVE" if name == self.cluster.leader else "STANDBY",
                fed_learn_port=PORTS[name][0],
                admin_port=PORTS[name][1],
            )
            for name in names
        ]

    def explain(self, server, timeout=None):
        self._enter(timeout)
        check = Check(name="log", ok=False, text="12 records behind")
        return ExplainView(name=server, candidate=False, verdict="it lags", checks=(check,), next="server1")

    def system(self, timeout=None):
        self._enter(timeout)
        return SystemView(
            paused=self.cluster.paused, paused_by="admin@nvidia.com", reason="upgrade", down=self.cluster.shut_down
        )

    def _told(self, what, request, timeout, *more):
        # The answer may be lost after the operation was done.
        if (what, *more, request.request_id, request.reason) not in self.cluster.operations:
            self.cluster.operations.append((what, *more, request.request_id, request.reason))
        self._enter(timeout)

    def pause(self, request, timeout=None):
        self._told("pause", request, timeout)

    def resume(self, request, timeout=None):
        self._told("resume", request, timeout)

    def remove(self, server, request, timeout=None):
        self._told("remove", request, timeout, server)

    def revoke(self, data, timeout=None):
        self.cluster.handed_over.append(data)
        return self.cluster.overseers_said

    def shutdown(self, request, timeout=None):
        self._told("shutdown", request, timeout)
        self.cluster.shut_down, self.cluster.leader = True, None
        self.cluster.down |= {"server1", "server2"} - self.cluster.deaf

    def close(self):
        """Nothing to close."""


class FakeNetwork:
    def __init__(self, cluster):
        self.cluster = cluster
        self._overseer = FakeOverseer(cluster)
        self.signatures = 0

    def dial(self, server):
        channel = FakeChannel()
        self.cluster.channels.append(channel)
        return FakeStub(self.cluster, server.name), channel

    def overseer(self):
        return self._overseer

    def upload(self, stub, owner, path, moved=None):
        stub._enter("upload", owner, 1.0)
        if moved is not None:
            moved(path.stat().st_size)
        stub._leave("upload")
        return common_pb2.BlobRef(owner=owner, digest="d", size=path.stat().st_size)

    def pack(self, folder, target):
        target.write_bytes(b"bundle")
        return "hello", "d" * 64

    def sign(self, data):
        return b"signed:" + data

    def sign_job(self, job, name, digest):
        self.signatures += 1
        return f"signed:{job} {name} {digest} {self.signatures}".encode()

    def sign_order(self, order, action, sites, reason):
        self.signatures += 1
        return f"signed:{order} {action} {' '.join(sites)} {reason} {self.signatures}".encode()

    def close(self):
        """Nothing to close."""
