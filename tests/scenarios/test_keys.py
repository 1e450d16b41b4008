"""Keys change while a real federation works: certificates are renewed under a job, and one that was revoked counts no more."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import time

import grpc
import pytest

from fedhelm.process import marked_processes, read_state
from fedhelm.provision.install import install
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority, load_certificate, serial_of
from fedhelm.security.revocation import RevocationList, Revoked
from fedhelm.v1 import fleet_pb2
from fedhelm.wire.channels import sync_channel
from fedhelm.wire.faults import ERROR_KEY
from tests.support.federation import Federation
from tests.support.jobs import calls, make_job
from tests.support.kits import ADMIN, newer_kit
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("keys")]

SERVERS = ("server1", "server2")
METRICS_AT = 30


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    made = Federation(tmp_path_factory.mktemp("keys"), sites=2, servers=2)
    for number, server in enumerate(SERVERS):
        settings = made.kit(server) / "local" / "server.json"
        settings.write_text(json.dumps({"metrics_port": made.base_port + METRICS_AT + number}))
    try:
        made.start()
        made.leader()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def authority(standing):
    state = standing.root / "state"
    return CertificateAuthority.load("poc", (state / "rootCA.pem").read_bytes(), (state / "rootCA.key").read_bytes())


def serial(standing, name):
    kit = open_kit(standing.kit(name))
    return serial_of(load_certificate(kit.cert.read_bytes(), name))


def shown(standing, name, port):
    """The serial of the certificate that something shows at a port."""
    kit = open_kit(standing.kit(ADMIN))
    context = ssl.create_default_context(cafile=kit.ca)
    context.load_cert_chain(kit.cert, kit.key)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as tls,
    ):
        return tls.getpeercert()["serialNumber"].lower().lstrip("0")


def ports(standing, name):
    own = open_kit(standing.kit(name)).own_server
    return own.fed_learn_port, own.admin_port, standing.base_port + METRICS_AT + SERVERS.index(name)


def daemons(standing, *names):
    """The processes that live as long as their participant runs."""
    marks = ("supervisor", "child", "agent")
    return {
        (name, one.mark, one.pid) for name in names for one in marked_processes(standing.kit(name)) if one.mark in marks
    }


def installed(standing, authority, name, version):
    folder = standing.folder / f"{name}-{version}"
    new = newer_kit(open_kit(standing.kit(name)), authority, folder, version)
    standing.run("kit", "install", str(standing.kit(name)), str(folder), check=True)
    return new


def test_certificates_are_renewed_under_a_running_job_and_nothing_restarts(standing, authority, tmp_path):
    job_folder, shared = make_job(tmp_path / "job")
    (shared / "hold-site-2-2").touch()
    job = standing.submit(job_folder)
    eventually_sync(lambda: calls(shared, "site-2") == ["train 1", "train 2"], 30, standing.tails())
    before = daemons(standing, *SERVERS, "site-1", "site-2")
    assert len(before) == 6
    epoch = standing.primary()["epoch"]

    new = {name: installed(standing, authority, name, 2) for name in (*SERVERS, "site-1", "site-2", ADMIN)}
    for server in SERVERS:
        for port in ports(standing, server):
            eventually_sync(lambda s=server, p=port: shown(standing, s, p) == new[s], 20, standing.tails())
    for name in (*SERVERS, "site-1", "site-2"):
        eventually_sync(lambda n=name: "version 2 of the kit" in standing.log(n), 20, standing.tails())
    (shared / "gate-site-2-2").touch()
    assert standing.wait(job) == "FINISHED:COMPLETED", standing.tails()
    assert calls(shared, "site-2") == ["train 1", "train 2", "train 3"]
    assert daemons(standing, *SERVERS, "site-1", "site-2") == before
    assert standing.primary()["epoch"] == epoch


def refused(standing, server, kit):
    """The code with which a server refuses a call with this kit's certificate; None where it does not."""
    own = open_kit(standing.kit(server)).own_server
    with contextlib.closing(sync_channel(kit, own.host, own.fed_learn_port, server)) as channel:
        call = channel.unary_unary("/fedhelm.v1.Fleet/PushLines", fleet_pb2.LineBatch.SerializeToString)
        try:
            call(fleet_pb2.LineBatch(), timeout=10)
        except grpc.RpcError as error:
            found = dict(error.trailing_metadata() or ())
            return json.loads(found[ERROR_KEY])["code"] if ERROR_KEY in found else None
    return None


def test_a_revoked_certificate_is_refused_by_every_server_and_its_stream_ends(standing, authority):
    kit = open_kit(standing.kit("site-1"))
    leader = standing.leader()["name"]
    eventually_sync(lambda: read_state(kit.run)["ready"], 20, standing.tails())
    entry = Revoked(serial(standing, "site-1"), "site", "site-1", "2026-11-23T00:00:00.000Z", "laptop stolen")
    signed = RevocationList(kit.project, kit.cluster, 1, "2026-11-23T00:00:00.000Z", (entry,)).to_bytes(authority)
    (standing.folder / "revoked.json").write_bytes(signed)
    assert {refused(standing, server, kit) for server in SERVERS} != {"BAD_CERTIFICATE"}

    begun = time.monotonic()
    said = standing.console(f"revoke_certificates {standing.folder / 'revoked.json'}", "--yes")
    assert said.rc == 0, said.out + said.err + standing.tails()
    handed_over = time.monotonic()
    for server in SERVERS:
        eventually_sync(lambda s=server: refused(standing, s, kit) == "BAD_CERTIFICATE", 20, standing.tails())
    seen = time.monotonic()
    eventually_sync(lambda: "site-1 disconnected" in standing.log(leader), 20, standing.tails())
    state = eventually_sync(lambda: (s := read_state(kit.run))["ready"] is False and s, 20, standing.tails())
    assert "was revoked on 2026-11-23: laptop stolen" in state["reason"]
    assert standing.status("site-1")["reason"] == state["reason"]
    eventually_sync(lambda: "was revoked" in standing.log("site-1"), 20, standing.tails())
    assert standing.log("site-1").count("was revoked") == 1, standing.log("site-1")
    told = f"handed over after {handed_over - begun:.2f} s, refused everywhere {seen - handed_over:.2f} s later"
    print(told)  # noqa: T201 - for whoever measures

    installed(standing, authority, "site-1", 3)
    eventually_sync(lambda: read_state(kit.run)["ready"], 30, standing.tails())
    eventually_sync(lambda: "site-1 connected" in standing.log(leader).rpartition("disconnected")[2], 20, "connected")


def test_the_root_is_rotated_under_a_running_job(standing, authority, tmp_path):
    """Begin, switch, finish: each with kits for everybody, in an order that nobody agreed on."""
    job_folder, shared = make_job(tmp_path / "job")
    (shared / "hold-site-1-2").touch()
    job = standing.submit(job_folder)
    eventually_sync(lambda: calls(shared, "site-1") == ["train 1", "train 2"], 30, standing.tails())
    everybody = ["overseer", *SERVERS, "site-1", "site-2", ADMIN]
    before = daemons(standing, *SERVERS, "site-1", "site-2")
    epoch = standing.primary()["epoch"]
    new = CertificateAuthority.create("poc")
    steps = [
        {"trusting": authority.trusting(new.signing_pem)},
        {"trusting": new.trusting(authority.signing_pem), "issuer": new, "signer": authority},
        {"trusting": new, "issuer": new},
    ]
    for version, options in enumerate(steps, start=4):
        random.shuffle(everybody)
        for name in everybody:
            folder = standing.folder / f"{name}-{version}"
            roots, signer = options["trusting"], options.get("signer")
            kit, issuer = open_kit(standing.kit(name)), options.get("issuer", authority)
            newer_kit(kit, issuer, folder, version, trusting=roots, signer=signer)
            install(standing.kit(name), folder)
        for name in everybody:
            if name != ADMIN:
                what = f"version {version} of the kit"
                eventually_sync(lambda n=name, w=what: standing.log(n).count(w) >= (n in SERVERS) + 1, 20, what)
    (shared / "gate-site-1-2").touch()
    assert standing.wait(job) == "FINISHED:COMPLETED", standing.tails()
    assert calls(shared, "site-1") == ["train 1", "train 2", "train 3"]
    assert daemons(standing, *SERVERS, "site-1", "site-2") == before
    assert standing.primary()["epoch"] == epoch
    assert "is not used" not in "".join(map(standing.log, (*SERVERS, "overseer", "site-1", "site-2")))
