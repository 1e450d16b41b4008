"""A certificate is revoked: at the overseer and at both servers, every call that runs with it ends and no other begins.

Each who is revoked has a second certificate of the same name and role, which goes on: it is the certificate that counts.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import ssl
import threading
import time

import grpc
import pytest

from fedhelm.clock import SystemClock, iso
from fedhelm.security.pki import load_certificate, serial_of
from fedhelm.security.revocation import RevocationList, Revoked
from fedhelm.v1 import admin_pb2, common_pb2, fleet_pb2
from tests.support.organisations import Organisations, told_by
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("ports")]

ROOT, LEAD, SITE = "root@alpha.org", "bert@beta.org", "site-d"
REVOKED = ("overseer again", "server2 again", f"{SITE} again", f"{LEAD} again", "anna@alpha.org again", f"{ROOT} again")
SERVERS = ("server1", "server2")
LIMIT_S = 2.0
"""The promise, from the overseer's acknowledgement on. It takes a tenth of a second where nothing else runs."""


@pytest.fixture
def connections():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = Organisations(tmp_path_factory.mktemp("revoked"))
    try:
        made.start().second_kits()
        yield made
    finally:
        made.close()


# -- calls that run ---------------------------------------------------------------------------------------------------


class Running:
    """A call in a thread: ``live`` once the other side has it, ``code`` and ``ended`` (monotonic) once it is over."""

    def __init__(self, name, call):
        self.name, self.code, self.ended = name, None, None
        self.live = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call):
        try:
            self.code = call(self.live.set)
        except grpc.RpcError as error:
            # Those that are left at the end of the test are broken off with their server: nobody told them anything.
            self.code = told_by(error) if error.trailing_metadata() else error.code().name
        except (OSError, http.client.HTTPException) as error:
            self.code = type(error).__name__
        self.ended = time.monotonic()

    def join(self, timeout):
        self._thread.join(timeout)
        return self.ended is not None


def until_it_ends(stream, live):
    next(stream)
    live()
    for _ in stream:
        pass
    return "OK"


def connect(world, caller, server):
    """A site's stream."""
    hello = fleet_pb2.Hello(wire_versions=[2], cluster=world.kits[caller].cluster, incarnation=f"again{server}")
    said, hold = fleet_pb2.SiteMessage(hello=hello).SerializeToString(), threading.Event()

    def messages():
        yield said
        hold.wait(60)

    channel = world.channel(caller, server, "fed_learn_port")

    def call(live):
        try:
            return until_it_ends(channel.stream_stream("/fedhelm.v1.Fleet/Connect")(messages(), timeout=60), live)
        finally:
            hold.set()

    return call


def watch(world, caller, job):
    channel = world.channel(caller, world.primary, "admin_port")
    asked = admin_pb2.JobRequest(job=job).SerializeToString()
    return lambda live: until_it_ends(channel.unary_stream("/fedhelm.v1.Admin/WatchJob")(asked, timeout=60), live)


def upload(world, caller, job):
    """It has begun, and does not go on."""
    channel = world.channel(caller, world.primary, "admin_port")
    manifest = common_pb2.Manifest(size=5, chunk_size=1 << 20, chunks=["0" * 64])
    header = common_pb2.PutBlobHeader(owner=f"jobs/{job}/bundle", manifest=manifest, indices=[0]).SerializeToString()
    hold = threading.Event()

    def call(live):
        def messages():
            yield header
            live()
            hold.wait(60)

        try:
            channel.stream_unary("/fedhelm.v1.Admin/PutBlob")(messages(), timeout=60)
        finally:
            hold.set()
        return "OK"

    return call


def https(world, caller, port):
    kit = world.kits[caller]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(kit.ca)
    context.load_cert_chain(kit.cert, kit.key)
    context.check_hostname = False
    return http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)


def request(world, caller, path, *, streamed=False):
    """A request to the overseer that is answered later, or for as long as anybody listens."""

    def call(live):
        with contextlib.closing(https(world, caller, world.kits["overseer"].own_overseer.port)) as connection:
            connection.request("GET", path)
            if not streamed:
                live()
            answer = connection.getresponse()
            live()
            answer.read()
            return answer.status

    return call


def kept_open(connections, world, caller, port, path):
    """A connection that was used once, and is used again."""
    connection = https(world, caller, port)

    def again():
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        return answer.status

    connections.callback(connection.close)
    assert again() == 200
    return again


def hand_over(world, *names):
    """Revoke their certificates: the list goes to the overseer, as an admin with another certificate hands it over."""
    at = iso(SystemClock().utcnow())
    entries = tuple(
        Revoked(serial_of(load_certificate(kit.cert.read_bytes(), "")), kit.role, kit.name, at, "stolen")
        for kit in (world.kits[name] for name in names)
    )
    kit = world.kits[ROOT]
    signed = RevocationList(kit.project, kit.cluster).with_revoked(entries, at).to_bytes(world.authority)
    answer = world.ask(ROOT, "POST", "/api/v1/revocations", signed)
    assert answer.code == "OK", answer
    assert answer.data["taken"] is True


# -- calls that are new -----------------------------------------------------------------------------------------------


def new_calls(world, caller):
    """What this certificate is told at every port, by its name; with its second certificate it would be served."""
    told = {"overseer": world.ask(caller, "GET", "/api/v1/servers").code}
    for server in SERVERS:
        told[f"{server} site"] = world.call(caller, "Fleet.PushLines", [b""], server).code
        told[f"{server} admin"] = world.call(caller, "Admin.Challenge", [b""], server).code
        told[f"{server} metrics"] = figures(world, caller, server)
    return told


def figures(world, caller, server):
    with contextlib.closing(https(world, caller, world.metrics[server])) as connection:
        connection.request("GET", "/metrics")
        return {200: "OK", 401: "BAD_CERTIFICATE", 403: "BAD_CERTIFICATE"}[connection.getresponse().status]


def test_calls_end_and_others_are_refused_within_two_seconds(world, connections):
    job = world.submit(LEAD)
    overseer = world.kits["overseer"].own_overseer.port
    running = [
        *(Running((name, "events"), request(world, name, "/api/v1/events", streamed=True)) for name in REVOKED),
        Running(("server2 again", "lease"), request(world, "server2 again", "/api/v1/lease?after=2&wait=30")),
        Running((f"{SITE} again", "list"), request(world, f"{SITE} again", "/api/v1/revocations?after=0&wait=30")),
        *(Running((server, "stream"), connect(world, f"{SITE} again", server)) for server in SERVERS),
        Running((LEAD, "watch"), watch(world, f"{LEAD} again", job)),
        Running((LEAD, "upload"), upload(world, f"{LEAD} again", "2" * 12)),
    ]
    others = [
        Running("events", request(world, ROOT, "/api/v1/events", streamed=True)),
        Running("stream", connect(world, "site-c", world.standby)),  # a second stream of one site ends the first
        Running("watch", watch(world, LEAD, job)),
    ]
    kept = [kept_open(connections, world, name, overseer, "/healthz") for name in REVOKED]
    kept += [kept_open(connections, world, name, world.metrics[one], "/metrics") for name in REVOKED for one in SERVERS]
    before = {name: new_calls(world, name) for name in REVOKED}
    assert all(one.live.wait(30) for one in (*running, *others)), world.tails()

    hand_over(world, *REVOKED)
    handed = time.monotonic()
    served = [Running(name, until_refused(world, name, handed)) for name in REVOKED]

    assert [one.name for one in (*running, *served) if not one.join(60)] == [], world.tails()
    late = {one.name: one.ended - handed for one in running if one.ended - handed > LIMIT_S}
    assert late == {}
    assert {one.name: one.code for one in running if one.code not in ENDS[one.name[1]]} == {}
    assert {one.name: one.code for one in served if one.code != "refused"} == {}
    for name in REVOKED:
        assert "BAD_CERTIFICATE" not in before[name].values(), name
        assert refused_everywhere(world, name), name
        assert set(new_calls(world, name.removesuffix(" again")).values()) != {"BAD_CERTIFICATE"}
    assert {again() for again in kept} <= {401, 403, "RemoteDisconnected", "ConnectionResetError"}
    # Certificates that were not revoked go on, and so do their calls.
    assert [one.name for one in others if one.ended is not None] == []
    for name in REVOKED:
        assert new_calls(world, name.removesuffix(" again")) == before[name]


ENDS = {
    "events": {200},  # the stream ends; its head was said long ago
    "lease": {401},
    "list": {401},
    "stream": {"BAD_CERTIFICATE"},
    "watch": {"BAD_CERTIFICATE"},
    "upload": {"BAD_CERTIFICATE"},
}


def until_refused(world, name, handed):
    """New calls, one round after another: no round that begins later than the limit may have one that is served."""

    def call(live):
        live()
        while True:
            begun = time.monotonic() - handed
            told = new_calls(world, name)
            if set(told.values()) == {"BAD_CERTIFICATE"}:
                return "refused"
            if begun > LIMIT_S:
                return f"{begun:.2f} s after the overseer's answer: {told}"

    return call


def refused_everywhere(world, name):
    return set(new_calls(world, name).values()) == {"BAD_CERTIFICATE"}


def test_nobody_forgets_the_list_when_it_dies(world):
    """Killed and started again, each refuses from its own disk, before anybody could have told it."""
    for server in SERVERS:
        (child,) = [pid for name, mark, pid in world.processes() if (name, mark) == (server, "child")]
        os.kill(child, signal.SIGKILL)
    world.kill("overseer")
    world.launch("overseer")
    for name in REVOKED:
        assert world.ask(name, "GET", "/api/v1/servers").code == "BAD_CERTIFICATE"
    for name in REVOKED:
        eventually_sync(lambda name=name: refused_again(world, name), 60, world.tails())


def refused_again(world, name):
    """A server that is not up yet gives no answer: neither a refusal nor anything else."""
    try:
        return refused_everywhere(world, name)
    except (AssertionError, OSError, http.client.HTTPException):
        return False
