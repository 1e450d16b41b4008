from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import threading

import pytest

from fedhelm.errors import BadCertificate, KitError
from fedhelm.provision.install import exchange
from fedhelm.security.pki import CertificateAuthority, load_certificate, serial_of
from fedhelm.security.tls import client_context, read_credentials, refresh_server, server_context
from tests.support.kits import make_kits


@pytest.fixture
def kits(tmp_path):
    return make_kits(tmp_path)


def shake_hands(server, client, name):
    """One handshake and one byte each way over a socketpair; returns (version, peer's URIs) or raises the client's error."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)
    failures = []

    def serve():
        try:
            with server.wrap_socket(ours, server_side=True) as tls:
                tls.recv(1)
                tls.sendall(b"!")
        except OSError as error:
            failures.append(error)
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(theirs, server_hostname=name) as tls:
            tls.sendall(b"?")
            # In TLS 1.3 a refused client certificate shows at the first read.
            if tls.recv(1) != b"!":
                raise ssl.SSLError("closed without an answer")
            return tls.version(), [value for kind, value in tls.getpeercert()["subjectAltName"] if kind == "URI"]
    finally:
        with contextlib.suppress(OSError):
            theirs.close()
        thread.join(10)
        assert not thread.is_alive()


def test_both_sides_show_a_certificate_over_tls_13(kits):
    version, uris = shake_hands(server_context(kits["server1"]), client_context(kits["site-1"]), "server1")
    assert version == "TLSv1.3"
    assert uris == ["fedhelm://poc/server/server1"]


def test_the_name_decides_and_not_the_host_that_was_dialled(kits):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname"):
        shake_hands(server_context(kits["server1"]), client_context(kits["site-1"]), "overseer")


def test_no_site_can_pose_as_a_server(kits):
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        shake_hands(server_context(kits["site-1"]), client_context(kits["admin@nvidia.com"]), "site-1")


def test_a_client_without_a_certificate_is_refused(kits):
    anonymous = ssl.create_default_context(cafile=kits["server1"].ca)
    with pytest.raises(OSError, match=r"(?i)certificate|closed|reset|broken|eof"):
        shake_hands(server_context(kits["server1"]), anonymous, "server1")


def test_another_root_is_refused_by_both_sides(kits, tmp_path):
    (tmp_path / "other").mkdir()
    others = make_kits(tmp_path / "other", authority=CertificateAuthority.create("poc"))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server_context(others["server1"]), client_context(kits["site-1"]), "server1")
    mixed = client_context(others["site-1"])
    mixed.load_verify_locations(cafile=kits["site-1"].ca)
    with pytest.raises(OSError, match=r"(?i)unknown|certificate|closed|reset|broken|eof"):
        shake_hands(server_context(kits["server1"]), mixed, "server1")


def test_tls_12_is_refused(kits):
    old = client_context(kits["site-1"])
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError, match=r"(?i)version|protocol|closed|reset"):
        shake_hands(server_context(kits["server1"]), old, "server1")


def test_a_missing_key_is_named(kits):
    kits["server1"].key.unlink()
    with pytest.raises(KitError, match=r"server\.crt or its key"):
        server_context(kits["server1"])


def replaced(kit, issuer, trusting):
    """Give the kit a new certificate of ``issuer``, and the roots of ``trusting``."""
    issued = issuer.issue(kit.role, kit.name, kit.org)
    kit.cert.write_bytes(issued.cert)
    kit.key.write_bytes(issued.key)
    kit.ca.write_bytes(trusting.cert_pem)


class Listening:
    """A server that listens with one context for its whole life, as uvicorn and asyncio do; answers each with a byte."""

    def __init__(self, context):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(20)
        self._context = context
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                connection.settimeout(20)
                with contextlib.suppress(OSError), self._context.wrap_socket(connection, server_side=True) as tls:
                    while tls.recv(1):
                        tls.sendall(b"!")

    def dial(self, context, name):
        """Return the serial of the certificate that the server shows now."""
        raw = socket.create_connection(("127.0.0.1", self.port), 20)
        with context.wrap_socket(raw, server_hostname=name) as tls:
            tls.sendall(b"?")
            if tls.recv(1) != b"!":
                raise ssl.SSLError("closed without an answer")
            return tls.getpeercert()["serialNumber"]

    def close(self):
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_a_root_is_rotated_under_one_listening_context(tmp_path):
    old, new = CertificateAuthority.create("poc"), CertificateAuthority.create("poc")
    kits = make_kits(tmp_path, authority=old)
    server, site = kits["server1"], kits["site-1"]
    listening_context, dialling = server_context(server), client_context(site)
    with contextlib.closing(Listening(listening_context)) as listening:
        first = listening.dial(dialling, "server1")

        replaced(server, old, old.trusting(new.signing_pem))  # begin: both are trusted, the old one signs
        replaced(site, old, old.trusting(new.signing_pem))
        refresh_server(listening_context, server)
        dialling = client_context(site)
        second = listening.dial(dialling, "server1")
        assert second != first

        replaced(server, new, new.trusting(old.signing_pem))  # switch: the new one signs
        refresh_server(listening_context, server)
        assert listening.dial(dialling, "server1") not in (first, second)
        before = client_context(site)
        replaced(site, new, new)
        dialling = client_context(site)
        listening.dial(dialling, "server1")
        listening.dial(before, "server1")

        server.ca.write_bytes(new.cert_pem)  # finish: nobody trusts the old one any more
        refresh_server(listening_context, server)
        listening.dial(dialling, "server1")
        before.check_hostname = False
        for name in ("server1", None):  # who says no name gets no former roots either
            with pytest.raises(OSError, match=r"(?i)unknown|certificate|closed|reset|broken|eof"):
                listening.dial(before, name)


def test_a_certificate_that_does_not_load_leaves_the_context_as_it_was(kits):
    context, dialling = server_context(kits["server1"]), client_context(kits["site-1"])
    with contextlib.closing(Listening(context)) as listening:
        first = listening.dial(dialling, "server1")
        kits["server1"].key.write_bytes(CertificateAuthority.create("poc").issue("site", "x", "y").key)
        with pytest.raises(KitError, match="cannot be used for TLS"):
            refresh_server(context, kits["server1"])
        assert listening.dial(dialling, "server1") == first


def refusing(serial):
    def check(seen):
        if seen == serial:
            raise BadCertificate("the certificate of server server1 was revoked on 2026-11-23: stolen")

    return check


async def test_who_dials_may_refuse_a_certificate_that_was_revoked(kits):
    serial = serial_of(load_certificate(kits["server1"].cert.read_bytes(), "x"))
    good, bad = (client_context(kits["site-1"], refusing(one)) for one in ("1", serial))
    with contextlib.closing(Listening(server_context(kits["server1"]))) as listening:
        assert int(listening.dial(good, "server1"), 16) == int(serial, 16)
        assert int(await serial_at(listening.port, good), 16) == int(serial, 16)
        with pytest.raises(ssl.SSLCertVerificationError, match="was revoked on 2026-11-23: stolen"):
            listening.dial(bad, "server1")
        with pytest.raises(ssl.SSLCertVerificationError, match="was revoked on 2026-11-23: stolen"):
            await serial_at(listening.port, bad)


def test_roots_certificate_and_key_are_those_of_one_kit_while_kits_take_turns(kits):
    """The folder is exchanged in one step, and the former one deleted, as `kit install` does."""
    kit, draft = kits["site-1"], kits["site-1"].root / "draft"
    stop = threading.Event()
    for path in (kit.ca, kit.cert, kit.key):
        path.write_bytes(b"0")

    def turns():
        version = 0
        while not stop.is_set():
            version += 1
            draft.mkdir()
            for path in (kit.ca, kit.cert, kit.key):
                (draft / path.name).write_bytes(str(version).encode())
            exchange(kit.startup, draft)
            shutil.rmtree(draft)

    thread = threading.Thread(target=turns)
    thread.start()
    try:
        seen = set()
        while len(seen) < 20:
            try:
                found = read_credentials(kit)
            except KitError:
                continue  # three folders in a row were deleted while it read
            assert len({found.ca, found.cert, found.key}) == 1
            seen.add(found.cert)
    finally:
        stop.set()
        thread.join(20)
    shutil.rmtree(kit.startup)
    with pytest.raises(KitError, match="cannot be read: No such file"):
        read_credentials(kit)


def test_no_session_is_resumed(kits):
    context, dialling = server_context(kits["server1"]), client_context(kits["site-1"])
    with (
        contextlib.closing(Listening(context)) as listening,
        dialling.wrap_socket(
            socket.create_connection(("127.0.0.1", listening.port), 20), server_hostname="server1"
        ) as tls,
    ):
        tls.sendall(b"?")
        tls.recv(1)
        assert tls.session is None or not tls.session.has_ticket


async def serial_at(port, context):
    """Return the serial number of the certificate that a server shows over asyncio's TLS, as uvicorn and httpx use it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="server1")
    try:
        writer.write(b"?")
        assert await asyncio.wait_for(reader.read(1), 10) == b"!"
        return writer.get_extra_info("peercert")["serialNumber"]
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_asyncios_server_takes_a_new_certificate_and_connections_go_on(tmp_path):
    old, new = CertificateAuthority.create("poc"), CertificateAuthority.create("poc")
    kits = make_kits(tmp_path, authority=old)
    context, dialling = server_context(kits["server1"]), client_context(kits["site-1"])

    async def echo(reader, writer):
        with contextlib.suppress(OSError):
            while await reader.read(1):
                writer.write(b"!")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=dialling, server_hostname="server1")
    try:
        first = await serial_at(port, dialling)
        replaced(kits["server1"], new, new)
        replaced(kits["site-1"], new, new)
        refresh_server(context, kits["server1"])
        assert await serial_at(port, client_context(kits["site-1"])) != first
        with pytest.raises(OSError, match=r"(?i)verify failed"):
            await serial_at(port, dialling)
        writer.write(b"?")
        assert await asyncio.wait_for(reader.read(1), 10) == b"!"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        server.close()
        await server.wait_closed()
