"""What a site or an admin with a good certificate may not do to a server, and to everybody else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedhelm.errors import BadCertificate, BadInput, NotAuthorised, ProtocolError
from fedhelm.persist.blobs import blake3_hex
from fedhelm.security.identity import Principal
from fedhelm.security.pki import CertificateAuthority, load_key, sign
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.bulk import receive_blob
from fedhelm_server import admin_service, fleet_service, streams
from fedhelm_server.admin_service import LOGIN_CONTEXT, AdminService
from fedhelm_server.disk_budget import DiskBudget
from fedhelm_server.fleet_service import FleetService
from fedhelm_server.holding import Holding
from tests.fakes.persist_memory import MemoryBlobStore
from tests.fakes.server_log import JOB, OTHER, Clock
from tests.support.calls import called


class Runtime:
    """As much of a leading server as the checks before the log need; to reach anything else is a failure."""

    def __init__(self):
        self.clock = Clock()
        self.on_change = []
        self.kit = SimpleNamespace(project="poc", name="server1", servers=("server1",), sites=(), run=None)
        self.epoch = 1
        self.streams = streams.Streams()
        self.holding = Holding()
        self.book = SimpleNamespace(
            jobs={
                JOB: SimpleNamespace(job=JOB, sites=("site-1",), ephemeral=False),
                OTHER: SimpleNamespace(job=OTHER, sites=("site-2",)),
            },
            running=lambda: iter(()),
        )

    async def check_leads(self):
        pass


def site(name="site-1"):
    return called(Principal("poc", "site", name), "Fleet.Contribute")


@pytest.fixture
def runtime():
    return Runtime()


@pytest.fixture
def service(runtime):
    return FleetService(runtime, DiskBudget(MemoryBlobStore()))


def lines(*texts):
    return fleet.LineBatch(job=JOB, lines=[fleet.Line(number=at, json=text) for at, text in enumerate(texts, 1)])


async def test_a_batch_is_measured_before_it_is_read(service, monkeypatch):
    monkeypatch.setattr(fleet_service, "_json_object", lambda *_: pytest.fail("it was parsed"))
    with pytest.raises(BadInput, match="a batch of 1001 lines"):
        await service.push_lines(lines(*["{}"] * (fleet_service.MAX_LINES + 1)), site())
    with pytest.raises(BadInput, match="larger than"):
        await service.push_lines(lines("x" * (fleet_service.MAX_LINE_BYTES + 1)), site())
    huge = fleet.Contribution(job=JOB, site="site-1", metrics_json="x" * (fleet_service.MAX_METRICS_BYTES + 1))
    with pytest.raises(BadInput, match="metrics of"):
        await service.contribute(huge, site())


async def test_a_stranger_does_not_learn_which_blobs_there_are(service):
    owner = f"jobs/{OTHER}/0-1/sites"
    blob = common.BlobRef(owner=owner, digest="0" * 64, size=1)
    request = fleet.Contribution(job=OTHER, site="site-1", step=0, round=1, kind="train", blob=blob, weight=1)
    with pytest.raises(NotAuthorised, match="no member"):
        await service.contribute(request, site())


async def test_an_upload_announces_no_more_chunks_than_it_has():
    async def messages():
        manifest = common.Manifest(size=1, chunk_size=1, chunks=[blake3_hex(b"x")])
        header = common.PutBlobHeader(owner="jobs/x", manifest=manifest, indices=[0] * 100_000)
        yield header.SerializeToString()
        pytest.fail("its bytes were read")

    with pytest.raises(ProtocolError, match="announces a chunk"):
        await receive_blob(messages(), MemoryBlobStore(), lambda _: None)


def test_what_a_site_says_it_holds_is_ids_and_not_without_end(monkeypatch):
    monkeypatch.setattr(streams, "MAX_HELD", 2)
    stream = streams.SiteStream("site-1", "i1")
    names = ["\x1b[2Jowned", JOB, "../../etc", OTHER, "abcdefghijkn"]
    stream.hold([fleet.HeldJob(job=name, status="RUNNING" * 100) for name in names])
    assert list(stream.held) == [JOB, OTHER]
    assert all(len(status) <= streams.MAX_STATUS for status in stream.held.values())


class Admin:
    """One admin who logs in."""

    def __init__(self, tmp_path, service, name):
        issued = CertificateAuthority.create("poc").issue("project_admin", name, "org")
        self._key = tmp_path / f"{name}.key"
        self._key.write_bytes(issued.key)
        assert load_key(issued.key, "key")
        context = SimpleNamespace(auth_context=lambda: {"x509_pem_cert": [issued.cert]})
        self.call = called(Principal("poc", "project_admin", name), "Admin.Login", context=context)
        self._service = service

    async def challenge(self):
        return (await self._service.challenge(common.Empty(), self.call)).nonce

    async def login(self, nonce):
        signature = sign(self._key, LOGIN_CONTEXT + nonce)
        request = admin.LoginRequest(nonce=nonce, signature=signature, wire_versions=[1])
        return (await self._service.login(request, self.call)).principal


@pytest.fixture
def desk(runtime):
    return AdminService(runtime, SimpleNamespace())


async def test_no_admin_locks_out_another_by_asking_for_nonces(tmp_path, desk):
    eve, bob = Admin(tmp_path, desk, "eve@x.org"), Admin(tmp_path, desk, "bob@x.org")
    nonce = await bob.challenge()
    many = [await eve.challenge() for _ in range(admin_service.MAX_NONCES * 3)]
    assert await bob.login(nonce) == "bob@x.org"
    assert await bob.login(await bob.challenge()) == "bob@x.org"
    assert await eve.login(many[-1]) == "eve@x.org"
    with pytest.raises(BadCertificate):
        await eve.login(many[0])


async def test_a_nonce_serves_its_own_admin_once_and_in_time(tmp_path, runtime, desk):
    eve, bob = Admin(tmp_path, desk, "eve@x.org"), Admin(tmp_path, desk, "bob@x.org")
    nonce = await bob.challenge()
    with pytest.raises(BadCertificate):
        await eve.login(nonce)
    await bob.login(nonce)
    with pytest.raises(BadCertificate, match="repeated"):
        await bob.login(nonce)
    late = await bob.challenge()
    runtime.clock.now += admin_service.NONCE_S + 1
    with pytest.raises(BadCertificate, match="too long"):
        await bob.login(late)
