"""A real overseer behind real TLS: certificates revoked and kits exchanged while it runs, and slow callers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import json
import socket
import ssl
from datetime import timedelta

import pytest
from cryptography import x509

from fedhelm.clock import SystemClock
from fedhelm.errors import BadCertificate, BadInput, NotAuthorised, Refused
from fedhelm.ids import new_request_id
from fedhelm.provision.reach import ask_others
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.signing import make_manifest
from fedhelm.security.tls import client_context
from fedhelm.tasks import spawn
from fedhelm.wire.overseer_api import OperateRequest
from fedhelm.wire.overseer_client import OverseerClient
from fedhelm.wire.overseer_console import OverseerConsoleClient
from fedhelm_overseer.refusals import EVERY_S
from fedhelm_overseer.service import Service, listen
from fedhelm_overseer.tls_protocol import ClientCertificateProtocol
from tests.fakes.provision_clock import ShiftedClock
from tests.support.kits import ADMIN, make_kits
from tests.support.overseer_http import ends_of
from tests.support.revoking import signed_list
from tests.support.waiting import eventually


class Running:
    """One overseer with its kits; ``again`` starts it anew from what it kept."""

    def __init__(self, folder):
        self.listener = listen("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.authority = CertificateAuthority.create("poc")
        self.kits = make_kits(
            folder, servers=2, base_port=self.port, timing="wan", authority=self.authority, cluster="c1"
        )
        self.start()

    def start(self):
        self.clock = ShiftedClock()
        self.service = Service(self.kits["overseer"], self.listener, clock=self.clock)
        self.task = asyncio.ensure_future(self.service.run())

    async def stop(self):
        self.service.stop()
        await asyncio.wait_for(self.task, 30)

    async def again(self):
        await self.stop()
        self.listener = listen("127.0.0.1", self.port)
        self.start()

    def signed(self, version, *names):
        return signed_list(self.authority, version, *(self.kits[name] for name in names))

    def replace_kit(self, name, version, policy=None):
        """Install a kit with a new certificate, and perhaps policy, as ``fedhelm kit install`` leaves it."""
        kit = self.kits[name]
        if policy is not None:
            (kit.startup / "authorization.json").write_text(policy)
        issued = self.authority.issue(kit.role, kit.name, kit.org)
        kit.cert.write_bytes(issued.cert)
        kit.key.write_bytes(issued.key)
        files = {path.name: path.read_bytes() for path in kit.startup.iterdir() if path.name != "signature.json"}
        draft = kit.root / "draft"
        draft.write_bytes(make_manifest(files, self.authority, version))
        draft.replace(kit.startup / "signature.json")
        return x509.load_pem_x509_certificate(issued.cert).serial_number

    def audit(self):
        lines = (self.kits["overseer"].root / "audit.jsonl").read_bytes().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
async def running(tmp_path):
    made = Running(tmp_path)
    yield made
    await made.stop()


async def off_loop(call, *args):
    return await asyncio.to_thread(call, *args)


async def test_a_revoked_server_is_refused_and_everybody_else_learns_of_it(running):
    heard = []
    one = OverseerClient(running.kits["server1"], announced=heard.append)
    gone = OverseerClient(running.kits["server2"])
    admin = OverseerConsoleClient(running.kits[ADMIN])
    async with one, gone:
        await one.servers()
        await gone.servers()
        assert (heard, one.revocations_version, await one.revocations()) == ([0], 0, b"")
        signed = running.signed(1, "server2")
        waiting = spawn(one.revocations(0, 30), "wait for a list")
        (said,) = await off_loop(admin.revoke, signed)
        assert (said.overseer, said.view.version, said.view.taken, said.error) == ("overseer", 1, True, None)
        assert await waiting == signed
        assert (heard, one.revocations_version) == ([0, 1], 1)
        with pytest.raises(BadCertificate, match="server server2 was revoked"):
            await gone.servers()
        assert (await one.revoke(signed)).taken is False
        with pytest.raises(BadCertificate):
            await gone.revoke(signed)
        assert await one.revocations(1) == b""
        await running.again()
        await eventually(one.health)
        with pytest.raises(BadCertificate, match="server server2 was revoked"):
            await gone.servers()
        await running.again()
    admin.close()
    lines = [(line["action"], line["by"]["name"], line["outcome"]) for line in running.audit() if line["by"]]
    assert ("POST /api/v1/revocations", ADMIN, "allowed") in lines
    assert ("GET /api/v1/servers", "server2", "denied") in lines


async def test_an_event_stream_of_an_admin_ends_when_the_admin_is_revoked(running):
    admin, server = OverseerConsoleClient(running.kits[ADMIN]), OverseerClient(running.kits["server1"])
    told = []

    def follow():
        try:
            told.extend(admin.events(0))
        except BadCertificate as error:
            return error
        return None

    following = spawn(off_loop(follow), "follow")
    await eventually(lambda: admin._streams)
    async with server:
        assert (await server.revoke(running.signed(1, ADMIN))).taken
        error = await asyncio.wait_for(following, 30)
    assert "was revoked" in str(error)
    admin.close()


async def test_a_list_of_another_root_and_an_older_one_are_refused_and_a_site_may_not(running):
    admin, site = OverseerConsoleClient(running.kits[ADMIN]), OverseerConsoleClient(running.kits["site-1"])
    forged = signed_list(CertificateAuthority.create("poc"), 9, running.kits["server1"])
    (said,) = await off_loop(admin.revoke, forged)
    assert said.view is None
    assert "not signed by this project's root" in str(said.error)
    await off_loop(admin.revoke, running.signed(2, "server2"))
    (said,) = await off_loop(admin.revoke, running.signed(1, "server1"))
    assert isinstance(said.error, Refused)
    (said,) = await off_loop(site.revoke, running.signed(3, "server1"))
    assert isinstance(said.error, NotAuthorised)
    assert json.loads(await off_loop(site.revocations))["version"] == 2
    admin.close()
    site.close()


def shown(kit, port):
    """Return the serial of the certificate that the overseer shows."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        client_context(kit).wrap_socket(plain, server_hostname="overseer") as tls,
    ):
        return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True)).serial_number


async def test_an_installed_kit_counts_for_new_connections_and_old_ones_go_on(running):
    kit = running.kits["server1"]
    async with OverseerClient(kit) as before:
        await before.servers()
        serial = running.replace_kit("overseer", 2)

        async def new_certificate():
            return await off_loop(shown, kit, running.port) == serial

        await eventually(new_certificate)
        assert len(await before.servers()) == 2
    async with OverseerClient(kit) as after:
        assert len(await after.servers()) == 2


POLICY = '{"format_version": "1.0", "permissions": {"project_admin": {"operate": "%s", "view": "any"}}}'


async def test_the_policy_of_an_installed_kit_counts_and_so_does_ones_own_and_a_mistake_in_it_changes_nothing(
    running, caplog
):
    admin, local = OverseerConsoleClient(running.kits[ADMIN]), running.kits["overseer"].local / "authorization.json"

    async def denied():
        try:
            await off_loop(admin.pause, OperateRequest(request_id=new_request_id()))
        except NotAuthorised as error:
            return "operate is none for project_admin" in str(error)
        return False

    async def allowed():
        return not await denied()

    with contextlib.closing(admin):
        assert await allowed()
        running.replace_kit("overseer", 2, POLICY % "none")
        await eventually(denied)
        assert (await off_loop(admin.system)).paused
        running.replace_kit("overseer", 3, POLICY % "any")
        await eventually(allowed)
        local.write_text(POLICY % "none")
        await eventually(denied)
        local.write_text(POLICY % "sometimes")
        await eventually(lambda: "the policy of before stays in force" in caplog.text)
        running.replace_kit("overseer", 4, POLICY % "any")
        await eventually(lambda: "the new kit of overseer cannot be used" in caplog.text)
        assert await denied()
        await running.stop()
        running.listener = listen("127.0.0.1", running.port)
        with pytest.raises(BadInput, match=r"local/authorization\.json:1:\d+: .*unknown condition 'sometimes'"):
            running.start()
        local.unlink()
        running.start()
        await eventually(allowed)


def connected(kit, port):
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    plain = socket.create_connection(("127.0.0.1", port), timeout=30)
    line.sock = client_context(kit).wrap_socket(plain, server_hostname="overseer")
    return line


def asked(line, method, path, body=None):
    line.request(method, f"/api/v1{path}", body, {"content-type": "application/json"})
    answer = line.getresponse()
    return answer.status, json.loads(answer.read())


async def test_a_connection_outlives_its_certificate_and_no_call_does(running):
    kit = running.kits[ADMIN]
    with contextlib.closing(await off_loop(connected, kit, running.port)) as kept:
        assert (await off_loop(asked, kept, "GET", "/system"))[0] == 200
        local = kept.sock.getsockname()
        running.clock.ahead = ends_of(kit) - SystemClock().utcnow() + timedelta(seconds=1)
        assert kept.sock.getsockname() == local
        status, body = await off_loop(asked, kept, "POST", "/failover/pause", '{"request_id": "r1"}')
        assert (status, body["code"]) == (401, "BAD_CERTIFICATE")
        assert "expired on" in body["message"]
        assert kept.sock is None  # the overseer closes it
    running.clock.ahead = timedelta(0)
    with contextlib.closing(await off_loop(connected, kit, running.port)) as again:
        assert (await off_loop(asked, again, "GET", "/system")) == (
            200,
            {"paused": False, "paused_by": None, "reason": None, "shutdown": None, "down": False},
        )


@pytest.mark.parametrize(
    ("ahead", "level", "said", "answer"),
    [
        ({}, "ok", "agrees with that of overseer", " answers"),
        ({"hours": 1}, "warn", " s behind that of overseer", " answers"),
        ({"days": -2}, "warn", " s ahead of that of overseer", " answers with HTTP status 401: the certificate of "),
    ],
)
async def test_a_clock_that_differs_from_an_overseers_is_found_before_the_start(running, ahead, level, said, answer):
    running.clock.ahead = timedelta(**ahead)
    found = await off_loop(lambda: list(ask_others(running.kits["server1"], SystemClock())))
    clock, overseer = (next(one for one in found if one.what == what) for what in ("clock", "overseer"))
    assert clock.level == level
    assert clock.said.endswith(said)
    assert answer in overseer.said
    assert overseer.level == ("ok" if answer == " answers" else "fail")


class Stumbling(socket.socket):
    """A listening socket of a process that has no more files, and then has some again."""

    fails = 3

    def accept(self):
        if self.fails:
            self.fails -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_an_overseer_that_cannot_accept_for_a_while_goes_on_later(running, monkeypatch, caplog):
    monkeypatch.setattr("fedhelm_overseer.https_server._PAUSE_S", 0.01)
    await running.stop()
    listener = listen("127.0.0.1", running.port)
    running.listener = Stumbling(listener.family, listener.type, listener.proto, fileno=listener.detach())
    running.listener.setblocking(False)
    running.start()
    async with OverseerClient(running.kits["server1"]) as one:
        await eventually(one.health)
    assert running.listener.fails == 0
    assert "no connection can be accepted: Too many open files" in caplog.text


async def test_a_crowd_without_certificates_keeps_nobody_out_who_has_one(running, monkeypatch):
    """Nor those who are in: they are not among those who make room."""
    monkeypatch.setattr("fedhelm_overseer.https_server.MAX_CONNECTIONS", 8)
    await running.again()
    kit = running.kits["site-1"]
    with contextlib.ExitStack() as crowd:
        inside = crowd.enter_context(contextlib.closing(await off_loop(connected, kit, running.port)))
        assert (await off_loop(asked, inside, "GET", "/system"))[0] == 200
        silent = [
            crowd.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=30)) for _ in range(40)
        ]
        late = crowd.enter_context(contextlib.closing(await off_loop(connected, kit, running.port)))
        assert (await off_loop(asked, late, "GET", "/system"))[0] == 200
        assert (await off_loop(asked, inside, "GET", "/system"))[0] == 200
        assert await off_loop(silent[0].recv, 1) == b""
        callers = [
            crowd.enter_context(contextlib.closing(await off_loop(connected, kit, running.port))) for _ in range(6)
        ]
        assert [(await off_loop(asked, one, "GET", "/system"))[0] for one in callers] == [200] * 6
        one_more = crowd.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=30))
        assert await off_loop(one_more.recv, 1) == b""


async def test_whom_tls_refuses_is_in_the_log_with_address_and_reason(running, caplog):
    stranger = CertificateAuthority.create("poc").issue("site", "site-1", "x")
    expired = running.authority.issue("site", "site-1", "x", start=SystemClock().utcnow() - timedelta(days=400))

    def context(name, issued):
        made = ssl.create_default_context(cafile=running.kits["site-1"].ca)
        if issued is not None:
            (running.kits["site-1"].root / f"{name}.pem").write_bytes(issued.cert + issued.key)
            made.load_cert_chain(running.kits["site-1"].root / f"{name}.pem")
        return made

    def knock(made, said=b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"):
        with (
            contextlib.suppress(ConnectionError, ssl.SSLError),
            socket.create_connection(("127.0.0.1", running.port), timeout=30) as plain,
        ):
            if made is None:
                plain.sendall(said)
                return plain.recv(65536)
            with made.wrap_socket(plain, server_hostname="overseer") as tls:
                tls.sendall(said)
                return tls.recv(65536)
        return b""

    def refused():
        return [record.getMessage() for record in caplog.records if "TLS refused" in record.getMessage()]

    for number, (name, issued) in enumerate(
        (("nobody", None), ("stranger", stranger), ("expired", expired), ("", None))
    ):
        assert await off_loop(knock, context(name, issued) if name else None) == b""
        await eventually(lambda number=number: len(refused()) > number)
        running.clock.boot += EVERY_S
    assert refused() == [
        "TLS refused 127.0.0.1: peer did not return a certificate",
        "TLS refused 127.0.0.1: unable to get local issuer certificate",
        "TLS refused 127.0.0.1: certificate has expired",
        "TLS refused 127.0.0.1: http request",
    ]
    assert (await off_loop(knock, client_context(running.kits["site-1"]))).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost: a\r\n", None])
async def test_a_head_that_does_not_end_is_cut_off(running, monkeypatch, sent):
    monkeypatch.setattr(ClientCertificateProtocol, "head_s", 0.3)
    kit = running.kits["site-1"]
    whole = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"

    def dawdle():
        with (
            socket.create_connection(("127.0.0.1", running.port), timeout=30) as plain,
            client_context(kit).wrap_socket(plain, server_hostname="overseer") as tls,
        ):
            if sent is None:  # the second request of a connection
                tls.sendall(whole)
                answer = b""
                while not answer.endswith(b"}"):
                    answer += tls.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200")
                tls.sendall(whole[:20])
            else:
                tls.sendall(sent)
            try:
                return tls.recv(65536)
            except (ConnectionError, ssl.SSLEOFError):
                return b""

    assert await asyncio.wait_for(off_loop(dawdle), 30) == b""


async def test_a_head_of_many_kilobytes_is_refused(running):
    kit = running.kits["site-1"]

    def ask():
        with (
            socket.create_connection(("127.0.0.1", running.port), timeout=30) as plain,
            client_context(kit).wrap_socket(plain, server_hostname="overseer") as tls,
        ):
            tls.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n" + b"x-long: " + b"a" * 20_000)
            return tls.recv(65536)

    answer = await asyncio.wait_for(off_loop(ask), 30)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"server:" not in answer.lower()
