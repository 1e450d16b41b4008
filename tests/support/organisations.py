"""A real federation of two organisations, and calls to it with any of its certificates, by hand and below every client.

Overseer, two servers, sites and people of every role; the test itself plays the sites that are connected. Nothing here
knows who may do what.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import queue
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import grpc

from fedhelm.admin.session import Session
from fedhelm.config.timing import PROFILES
from fedhelm.persist.store import init_store
from fedhelm.process import marked_processes
from fedhelm.provision.kits import write_kits
from fedhelm.provision.launch import Launched, is_ready, spawn
from fedhelm.provision.project import Participant, Project
from fedhelm.provision.stop import Home, live_processes, stop_all
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority
from fedhelm.v1 import admin_pb2, fleet_pb2
from fedhelm.wire.faults import ERROR_KEY
from tests.support.federation import free_base_port
from tests.support.jobs import make_job
from tests.support.waiting import eventually_sync

ALPHA, BETA = "alpha", "beta"
PEOPLE = {
    "root@alpha.org": ("project_admin", ALPHA),
    "anna@alpha.org": ("org_admin", ALPHA),
    "lea@alpha.org": ("lead", ALPHA),
    "lars@alpha.org": ("lead", ALPHA),
    "mo@alpha.org": ("member", ALPHA),
    "bert@beta.org": ("lead", BETA),
}
SITES = {"site-a": ALPHA, "site-b": BETA, "site-c": ALPHA, "site-d": ALPHA}
"""The first two are connected. The third never is: a job that is deployed to it waits. No job is for the last one."""

SERVICES = {
    service.name: service
    for module in (fleet_pb2, admin_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
}
METHODS = {f"{service.name}.{method.name}": method for service in SERVICES.values() for method in service.methods}
VOLATILE = {"lease": ("renew_seq", "log_seq")}
"""Columns of the lease store that move by themselves while a primary leads."""


def told_by(error: grpc.RpcError) -> str:
    """The code of the error that a service answered; TLS errors and time-outs are the test's failure."""
    found = [value for key, value in error.trailing_metadata() or () if key == ERROR_KEY]
    assert found, error
    return str(json.loads(found[0])["code"])


@dataclasses.dataclass
class Answer:
    """``code`` is OK, or that of the error; ``data`` the reply's messages (bytes) or the decoded body, or the error's."""

    code: str
    data: Any = None


class Organisations:
    """Started by :meth:`start`; ``kits`` are by name. ``closed`` are sites that take no job with code of its own."""

    def __init__(self, folder, closed=()):
        port = free_base_port(7)
        self.folder, self.store = folder, folder / "store"
        self.authority = CertificateAuthority.create("poc")
        project = Project(
            name="poc",
            participants=(
                Participant("overseer", "overseer", ALPHA, "127.0.0.1", (port,)),
                Participant("server1", "server", ALPHA, "127.0.0.1", (port + 1, port + 2)),
                Participant("server2", "server", ALPHA, "127.0.0.1", (port + 3, port + 4)),
                *(Participant(name, "site", org, enable_byoc=name not in closed) for name, org in SITES.items()),
                *(Participant(name, role, org) for name, (role, org) in PEOPLE.items()),
            ),
            timing=PROFILES["wan"],  # on a busy machine too nobody loses the lease
            store="../store",
        )
        self.kits = self._write(project, folder)
        self.metrics = {"server1": port + 5, "server2": port + 6}
        for name, number in self.metrics.items():
            (self.kits[name].local / "server.json").write_text(json.dumps({"metrics_port": number}))
        self._project = project
        self.primary = self.standby = ""
        self._open = contextlib.ExitStack()
        self._channels: dict[tuple[str, str, int], grpc.Channel] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._sessions: dict[str, Session] = {}
        self._launched: list[Launched] = []
        self._kinds: dict[str, str] = {}  # of the log's slots, by name

    def _write(self, project, folder):
        return {name: open_kit(root) for name, root in write_kits(project, self.authority, folder).items()}

    def second_kits(self):
        """Everybody's once more: the same names and roles, other keys and certificates. Known as ``NAME again``."""
        folder = self.folder / "again"
        folder.mkdir()
        made = {f"{name} again": kit for name, kit in self._write(self._project, folder).items()}
        self.kits |= made
        return made

    def start(self, played=("site-a", "site-b")):
        """Start overseer and servers; hold open the streams of the sites that are only played."""
        kit = self.kits["server1"]
        init_store(self.store, kit.cluster, kit.project)
        self.launch("overseer", "server1", "server2")
        self.primary = eventually_sync(self._leader, 60, self.tails())
        self.standby = "server2" if self.primary == "server1" else "server1"
        for site in played:
            self._open.enter_context(self.playing(site))
        return self

    def launch(self, *names):
        """Start these participants' processes and wait until they are ready; what one died of is raised."""
        launched = [spawn(self.kits[name]) for name in names]
        self._launched += launched

        def settled():
            return any(one.exited for one in launched) or all(is_ready(one.kit.run) for one in launched)

        eventually_sync(settled, 90, f"{names} are ready: {self.tails()}")
        for one in launched:
            if one.exited:
                raise one.death()

    def kill(self, name):
        """Kill a participant's own process, as a power cut does, and reap it."""
        for launched in self._launched:
            if launched.kit.name == name and not launched.exited:
                launched.process.kill()
                launched.process.wait(30)

    def _leader(self):
        answer = self.ask("root@alpha.org", "GET", "/api/v1/primary")
        return answer.data["name"] if answer.code == "OK" else None

    def close(self):
        kits = [launched.kit for launched in self._launched]
        homes = [Home(kit.root, kit.role, kit.name) for kit in sorted(kits, key=lambda kit: kit.role, reverse=True)]
        for session in self._sessions.values():
            session.close()
        self._open.close()
        for channel in self._channels.values():
            channel.close()
        stop_all(homes)
        for launched in self._launched:
            launched.process.wait(30)
        assert not any(live_processes(home) for home in homes)

    def tails(self):
        logs = [(launched.kit.name, launched.kit.log_file) for launched in self._launched]
        return "\n".join(f"--- {name}\n{path.read_text()[-2000:]}" for name, path in logs if path.exists())

    # -- sites that are only played ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def playing(self, site, server=None):
        """Hold a site's stream open; yields once the server has welcomed it."""
        kit, said = self.kits[site], queue.Queue()
        hello = fleet_pb2.Hello(wire_versions=[1, 2], cluster=kit.cluster, incarnation=f"played{site[-1]}")
        said.put(fleet_pb2.SiteMessage(hello=hello))
        channel = self.channel(site, server or self.primary, "fed_learn_port")
        call = channel.stream_stream(
            "/fedhelm.v1.Fleet/Connect",
            request_serializer=fleet_pb2.SiteMessage.SerializeToString,
            response_deserializer=fleet_pb2.ServerMessage.FromString,
        )(iter(said.get, None))
        assert next(call).WhichOneof("message") == "welcome"
        reader = threading.Thread(target=_drain, args=(call,), daemon=True)
        reader.start()
        try:
            yield
        finally:
            call.cancel()
            said.put(None)
            reader.join(10)

    # -- calls --------------------------------------------------------------------------------------------------------

    def channel(self, caller, server, port):
        address = next(one for one in self.kits[caller].servers if one.name == server)
        number = getattr(address, port)
        if (caller, server, number) not in self._channels:
            kit = self.kits[caller]
            credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in (kit.ca, kit.key, kit.cert)))
            options = [("grpc.ssl_target_name_override", server), ("grpc.enable_retries", 0)]
            made = grpc.secure_channel(f"127.0.0.1:{number}", credentials, options)
            self._channels[caller, server, number] = made
        return self._channels[caller, server, number]

    def call(self, caller, name, messages, server=None):
        """Call a method of the primary with these messages (bytes); of a stream that goes on, the first reply counts."""
        method = METHODS[name]
        service = method.containing_service
        port = "fed_learn_port" if service.name == "Fleet" else "admin_port"
        channel = self.channel(caller, server or self.primary, port)
        path = f"/{service.full_name}/{method.name}"
        try:
            if method.client_streaming and method.server_streaming:
                return self._talk(channel.stream_stream(path), messages)
            if method.client_streaming:
                return Answer("OK", [channel.stream_unary(path)(iter(messages), timeout=30)])
            if method.server_streaming:
                stream = channel.unary_stream(path)(messages[0], timeout=30)
                replies = [next(stream, None)]
                stream.cancel()
                return Answer("OK", replies)
            return Answer("OK", [channel.unary_unary(path)(messages[0], timeout=30)])
        except grpc.RpcError as error:
            return Answer(told_by(error), error.trailing_metadata())

    @staticmethod
    def _talk(method, messages):
        done = threading.Event()

        def said() -> Iterator[bytes]:
            yield from messages
            done.wait(30)

        stream = method(said(), timeout=30)
        try:
            return Answer("OK", [next(stream)])
        finally:
            done.set()
            stream.cancel()

    def ask(self, caller, method, path, body=None):
        """One request to the overseer; of an event stream, its head counts."""
        kit = self.kits[caller]
        if caller not in self._contexts:
            context = self._contexts[caller] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(kit.ca)
            context.load_cert_chain(kit.cert, kit.key)
            context.check_hostname = False
        address = kit.overseers[0]
        connection = http.client.HTTPSConnection("127.0.0.1", address.port, context=self._contexts[caller], timeout=30)
        try:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body)
            headers = {} if body is None else {"content-type": "application/json"}
            connection.request(method, path, body=data, headers=headers)
            answer = connection.getresponse()
            streamed = (answer.getheader("content-type") or "").startswith("text/event-stream")
            text = "" if streamed else answer.read().decode()
        finally:
            connection.close()
        found = json.loads(text) if text.startswith(("{", "[")) else text
        return Answer("OK" if answer.status < 400 else found["code"], found)

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def session(self, name):
        if name not in self._sessions:
            self._sessions[name] = Session(self.kits[name])
        return self._sessions[name]

    def submit(self, name, site="site-c"):
        """A job of this person, which waits for a site that never comes, or runs at one that is played."""
        number = len(list(self.folder.glob("job-*-files")))
        yaml = f"""
            name: {name.partition("@")[0]}
            deploy: {{app: [{site}]}}
            workflow: [{{type: fedavg, rounds: 2}}]
        """
        folder, _ = make_job(self.folder / f"job-{number}", "print('never run')", yaml=yaml)
        return self.session(name).submit(folder, timeout=60).job_id

    def submit_and_end(self, name):
        job = self.submit(name)
        self.session("root@alpha.org").abort(job)
        return job

    def wait_until_running(self, job):
        session = self.session("root@alpha.org")
        eventually_sync(lambda: session.job(job).round == 1, 60, f"round 1 of {job}: {self.tails()}")

    # -- what there is ------------------------------------------------------------------------------------------------

    def state(self):
        """All that a call could have changed: log and blobs, the lease store, who runs, who is connected, every job."""
        return {**self.quick_state(), "processes": self.processes(), "status": self._status(), "jobs": self._jobs()}

    def quick_state(self):
        """The part of it that is on disk, without what a checkpoint writes: that comes when it is due."""
        return {"records": self._records(), "blobs": self._blobs(), "lease": self._lease_store()}

    def new_since(self, before):
        """What there is now and was not there in that state, or is another; what a checkpoint took away is nothing new."""
        now = self.state() if "jobs" in before else self.quick_state()
        grown = {part: sorted(now[part] - before[part]) for part in ("records", "blobs")}
        other = {part: now[part] for part in set(now) - {*grown} if now[part] != before[part]}
        return {part: value for part, value in (grown | other).items() if value}

    def _records(self):
        found = set()
        for path in (self.store / "log").iterdir():
            if path.name not in self._kinds:
                with contextlib.suppress(FileNotFoundError):  # a checkpoint took it away
                    self._kinds[path.name] = json.loads(path.read_bytes())["kind"]
            if (kind := self._kinds.get(path.name)) not in (None, "checkpoint"):
                found.add(f"{path.name} {kind}")
        return found

    def _blobs(self):
        root = self.store / "blobs"
        found = {path.relative_to(root) for path in root.rglob("[cm]-*")}
        return {str(path) for path in found if path.parts[0] != "checkpoints" and "lines" not in path.parts}

    def processes(self):
        """Process ids by participant and kind; a restarted server has others."""
        return {
            (name, one.mark, one.pid)
            for name in ("overseer", "server1", "server2")
            for one in marked_processes(self.kits[name].root)
        }

    def _status(self):
        answer = self.call("root@alpha.org", "Admin.CheckStatus", [b""])
        reply = admin_pb2.StatusReply.FromString(answer.data[0])
        sites = [(site.name, site.connected, tuple(site.jobs)) for site in reply.sites]
        return reply.server, reply.epoch, reply.jobs_running, reply.jobs_waiting, sites

    def _jobs(self):
        answer = self.call("root@alpha.org", "Admin.ListJobs", [b""])
        return {row.job: row.status for row in admin_pb2.ListJobsReply.FromString(answer.data[0]).jobs}

    def _lease_store(self):
        path = self.kits["overseer"].run / "overseer.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as db:
            tables = [name for (name,) in db.execute("select name from sqlite_master where type = 'table'")]
            return {table: _rows(db, table) for table in sorted(tables)}


def _rows(db, table):
    found = db.execute(f"select * from {table}")
    names = [one[0] for one in found.description]
    keep = [place for place, name in enumerate(names) if name not in VOLATILE.get(table, ())]
    return sorted([str([row[place] for place in keep]) for row in found])


def _drain(call):
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass
