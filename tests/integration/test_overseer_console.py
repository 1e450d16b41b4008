"""The console's client of the overseers on real TLS sockets: overseers that are frozen, close early, or go away."""

import contextlib
import json
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fedhelm.config.kit import OverseerAddress
from fedhelm.errors import BadCertificate, NoPrimary, NotFound, Unreachable
from fedhelm.security.tls import server_context
from fedhelm.wire.overseer_api import OperateRequest
from fedhelm.wire.overseer_console import OverseerConsoleClient
from tests.support.kits import ADMIN, make_kits
from tests.support.waiting import eventually_sync

LEADS = {
    "name": "server1",
    "epoch": 3,
    "host": "127.0.0.1",
    "fed_learn_port": 8002,
    "admin_port": 8003,
    "ssid": "poc:3",
}


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("poc"), servers=2, base_port=1)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("other"), servers=2, base_port=1)


class Overseer(ThreadingHTTPServer):
    """Answers ``answers[path]`` as (status, body); ``rude``: closes after each answer without having said so."""

    daemon_threads = True

    def __init__(self, kit):
        self.answers = {"/api/v1/primary": (200, LEADS)}
        self.connections = 0
        self.asked = []
        self.rude = False
        self.streams = []
        self.events = [{"id": 9, "time": "t", "kind": "grant", "text": "x", "data": {"epoch": 1}}]
        self.resumed = []
        self.bodies = []
        self.gone = False
        super().__init__(("127.0.0.1", 0), Handler)
        self._tls = server_context(kit)
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def get_request(self):
        plain, address = super().get_request()
        self.connections += 1
        # The handshake is made where the connection is served: a client that never makes it holds up nobody.
        return self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request, client_address):
        """A client that goes away is no news."""

    def drop_streams(self):
        for stream in self.streams:
            socket.socket.shutdown(stream, socket.SHUT_RDWR)

    def close(self):
        self.shutdown()
        self.thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.gone:
            self.close_connection = True
            return
        if self.path == "/api/v1/events":
            self.server.resumed.append(self.headers["last-event-id"])
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for body in self.server.events:
                line = f"data: {json.dumps(body)}\n\n".encode()
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.server.streams.append(self.connection)
            with contextlib.suppress(OSError):
                self.connection.recv(1)
            return
        self._answer()

    def do_POST(self):
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self._answer()

    def _answer(self):
        status, body = self.server.answers[self.path]
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        self.close_connection = self.server.rude

    def log_message(self, *_):
        pass


@pytest.fixture
def overseer(kits):
    server = Overseer(kits["overseer"])
    yield server
    server.close()


@pytest.fixture
def frozen():
    listener = socket.create_server(("127.0.0.1", 0))  # the kernel accepts for it, and nobody ever answers
    yield listener
    listener.close()


@pytest.fixture
def connect(kits):
    opened = []

    def make(*listeners, kit=None):
        addresses = tuple(OverseerAddress("overseer", *one.getsockname()[:2]) for one in listeners)
        opened.append(OverseerConsoleClient(replace(kit or kits[ADMIN], overseers=addresses)))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


def test_a_connection_serves_many_calls(connect, overseer):
    client = connect(overseer.socket)
    assert [client.primary().epoch for _ in range(3)] == [3, 3, 3]
    assert overseer.connections == 1


def test_a_connection_that_was_closed_meanwhile_is_made_anew(connect, overseer):
    overseer.rude = True
    client = connect(overseer.socket)
    assert [client.primary().epoch for _ in range(3)] == [3, 3, 3]
    assert overseer.connections == 3


def test_a_new_kit_gets_new_connections(connect, overseer):
    client = connect(overseer.socket)
    for connections in (1, 2):
        assert [client.primary().epoch for _ in range(2)] == [3, 3]
        assert overseer.connections == connections
        client.reconnect()


def test_the_list_of_revoked_certificates_comes_as_it_was_signed(connect, overseer):
    overseer.answers["/api/v1/revocations?after=3&wait=1.500"] = (200, {"signed": "as it is"})
    assert connect(overseer.socket).revocations(3, 1.5) == b'{"signed": "as it is"}'


def test_a_frozen_overseer_is_passed_over_and_asked_last_from_then_on(connect, overseer, frozen):
    client = connect(frozen, overseer.socket)
    assert client.primary().epoch == 3
    frozen.settimeout(5)
    frozen.accept()[0].close()
    assert client.primary(timeout=5).epoch == 3
    frozen.setblocking(False)
    with pytest.raises(BlockingIOError):
        frozen.accept()


@pytest.mark.parametrize("timeout", [0.0, 0.2])
def test_nobody_answers_within_the_callers_time(connect, frozen, timeout):
    client = connect(frozen, frozen)
    with pytest.raises(Unreachable) as caught:
        client.servers(timeout=timeout)
    host, port = frozen.getsockname()
    assert caught.value.tried == (
        (f"overseer at {host}:{port}", "no answer in time"),
        (f"overseer at {host}:{port}", "not asked, the time is over"),
    )


def test_nobody_listens(connect):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        client = connect(gone)
        port = gone.getsockname()[1]
    with pytest.raises(Unreachable) as caught:
        client.history()
    assert caught.value.message == f"no overseer answers (overseer at 127.0.0.1:{port}: connection refused)"


def test_an_overseer_without_its_store_is_passed_over_and_an_election_is_an_answer(connect, overseer, kits):
    away = Overseer(kits["overseer"])
    try:
        away.answers["/api/v1/primary"] = (503, {"code": "STORE_UNAVAILABLE", "message": "the store is away"})
        assert connect(away.socket, overseer.socket).primary().epoch == 3
        with pytest.raises(Unreachable, match="the store is away"):
            connect(away.socket).primary()
        away.answers["/api/v1/primary"] = (503, {"code": "NO_PRIMARY", "message": "nobody leads"})
        with pytest.raises(NoPrimary, match="nobody leads"):
            connect(away.socket, away.socket).primary()
        assert connect(away.socket, overseer.socket).primary().epoch == 3, "somebody knows better"
    finally:
        away.close()


def test_after_a_refused_certificate_the_next_call_connects_anew(connect, overseer):
    client = connect(overseer.socket)
    good, overseer.answers["/api/v1/primary"] = (
        overseer.answers["/api/v1/primary"],
        (401, {"code": "BAD_CERTIFICATE", "message": "it was revoked"}),
    )
    with pytest.raises(BadCertificate, match="it was revoked"):
        client.primary()
    overseer.answers["/api/v1/primary"] = good
    assert (client.primary().epoch, overseer.connections) == (3, 2)


def test_certificate_trouble_is_named_as_such(connect, overseer, strangers):
    with pytest.raises(BadCertificate, match=r"TLS with overseer at 127\.0\.0\.1:"):
        connect(overseer.socket, kit=strangers[ADMIN]).primary()


def test_closing_ends_a_stream_that_waits_in_another_thread(connect, overseer):
    client = connect(overseer.socket)
    seen = []
    follower = threading.Thread(target=lambda: seen.extend(client.events()))
    follower.start()
    eventually_sync(lambda: seen and overseer.streams)
    client.close()
    follower.join(5)
    assert not follower.is_alive()
    assert [(event.id, event.data) for event in seen] == [(9, {"epoch": 1})]


def test_a_closed_client_calls_nobody(connect, overseer):
    client = connect(overseer.socket)
    client.close()
    with pytest.raises(Unreachable, match="closed"):
        client.primary()
    assert list(client.events()) == []
    assert overseer.asked == []


def test_a_hanging_overseer_is_not_waited_for(connect, overseer, frozen):
    """The time-out of one overseer is 2 s; the answer of the next one is there long before."""
    client = connect(frozen, frozen, overseer.socket)
    began = time.monotonic()
    assert client.primary().epoch == 3
    assert time.monotonic() - began < 1.9


def test_nobody_waits_long_for_somebody_who_knows_better(connect, frozen, kits):
    starting = Overseer(kits["overseer"])
    try:
        starting.answers["/api/v1/primary"] = (503, {"code": "NO_PRIMARY", "message": "nobody leads"})
        began = time.monotonic()
        with pytest.raises(NoPrimary):
            connect(starting.socket, frozen).primary()
        assert time.monotonic() - began < 1.9
    finally:
        starting.close()


def test_an_answer_that_refuses_is_an_answer(connect, overseer, kits):
    other = Overseer(kits["overseer"])
    try:
        other.answers["/api/v1/servers/server9/explain"] = (404, {"code": "NOT_FOUND", "message": "no server9"})
        with pytest.raises(NotFound, match="no server9"):
            connect(other.socket, overseer.socket).explain("server9")
        assert overseer.asked == []
    finally:
        other.close()


def test_a_bad_certificate_of_one_overseer_does_not_matter_while_another_answers(connect, overseer, strangers, kits):
    false = Overseer(strangers["overseer"])
    try:
        assert connect(false.socket, overseer.socket).primary().epoch == 3
        with pytest.raises(BadCertificate):
            connect(false.socket).primary()
    finally:
        false.close()


def test_writes_carry_their_request_id_to_whoever_answers(connect, overseer, frozen):
    overseer.answers["/api/v1/failover/pause"] = (200, {"paused": True})
    connect(frozen, overseer.socket).pause(OperateRequest(request_id="r1", reason="maintenance"))
    assert overseer.bodies == [{"request_id": "r1", "reason": "maintenance"}]


def event(number, moment, kind="grant", epoch=1):
    return {"id": number, "time": f"2099-11-22T12:00:{moment}Z", "kind": kind, "text": "x", "data": {"epoch": epoch}}


@pytest.fixture
def follow():
    stops = []

    def start(client, after=None):
        seen = []
        thread = threading.Thread(target=lambda: [seen.append(one.id) for one in client.events(after)])
        thread.start()
        stops.append((client, thread))
        return seen

    yield start
    for client, thread in stops:
        client.close()
        thread.join(5)
        assert not thread.is_alive()


def test_events_go_on_at_another_overseer_with_what_is_newer_and_not_told_yet(connect, overseer, kits, follow):
    other = Overseer(kits["overseer"])
    overseer.events = [event(900, "10.000", epoch=2)]
    # The same grant, stamped a little later; an older one; and what happened while nobody listened.
    other.events = [event(3, "01.000"), event(4, "10.400", epoch=2), event(5, "11.000", epoch=3)]
    try:
        seen = follow(connect(overseer.socket, other.socket))
        eventually_sync(lambda: seen == [900])
        overseer.gone = True
        overseer.drop_streams()
        eventually_sync(lambda: seen == [900, 5])
        assert other.resumed == ["0"]
    finally:
        other.close()


def test_what_happened_before_the_first_event_was_heard_is_not_lost(connect, overseer, kits, follow):
    """The first overseer hangs before it has told anything; the failover is told by the other one."""
    other = Overseer(kits["overseer"])
    overseer.events = []
    other.events = [event(5, "11.000", epoch=3)]
    try:
        seen = follow(connect(overseer.socket, other.socket))
        eventually_sync(lambda: overseer.streams)
        overseer.gone = True
        overseer.drop_streams()
        eventually_sync(lambda: seen == [5])
    finally:
        other.close()


def test_the_stream_leaves_an_overseer_that_did_not_answer_a_command(connect, overseer, kits, follow):
    other = Overseer(kits["overseer"])
    overseer.events = [event(900, "10.000")]
    other.events = [event(5, "11.000", epoch=3)]
    try:
        client = connect(overseer.socket, other.socket)
        seen = follow(client)
        eventually_sync(lambda: seen == [900])
        overseer.gone = True  # it closes without an answer, and its stream stays open
        assert client.primary().epoch == 3
        eventually_sync(lambda: seen == [900, 5])
    finally:
        other.close()
