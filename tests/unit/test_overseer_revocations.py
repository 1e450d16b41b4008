"""The list of revoked certificates at an overseer: taken, refused, kept for the others, and in force at once."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedhelm.errors import BadInput, Refused, StoreUnavailable
from fedhelm.security.audit import AuditFile, AuditTrail
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.pki import CertificateAuthority
from fedhelm.tasks import spawn
from fedhelm.wire.overseer_api import ActivateRequest, RegisterRequest
from fedhelm_overseer.app import create_app
from fedhelm_overseer.decide import Wait
from fedhelm_overseer.desk import Desk
from tests.fakes.overseer_clock import FakeClock
from tests.fakes.overseer_store import MemoryLeaseStore
from tests.support.kits import ADMIN, make_kits
from tests.support.revoking import serial_of, signed_list

OTHER = "second@nvidia.com"
PATH = "/api/v1/revocations"
HEADER = "fedhelm-revocations"


class Office:
    """Overseers on one store; kits and the root that signs their lists."""

    def __init__(self, folder):
        self.authority = CertificateAuthority.create("poc")
        self.kits = make_kits(folder, servers=2, authority=self.authority, cluster="c1", admins=(ADMIN, OTHER))
        self.store = MemoryLeaseStore()
        self.clock = FakeClock()
        self.folder = folder
        self.desk = self.open()

    def open(self, place="overseer"):
        """An overseer whose own disk is at ``place``."""
        root = self.folder / place
        if not root.exists():
            shutil.copytree(self.kits["overseer"].root / "startup", root / "startup")
        kit = dataclasses.replace(self.kits["overseer"], root=root)
        self.kept = KeptRevocations(kit)
        return Desk(kit, self.store, self.clock, self.kept)

    def signed(self, version, *names, authority=None):
        return signed_list(authority or self.authority, version, *(self.kits[name] for name in names))


@pytest.fixture
def office(tmp_path):
    return Office(tmp_path)


def test_a_list_is_in_force_at_once_on_disk_in_the_store_and_told(office):
    desk = office.desk
    before = desk.lease().version
    view = desk.trust.hand_over(ADMIN, office.signed(1, "site-1"))
    assert (view.version, view.certificates, view.taken) == (1, 1, True)
    assert not desk.revocations.counts(serial_of(office.kits["site-1"]))
    assert desk.revocations.counts(serial_of(office.kits["server1"]))
    assert office.store.revocations() == (1, desk.revocations.signed)
    assert desk.lease().version > before, "a long poll on the lease ends"
    (event,) = desk.feed.after(0)
    assert (event.kind, event.data["version"], event.data["by"]) == ("revoke", 1, ADMIN)
    assert event.text == f"{ADMIN} handed over version 1 of the list of revoked certificates: site site-1"
    assert KeptRevocations(office.kits["overseer"]).current.version == 1


def test_the_same_again_is_no_mistake_and_an_older_or_another_one_is(office):
    hand_over = office.desk.trust.hand_over
    hand_over(ADMIN, office.signed(2, "site-1", "server2"))
    assert hand_over(OTHER, office.signed(2, "site-1", "server2")).taken is False
    with pytest.raises(Refused, match=r"version 2 of the list .* is in force, this is version 1"):
        hand_over(ADMIN, office.signed(1, "site-1"))
    with pytest.raises(Refused, match=r"another list .* of version 2"):
        hand_over(ADMIN, office.signed(2, "site-1"))
    assert len(office.desk.feed.after(0)) == 1


def test_what_the_root_did_not_sign_changes_nothing(office):
    forged = office.signed(3, "site-1", authority=CertificateAuthority.create("poc"))
    for data in (forged, b"", b"{}", b"[" * 100_000, office.signed(3, "site-1").replace(b"stolen", b"st0len")):
        with pytest.raises(BadInput):
            office.desk.trust.hand_over(ADMIN, data)
    assert office.desk.revocations.current.version == 0
    assert office.store.revocations() == (0, b"")


def test_another_overseer_on_the_store_has_it_with_its_next_look(office):
    other = office.open("other")
    office.desk.trust.hand_over(ADMIN, office.signed(1, "site-1"))
    assert other.revocations.current.version == 0
    other.observe()
    assert other.revocations.current.version == 1
    assert office.kept.signed == office.desk.revocations.signed, "on its own disk too"
    assert [event.text for event in other.feed.after(0)] == [
        "another overseer handed over version 1 of the list of revoked certificates: site site-1"
    ]
    assert office.open("third").revocations.current.version == 1, "one that starts has it from the store"


def test_an_emptied_store_gets_the_list_back_and_a_restored_one_the_newest(office):
    desk = office.desk
    desk.trust.hand_over(ADMIN, office.signed(1, "site-1"))
    old = office.store
    desk.trust.hand_over(ADMIN, office.signed(2, "site-1", "server2"))
    office.store = MemoryLeaseStore()
    assert office.open().revocations.current.version == 2, "from its own disk"
    assert office.store.revocations() == (2, desk.revocations.signed)
    old._revocations = (1, office.signed(1, "site-1"))  # a backup was restored below the overseer
    office.clock.advance(office.kits["overseer"].timing.lease)
    desk.observe()
    assert old.revocations() == (2, desk.revocations.signed)


def test_a_damaged_copy_on_disk_is_said_and_made_good_from_the_store(office, caplog):
    office.desk.trust.hand_over(ADMIN, office.signed(2, "site-1"))
    (office.folder / "overseer" / "run" / "revoked.json").write_bytes(b"{}")
    again = office.open()
    assert "not a list of revoked certificates" in caplog.text
    assert again.revocations.current.version == 2
    assert b"fedhelm_overseer_revocations_version 2.0" in again.metrics()
    assert KeptRevocations(office.kits["overseer"]).problem is None


def test_what_cannot_be_verified_in_the_store_is_left_alone_until_something_newer_comes(office):
    desk = office.desk
    desk.trust.hand_over(ADMIN, office.signed(1, "site-1"))
    office.store.revoke(7, b"{}", over=1)
    desk.observe()
    assert desk.revocations.current.version == 1
    assert desk.trust.hand_over(ADMIN, office.signed(2, "site-1", "server2")).version == 2
    assert office.store.revocations() == (7, b"{}")
    desk.trust.hand_over(ADMIN, office.signed(8, "site-1"))
    assert office.store.revocations()[0] == 8


def test_while_the_store_is_away_the_list_is_in_force_here_and_the_others_get_it_later(office):
    desk = office.desk
    office.store.broken = True
    with pytest.raises(StoreUnavailable, match="version 1 is in force at this overseer, and cannot be kept"):
        desk.trust.hand_over(ADMIN, office.signed(1, "site-1"))
    assert not desk.revocations.counts(serial_of(office.kits["site-1"]))
    office.store.broken = False
    office.clock.advance(office.kits["overseer"].timing.lease)
    desk.observe()
    assert office.store.revocations()[0] == 1


def test_an_overseer_that_lost_everything_takes_the_list_from_a_server(office):
    signed = office.signed(4, "site-1")
    assert office.desk.trust.hand_over("server1", signed).taken
    assert office.desk.revocations.signed == signed


def lead(desk, office):
    """server1 leads epoch 1, server2 stands by; each calls with the certificate of its kit."""
    for name, incarnation in (("server1", "aa"), ("server2", "bb")):
        desk.came(name, incarnation, serial_of(office.kits[name]))
        desk.register(name, RegisterRequest(incarnation=incarnation, cluster="c1", log_seq=0, ready=True))
    while not isinstance(desk.observe(), Wait):
        pass
    desk.activate("server1", ActivateRequest(epoch=1, incarnation="aa", log_seq=1))
    assert desk.primary().name == "server1"


def test_a_primary_that_is_revoked_is_replaced_at_once(office):
    lead(office.desk, office)
    office.desk.trust.hand_over(ADMIN, office.signed(1, "server1"))
    while not isinstance(office.desk.observe(), Wait):
        pass
    row = office.store.read()
    assert (row.epoch, row.holder.name, row.state, row.cause) == (
        2,
        "server2",
        "granted",
        "its certificate was revoked",
    )


def test_a_primary_whose_former_certificate_is_revoked_leads_on(office):
    lead(office.desk, office)
    office.desk.came("server1", "aa", "1234")
    office.desk.trust.hand_over(ADMIN, office.signed(1, "server1", "server2"))
    assert isinstance(office.desk.observe(), Wait)
    assert (office.store.read().epoch, office.store.read().state) == (1, "active")


@pytest.fixture
async def edge(office, tmp_path):
    """(call, office, trail): requests of participants, as the TLS protocol puts them."""
    threads, clients = ThreadPoolExecutor(2), {}
    trail = AuditTrail(AuditFile(tmp_path / "audit.jsonl"))
    app = create_app(office.kits["overseer"], office.desk, threads, trail)
    office.desk.changed.attach()
    office.desk.feed.bell.attach()

    def client(name):
        der = x509.load_pem_x509_certificate(office.kits[name].cert.read_bytes()).public_bytes(Encoding.DER)

        async def with_certificate(scope, receive, send):
            await app({**scope, "extensions": {"tls": {"client_cert_der": der}}}, receive, send)

        return httpx.AsyncClient(transport=httpx.ASGITransport(app=with_certificate), base_url="https://overseer")

    async def call(name, method, path, **options):
        if name not in clients:
            clients[name] = client(name)
        async with asyncio.timeout(30):
            return await clients[name].request(method, path, **options)

    def lines():
        trail.flush(30)
        return [json.loads(line) for line in (tmp_path / "audit.jsonl").read_bytes().splitlines()]

    yield call, office, lines
    for one in clients.values():
        await one.aclose()
    trail.close()
    threads.shutdown()


async def test_every_answer_names_the_version_and_the_list_comes_as_it_was_signed(edge):
    call, office, _ = edge
    assert (await call("site-1", "GET", PATH)).status_code == 204
    signed = office.signed(3, "server2")
    answer = await call(ADMIN, "POST", PATH, content=signed)
    assert (answer.status_code, answer.json()["version"], answer.json()["taken"]) == (200, 3, True)
    answer = await call("site-1", "GET", PATH)
    assert (answer.status_code, answer.content) == (200, signed)
    assert (await call("site-1", "GET", f"{PATH}?after=3")).status_code == 204
    for name, method, path in (
        ("site-1", "GET", "/healthz"),
        ("site-1", "GET", "/api/v1/primary"),  # 503
        ("site-1", "GET", "/api/v1/nothing"),  # 404
        ("site-1", "POST", "/api/v1/promote"),  # 403
        ("server2", "GET", "/api/v1/lease"),  # 401
    ):
        assert (await call(name, method, path)).headers[HEADER] == "3", path


async def test_who_was_revoked_is_refused_everywhere_and_who_was_not_goes_on(edge):
    call, office, _ = edge
    office.desk.trust.hand_over(ADMIN, office.signed(1, "site-1", OTHER))
    for name in ("site-1", OTHER):
        for method, path in (("GET", "/healthz"), ("GET", "/api/v1/servers"), ("POST", PATH), ("GET", "/nothing")):
            answer = await call(name, method, path)
            assert (answer.status_code, answer.json()["code"]) == (401, "BAD_CERTIFICATE")
            assert "was revoked on 2026-11-22: laptop stolen" in answer.json()["message"]
            assert answer.headers["connection"] == "close"
    assert (await call(ADMIN, "GET", "/api/v1/servers")).status_code == 200


async def test_a_wait_for_a_newer_list_and_one_on_the_lease_end_with_it(edge):
    call, office, _ = edge
    version = (await call("server1", "GET", "/api/v1/lease")).json()["version"]
    waiting = spawn(call("site-1", "GET", f"{PATH}?after=0&wait=30"), "wait")
    polling = spawn(call("server1", "GET", f"/api/v1/lease?after={version}&wait=30"), "poll")
    revoked = spawn(call("server2", "GET", f"/api/v1/lease?after={version}&wait=30"), "poll")
    answer = await call(ADMIN, "POST", PATH, content=office.signed(1, "server2"))
    assert answer.status_code == 200
    assert json.loads((await waiting).content)["version"] == 1
    assert (await polling).json()["version"] > version
    assert (await revoked).status_code == 401


async def test_the_certificate_that_a_holder_calls_with_is_the_one_that_counts(edge):
    call, office, _ = edge
    for name in ("server1", "server2"):
        body = {"incarnation": f"of-{name}", "cluster": "c1", "log_seq": 0, "ready": True}
        assert (await call(name, "POST", "/api/v1/servers/register", json=body)).json()["accepted"]
    await asyncio.to_thread(office.desk.observe)
    assert (office.store.read().state, office.store.read().holder.name) == ("granted", "server1")
    assert (await call(ADMIN, "POST", PATH, content=office.signed(1, "server1"))).status_code == 200
    await asyncio.to_thread(office.desk.observe)
    row = office.store.read()
    assert (row.epoch, row.holder.name, row.cause) == (2, "server2", "its certificate was revoked")


async def test_an_event_stream_of_somebody_revoked_ends(edge):
    _, office, _ = edge
    serial = serial_of(office.kits["site-1"])
    stream = office.desk.feed.stream(None, lambda: 3600.0 if office.desk.revocations.counts(serial) else 0.0)
    others = office.desk.feed.stream(None)
    assert await anext(stream) == await anext(others) == b": fedhelm\n\n"
    ended = spawn(asyncio.wait_for(anext(stream, None), 30), "end")
    hears = spawn(asyncio.wait_for(anext(others), 30), "hear")
    await asyncio.to_thread(office.desk.trust.hand_over, ADMIN, office.signed(1, "site-1"))
    assert await ended is None
    assert b'"version":1' in await hears


@pytest.mark.parametrize(("caller", "status"), [(ADMIN, 200), ("server1", 200), ("site-1", 403), ("overseer", 403)])
async def test_who_may_hand_it_over(edge, caller, status):
    call, office, _ = edge
    assert (await call(caller, "POST", PATH, content=office.signed(1, "server2"))).status_code == status
    assert office.desk.revocations.current.version == (1 if status == 200 else 0)


@dataclasses.dataclass
class Caller:
    """What a request shows of somebody for whom no kit was written."""

    cert: Path
    authority: CertificateAuthority


@pytest.mark.parametrize(("role", "may"), [("org_admin", True), ("lead", False), ("member", False)])
async def test_nobody_can_revoke_anybody_without_the_root_whatever_the_role(edge, tmp_path, role, may):
    """An administrator of one organisation hands over what the root signed; an own list, signed with the own key, no."""
    call, office, lines = edge
    issued = office.authority.issue(role, "anna@alpha.org", "alpha")
    own = CertificateAuthority.load("poc", issued.cert, issued.key)
    (tmp_path / "anna.crt").write_bytes(issued.cert)
    office.kits["anna"] = Caller(tmp_path / "anna.crt", own)
    answer = await call("anna", "POST", PATH, content=office.signed(1, "site-1", authority=own))
    assert answer.status_code == (400 if may else 403)
    assert office.desk.revocations.current.version == 0
    answer = await call("anna", "POST", PATH, content=office.signed(1, "site-1"))
    assert answer.status_code == (200 if may else 403)
    assert office.desk.revocations.current.version == (1 if may else 0)
    outcomes = [line["outcome"] for line in lines() if line["by"] and line["by"]["role"] == role]
    assert outcomes == (["failed", "allowed"] if may else ["denied", "denied"])


async def test_a_forged_an_old_and_a_huge_list_are_refused_with_the_reason(edge):
    call, office, _ = edge
    office.desk.trust.hand_over(ADMIN, office.signed(2, "server2"))
    forged = office.signed(3, "site-1", authority=CertificateAuthority.create("poc"))
    for content, status, why in (
        (forged, 400, "not signed by this project's root"),
        (office.signed(1, "site-1"), 409, "version 2"),
        (b"", 400, "cannot be read as JSON"),
        (b" " * (4 * 1024 * 1024 + 1), 413, "larger than 4194304 bytes"),
    ):
        answer = await call(ADMIN, "POST", PATH, content=content)
        assert answer.status_code == status
        assert why in answer.json()["message"]


async def test_the_audit_file_has_what_was_done_and_what_was_denied_and_no_look(edge):
    call, office, lines = edge
    await call(ADMIN, "GET", "/api/v1/servers")
    await call(ADMIN, "POST", "/api/v1/failover/pause", json={"request_id": "r1"})
    await call("site-1", "POST", "/api/v1/servers/server2/remove", json={"request_id": "r2"})
    await call(ADMIN, "POST", "/api/v1/servers/server9/remove", json={"request_id": "r3"})
    await call(ADMIN, "POST", "/api/v1/promote", json={"target": 1})  # no request id
    await call(ADMIN, "POST", PATH, content=office.signed(1, "site-1"))
    await call("site-1", "GET", "/api/v1/servers/server2/explain")
    found = [(line["action"], line["outcome"], (line["by"] or {}).get("name")) for line in lines()]
    assert found == [
        ("POST /api/v1/failover/pause", "allowed", ADMIN),
        ("POST /api/v1/servers/{name}/remove", "denied", "site-1"),
        ("POST /api/v1/servers/{name}/remove", "failed", ADMIN),
        ("POST /api/v1/promote", "failed", ADMIN),
        ("POST /api/v1/revocations", "allowed", ADMIN),
        ("GET /api/v1/servers/{name}/explain", "denied", "site-1"),
    ]
    assert [line["object"] for line in lines()][1:5] == [
        {"server": "server2"},
        {"server": "server9"},
        {},
        {"taken": "True", "version": "1"},
    ]
