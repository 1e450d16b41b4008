"""What admins ask of a real overseer process, over TLS: it is kept across its death; a server that it did not know."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import subprocess
import sys

import pytest

from fedhelm.process import child_env, read_state
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.tls import client_context
from fedhelm.wire.announcement import announcement_of
from fedhelm.wire.overseer_api import ActivateRequest, RegisterRequest, ReleaseRequest
from fedhelm.wire.overseer_client import OverseerClient
from tests.support.kits import ADMIN, make_kits
from tests.support.waiting import eventually, eventually_sync

pytestmark = pytest.mark.processes


class Overseer:
    """A process that is started, killed and started again on the same kit."""

    def __init__(self, kit):
        self.kit = kit
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedhelm.cli", "overseer", "--kit", str(self.kit.root)],
            env=child_env(self.kit.root, "overseer"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )

        def ready():
            assert self.process.poll() is None
            state = read_state(self.kit.run)
            return bool(state and state["pid"] == self.process.pid and state["ready"])

        eventually_sync(ready, timeout=30)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def kits(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    authority = CertificateAuthority.create("poc")
    (tmp_path / "first").mkdir()
    (tmp_path / "later").mkdir()
    first = make_kits(tmp_path / "first", servers=2, base_port=port, timing="default", authority=authority)
    cluster = first["overseer"].cluster
    later = make_kits(
        tmp_path / "later", servers=3, base_port=port, timing="default", authority=authority, cluster=cluster
    )
    return first | {"server3": later["server3"]}


@pytest.fixture
def overseer(kits):
    made = Overseer(kits["overseer"])
    made.start()
    yield made
    made.kill()


async def ask(kit, method, path, body=None):
    """One request as another program would send it; returns status and body."""

    def call():
        address = kit.overseers[0]
        context = client_context(kit)
        connection = http.client.HTTPSConnection(address.host, address.port, context=context, timeout=10)
        context.check_hostname = False
        try:
            headers = {"content-type": "application/json"} if body is not None else {}
            connection.request(method, path, body=json.dumps(body) if body is not None else None, headers=headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, json.loads(text) if text.startswith(("{", "[")) else text
        finally:
            connection.close()

    return await asyncio.get_running_loop().run_in_executor(None, call)


async def register(client, kit, incarnation, **rest):
    reply = await client.register(
        RegisterRequest(incarnation=incarnation, cluster=kit.cluster, log_seq=0, ready=True, **rest)
    )
    assert reply.accepted, reply
    return reply.lease


async def lead(client, incarnation, epoch):
    async def granted():
        lease = await client.wait_lease(-1, 0)
        return lease if (lease.epoch, lease.incarnation) == (epoch, incarnation) else None

    await eventually(granted)
    await client.activate(ActivateRequest(epoch=epoch, incarnation=incarnation, log_seq=epoch))


async def test_a_pause_outlives_the_overseers_death_and_is_over_at_once_when_resumed(kits, overseer):
    admin = kits[ADMIN]
    async with OverseerClient(kits["server1"]) as one, OverseerClient(kits["server2"]) as two:
        await register(one, kits["server1"], "aa")
        await register(two, kits["server2"], "bb")
        await lead(one, "aa", 1)
        pause = {"request_id": "p1", "reason": "new switches"}
        assert (await ask(admin, "POST", "/api/v1/failover/pause", pause))[0] == 200
        overseer.kill()
        overseer.start()
        status, system = await ask(admin, "GET", "/api/v1/system")
        assert (status, system["paused"], system["paused_by"], system["reason"]) == (200, True, ADMIN, "new switches")
        await register(two, kits["server2"], "bb")
        await one.release(ReleaseRequest(epoch=1, incarnation="aa", reason="exit status -9"))

        async def alarmed():
            events = (await ask(admin, "GET", "/api/v1/events/recent"))[1]
            return any(event["kind"] == "alarm" and "paused" in event["text"] for event in events)

        await eventually(alarmed)
        assert (await one.wait_lease(-1, 0)).state == "released"
        explained = (await ask(admin, "GET", "/api/v1/servers/server2/explain"))[1]
        assert explained["verdict"] == f"server2 could lead, but failover is paused by {ADMIN}."
        assert explained["next"] is None

        assert (await ask(admin, "POST", "/api/v1/failover/resume", {"request_id": "p2"}))[0] == 200
        await lead(two, "bb", 2)
        # The first answer may have been lost: asked again, it pauses nothing.
        assert not (await ask(admin, "POST", "/api/v1/failover/pause", pause))[1]["paused"]
        status, text = await ask(admin, "GET", "/metrics")
        assert status == 200
        assert "fedhelm_overseer_epoch 2.0" in text.splitlines()
        assert 'fedhelm_overseer_grants_total{cause="released"} 1.0' in text.splitlines()


async def test_a_server_that_the_overseer_did_not_know_joins_leads_and_is_removed(kits, overseer):
    admin, new = kits[ADMIN], kits["server3"]
    async with OverseerClient(new) as three:
        await register(three, new, "cc", announcement=announcement_of(new))
        await lead(three, "cc", 1)
        overseer.kill()
        overseer.start()
        status, servers = await ask(admin, "GET", "/api/v1/servers")
        assert [server["name"] for server in servers] == ["server1", "server2", "server3"]
        assert servers[2]["fed_learn_port"] == new.own_server.fed_learn_port
        status, refusal = await ask(admin, "POST", "/api/v1/servers/server3/remove", {"request_id": "x1"})
        assert (status, refusal["code"]) == (409, "REFUSED")
        assert "server3 holds the lease, epoch 1" in refusal["message"]
        await three.release(ReleaseRequest(epoch=1, incarnation="cc", reason="shutdown"))

        async def removed():
            status, left = await ask(admin, "POST", "/api/v1/servers/server3/remove", {"request_id": "x2"})
            return status == 200 and [server["name"] for server in left]

        assert await eventually(removed, timeout=20) == ["server1", "server2"]
        reply = await three.register(
            RegisterRequest(incarnation="dd", cluster=new.cluster, announcement=announcement_of(new))
        )
        assert not reply.accepted
        assert "server3 was removed at" in reply.message


async def test_a_shutdown_is_seen_by_the_servers_and_kept(kits, overseer):
    async with OverseerClient(kits["server1"]) as one:
        before = await register(one, kits["server1"], "aa")
        assert before.shutdown is None
        status, system = await ask(kits[ADMIN], "POST", "/api/v1/shutdown", {"request_id": "s1"})
        assert (status, system["shutdown"], system["down"]) == (200, "s1", False)
        lease = await one.wait_lease(before.version, 10)
        assert lease.shutdown == "s1"
        overseer.kill()
        overseer.start()

        async def down():
            system = (await ask(kits[ADMIN], "GET", "/api/v1/system"))[1]
            assert system["shutdown"] == "s1"
            return system["down"]  # not before a term has shown that nobody lives

        await eventually(down)
