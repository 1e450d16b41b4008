from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import pytest

from fedhelm.errors import KitError
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.tls import client_context, server_context
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
