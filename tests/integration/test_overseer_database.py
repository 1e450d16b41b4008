"""Overseers on one PostgreSQL, behind real TLS: the database is away, freezes, and comes back."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from fedhelm.errors import KitError, StoreUnavailable, Unreachable
from fedhelm.provision.kits import write_kits
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.tls import client_context
from fedhelm.wire.overseer_api import ActivateRequest, RegisterRequest, RenewRequest
from fedhelm.wire.overseer_client import OverseerClient
from fedhelm_lab.workspace import plan
from fedhelm_overseer.lease_place import lease_place
from fedhelm_overseer.service import Service, listen
from tests.support.federation import free_base_port
from tests.support.postgres import postgres  # noqa: F401  a fixture
from tests.support.waiting import eventually


class Overseers:
    """Two overseers' services in this event loop, and the kits of all participants."""

    def __init__(self, tmp_path, url):
        project = plan(1, 2, free_base_port(6), overseers=2, lease_store=url)
        authority = CertificateAuthority.create(project.name)
        self.kits = {name: open_kit(root) for name, root in write_kits(project, authority, tmp_path).items()}
        self.url = url
        self.opened = []
        self.waiting = []
        self._services = {}

    async def start(self, name):
        address = self.kits[name].own_overseer
        listener = await asyncio.to_thread(listen, address.host, address.port)
        service = Service(
            self.kits[name], listener, opened=lambda: self.opened.append(name), waiting=self.waiting.append
        )
        self._services[name] = service, asyncio.ensure_future(service.run())

    async def stop(self, name):
        service, running = self._services.pop(name)
        service.stop()
        await asyncio.wait_for(running, 20)

    async def close(self):
        for name in list(self._services):
            await self.stop(name)

    def client(self, server, overseer):
        """A server's client of one overseer alone."""
        kit = self.kits[server]
        only = tuple(one for one in kit.overseers if one.name == overseer)
        return OverseerClient(
            type(kit)(**{**{f: getattr(kit, f) for f in kit.__dataclass_fields__}, "overseers": only})
        )

    async def get(self, overseer, path):
        address = self.kits[overseer].own_overseer
        kit = self.kits["server1"]
        url = f"https://{address.host}:{address.port}{path}"
        async with httpx.AsyncClient(verify=client_context(kit), trust_env=False, timeout=10) as http:
            return await http.get(url, extensions={"sni_hostname": address.name})

    async def status(self, overseer, path="/api/v1/history"):
        try:
            return (await self.get(overseer, path)).status_code
        except httpx.TransportError:
            return None


@pytest.fixture
async def overseers(tmp_path, postgres):  # noqa: F811
    made = Overseers(tmp_path, postgres.url(postgres.database()))
    yield made
    await made.close()


async def register(client, kit, incarnation):
    request = RegisterRequest(incarnation=incarnation, cluster=kit.cluster, log_seq=0, ready=True)
    reply = await client.register(request)
    assert reply.accepted, reply


async def test_an_overseer_that_starts_before_its_database_answers_503_and_then_serves(overseers, postgres):  # noqa: F811
    await asyncio.to_thread(postgres.stop)
    try:
        await overseers.start("overseer")
        assert await eventually(lambda: overseers.status("overseer", "/healthz")) == 503
        refusal = (await overseers.get("overseer", "/api/v1/primary")).json()
        assert refusal["code"] == "STORE_UNAVAILABLE"
        assert "refused" not in json.dumps(refusal), "what the database said is for the overseer's log"
        assert any("Connection refused" in str(error) for error in overseers.waiting)
        assert overseers.opened == []
    finally:
        postgres.start()  # here: it ends with the thread that starts it

    async def healthy():
        return await overseers.status("overseer", "/healthz") == 200

    await eventually(healthy, 20)
    assert overseers.opened == ["overseer"]


async def test_a_lease_granted_by_one_overseer_is_renewed_at_the_other_and_outlives_the_first(overseers):
    await overseers.start("overseer")
    await overseers.start("overseer2")
    kits = overseers.kits
    first, second = overseers.client("server1", "overseer"), overseers.client("server1", "overseer2")
    async with first, second:
        await eventually(lambda: overseers.status("overseer2", "/healthz"))
        for client in (first, second):
            await register(client, kits["server1"], "aa")
        rows = [await client.wait_lease(-1, 0) for client in (first, second)]

        async def granted(client):
            row = await client.wait_lease(-1, 0)
            return row if row.holder == "server1" else None

        rows = [await eventually(lambda client=client: granted(client), 20) for client in (first, second)]
        assert [(row.epoch, row.incarnation) for row in rows] == [(1, "aa"), (1, "aa")]
        await first.activate(ActivateRequest(epoch=1, incarnation="aa", log_seq=1))
        await overseers.stop("overseer")
        renewal = RenewRequest(epoch=1, incarnation="aa", log_epoch=1, log_seq=5, role="ACTIVE")
        assert (await second.renew(renewal)).held
        assert (await second.primary()).ssid == "poc:1"
        assert len(await second.history()) == 1


async def test_while_the_database_is_frozen_calls_answer_503_and_then_everything_goes_on(overseers, postgres):  # noqa: F811
    await overseers.start("overseer")

    async def answers(status):
        return await overseers.status("overseer") == status

    await eventually(lambda: answers(200), 20)
    with postgres.frozen():
        await eventually(lambda: answers(503), 30)
        refusal = (await overseers.get("overseer", "/api/v1/history")).json()
        assert refusal["code"] == "STORE_UNAVAILABLE"
        assert await overseers.status("overseer", "/healthz") == 503
        assert (await overseers.get("overseer", "/api/v1/servers")).status_code == 200, "what it knows it still says"
    await eventually(lambda: answers(200), 30)


@pytest.mark.parametrize(
    "loss", ["DROP TABLE lease, history, members, counters, operations, servers", "UPDATE lease SET epoch = 1"]
)
async def test_a_database_emptied_or_restored_under_the_overseers_keeps_the_primary(overseers, postgres, loss):  # noqa: F811
    for name in ("overseer", "overseer2"):
        await overseers.start(name)
    kit = overseers.kits["server1"]
    clients = [overseers.client("server1", name) for name in ("overseer", "overseer2")]
    async with clients[0], clients[1]:
        for client in clients:
            request = RegisterRequest(incarnation="aa", cluster=kit.cluster, log_epoch=4, log_seq=9, ready=True)
            await eventually(lambda client=client, request=request: accepted(client, request), 20)

        async def granted():
            for client in clients:  # who says nothing for T is down, and is granted nothing
                await accepted(client, request)
            row = await clients[0].wait_lease(-1, 0)
            return row if row.holder == "server1" else None

        first = await eventually(granted, 20)
        assert first.epoch == 5, "above what the log has"
        await clients[0].activate(ActivateRequest(epoch=5, incarnation="aa", log_seq=10))
        renewal = RenewRequest(epoch=5, incarnation="aa", log_epoch=5, log_seq=11, role="ACTIVE")
        assert (await clients[0].renew(renewal)).held
        name = overseers.url.split("?")[0].rsplit("/", 1)[1]
        await asyncio.to_thread(postgres.execute, loss, name)

        async def held(client):
            try:
                reply = await client.renew(renewal)
            except (Unreachable, StoreUnavailable):
                return None
            return reply if reply.held else None

        for client in (*clients, *clients):
            reply = await eventually(lambda client=client: held(client), 20)
            assert (reply.lease.epoch, reply.lease.holder) == (5, "server1")
        assert (await clients[1].primary()).ssid == "poc:5"
        assert [line.epoch for line in await clients[1].history()] == [5]


async def accepted(client, request):
    try:
        return (await client.register(request)).accepted
    except (Unreachable, StoreUnavailable):
        return False


def test_the_overseers_own_file_comes_before_the_kit_and_alone_may_hold_a_password(tmp_path):
    project = plan(1, 1, 20000)
    roots = write_kits(project, CertificateAuthority.create(project.name), tmp_path)
    kit = open_kit(roots["overseer"])
    assert lease_place(kit) == "sqlite"
    own = kit.local / "overseer.json"
    own.write_text(json.dumps({"lease_store": "postgresql://u:hidden@h/db"}))
    own.chmod(0o600)
    assert lease_place(kit) == "postgresql://u:hidden@h/db"
    own.chmod(0o644)
    with pytest.raises(KitError, match="carries a password") as caught:
        lease_place(kit)
    assert "hidden" not in f"{caught.value} {caught.value.hint}"
    assert "chmod 600" in caught.value.hint
    for text in ("{", "[]", '{"lease_store": 1}', '{"lease": "sqlite"}', '{"lease_store": "mysql://u:hidden@h/d"}'):
        own.write_text(text)
        with pytest.raises(KitError, match=r"overseer\.json") as caught:
            lease_place(kit)
        assert "hidden" not in f"{caught.value} {caught.value.hint}"


async def test_a_file_that_cannot_be_used_ends_the_overseer_at_once(tmp_path):
    project = plan(1, 1, 20000)
    roots = write_kits(project, CertificateAuthority.create(project.name), tmp_path)
    kit = open_kit(roots["overseer"])
    kit.run.mkdir()
    (kit.run / "overseer.db").mkdir()
    listener = listen("127.0.0.1", 0)
    with pytest.raises(StoreUnavailable, match=r"unable to open database file"):
        Service(kit, listener)
    listener.close()
