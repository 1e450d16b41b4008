"""A real overseer behind real TLS, called by the real clients."""

from __future__ import annotations

import asyncio
import http.client
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from fedhelm.errors import BadCertificate, NoPrimary, NotAuthorised, NotFound, Refused, Unreachable
from fedhelm.process import child_env, read_state
from fedhelm.security.tls import client_context
from fedhelm.wire.overseer_api import ActivateRequest, BeatRequest, RegisterRequest, ReleaseRequest, RenewRequest
from fedhelm.wire.overseer_client import OverseerClient
from fedhelm.wire.overseer_console import OverseerConsoleClient
from fedhelm_overseer.service import Service, listen
from tests.support.kits import ADMIN, make_kits
from tests.support.waiting import eventually, eventually_sync


@pytest.fixture
async def overseer(tmp_path):
    """Kits, and a running overseer for them on a port that was free."""
    listener = listen("127.0.0.1", 0)
    # Profile wan: the observer looks once a second, so what is fast below was not waited for.
    kits = make_kits(tmp_path, servers=2, base_port=listener.getsockname()[1], timing="wan")
    service = Service(kits["overseer"], listener)
    running = asyncio.ensure_future(service.run())
    yield kits
    service.stop()
    await asyncio.wait_for(running, 5)


def registration(kit, incarnation, **rest):
    return RegisterRequest(incarnation=incarnation, cluster=kit.cluster, log_seq=0, ready=True, **rest)


async def register(client, kit, incarnation, **rest):
    reply = await client.register(registration(kit, incarnation, **rest))
    assert reply.accepted, reply
    return reply.lease


async def lead(client, incarnation, epoch):
    """Wait for the grant of ``epoch``, then fence."""

    async def granted():
        lease = await client.wait_lease(-1, 0)
        return lease if (lease.epoch, lease.incarnation) == (epoch, incarnation) else None

    await eventually(granted)
    return await client.activate(ActivateRequest(epoch=epoch, incarnation=incarnation, log_seq=epoch))


async def off_loop(call, *args):
    return await asyncio.get_running_loop().run_in_executor(None, call, *args)


async def test_a_released_lease_reaches_the_standby_through_its_long_poll_at_once(overseer):
    one, two = OverseerClient(overseer["server1"]), OverseerClient(overseer["server2"])
    async with one, two:
        await register(one, overseer["server1"], "aa")
        await register(two, overseer["server2"], "bb")
        active = await lead(one, "aa", 1)
        assert (active.holder, active.state) == ("server1", "active")
        renewal = RenewRequest(epoch=1, incarnation="aa", log_epoch=1, log_seq=5, role="ACTIVE")
        assert (await one.renew(renewal)).held
        assert (await one.primary()).ssid == "poc:1"
        beat = BeatRequest(incarnation="bb", role="STANDBY", log_epoch=1, log_seq=5, ready=True)
        seen = await two.beat(beat)

        waiting = asyncio.ensure_future(two.wait_lease(seen.version, 20))
        released = await one.release(ReleaseRequest(epoch=1, incarnation="aa", reason="exit status -9"))
        before = time.monotonic()
        lease = await waiting
        while lease.state == "released":
            lease = await two.wait_lease(lease.version, 20)
        assert (lease.epoch, lease.holder, lease.incarnation, lease.state) == (2, "server2", "bb", "granted")
        assert lease.cause == "exit status -9"
        assert released.state == "released"
        assert time.monotonic() - before < 1

        assert not (await one.renew(renewal)).held
        with pytest.raises(NoPrimary):
            await one.primary()
        await two.activate(ActivateRequest(epoch=2, incarnation="bb", log_seq=6))
        assert (await one.primary()).name == "server2"
        history = await one.history()
        assert [(term.epoch, term.holder, term.previous) for term in history] == [
            (1, "server1", None),
            (2, "server2", "server1"),
        ]
        assert 0 <= history[1].gap_s < 5


async def test_an_unknown_incarnation_is_told_to_register(overseer):
    async with OverseerClient(overseer["server1"]) as one:
        beat = BeatRequest(incarnation="aa", role="STANDBY", log_epoch=0, log_seq=0, ready=True)
        with pytest.raises(NotFound):
            await one.beat(beat)
        await register(one, overseer["server1"], "aa")
        assert (await one.beat(beat)).state in {"never", "granted"}


async def test_sites_and_admins_may_look_and_not_hold(overseer):
    for name in ("site-1", ADMIN):
        async with OverseerClient(overseer[name]) as caller:
            assert [server.state for server in await caller.servers()] == ["DOWN", "DOWN"]
            assert (await caller.health()).project == "poc"
            with pytest.raises(NotAuthorised) as refused:
                await register(caller, overseer[name], "aa")
            assert not isinstance(refused.value, BadCertificate)
            for call in (
                caller.wait_lease(-1, 0),
                caller.renew(RenewRequest(epoch=1, incarnation="aa", log_epoch=1, log_seq=1, role="ACTIVE")),
                caller.release(ReleaseRequest(epoch=1, incarnation="aa", reason="mine now")),
            ):
                with pytest.raises(NotAuthorised):
                    await call


def raw_request(kit, context, *, method="GET", path="/healthz", body=None, headers=()):
    """One request by hand, past our own clients; the server's name is not checked."""
    address = kit.overseers[0]
    connection = http.client.HTTPSConnection(address.host, address.port, context=context, timeout=5)
    try:
        connection.request(method, path, body=body, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def any_name(kit):
    context = client_context(kit)
    context.check_hostname = False
    return context


async def test_a_connection_without_a_certificate_is_refused(overseer):
    kit = overseer["server1"]
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(kit.ca)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await off_loop(raw_request, kit, bare)
    assert (await off_loop(raw_request, kit, any_name(kit)))[0] == 200


async def test_another_projects_certificate_is_refused(overseer, tmp_path):
    (tmp_path / "other").mkdir()
    stranger = make_kits(tmp_path / "other", servers=1, base_port=overseer["overseer"].overseers[0].port)["server1"]
    context = any_name(stranger)
    context.verify_mode = ssl.CERT_NONE
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await off_loop(raw_request, stranger, context)
    async with OverseerClient(stranger) as caller:
        with pytest.raises(BadCertificate):
            await caller.health()


async def test_tls_1_2_is_refused(overseer):
    context = any_name(overseer["server1"])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        await off_loop(raw_request, overseer["server1"], context)


async def test_identity_is_not_read_from_headers_or_body(overseer):
    """A server that names another one in its request registers itself."""
    kit = overseer["server1"]
    body = registration(kit, "aa").model_dump_json().replace("{", '{"name": "server2", ', 1)
    status, _ = await off_loop(
        lambda: raw_request(
            kit,
            any_name(kit),
            method="POST",
            path="/api/v1/servers/register",
            body=body,
            headers={"content-type": "application/json", "x-client": "fedhelm://poc/server/server2"},
        )
    )
    assert status == 200
    async with OverseerClient(kit) as caller:
        assert [server.incarnation for server in await caller.servers()] == ["aa", None]


async def test_the_console_client_follows_events_and_resumes(overseer):
    one, two = OverseerClient(overseer["server1"]), OverseerClient(overseer["server2"])
    seen, console = [], OverseerConsoleClient(overseer[ADMIN])

    def follow():
        seen.extend(iter_until(console.events(0), "failover"))

    follower = threading.Thread(target=follow)
    follower.start()
    async with one, two:
        await register(one, overseer["server1"], "aa")
        await register(two, overseer["server2"], "bb")
        await lead(one, "aa", 1)
        await one.release(ReleaseRequest(epoch=1, incarnation="aa", reason="exit status -9"))
        await lead(two, "bb", 2)
        await off_loop(follower.join, 10)
        kinds = [event.kind for event in seen]
        assert kinds[-1] == "failover"
        assert re.fullmatch(r"failover server1 -> server2  epoch 2  gap \d+\.\d s  \(exit status -9\)", seen[-1].text)
        assert {"grant", "active", "release", "member_up"} <= set(kinds)
        assert [event.id for event in seen] == sorted({event.id for event in seen})
        assert (await off_loop(console.primary)).epoch == 2
        assert [one.holder for one in await off_loop(console.history)] == ["server1", "server2"]
        middle = len(seen) // 2
        again = await off_loop(lambda: list(iter_until(console.events(seen[middle].id), "failover")))
        assert again == seen[middle + 1 :]
        latest = await off_loop(lambda: console.recent(1000))
        assert list(latest)[: len(seen)] == seen
        assert await off_loop(lambda: console.recent(2)) == latest[-2:]
        with pytest.raises(Refused, match="server1"):
            await off_loop(console.promote, "server1", "r1")
        with pytest.raises(NotFound, match="server9"):
            await off_loop(console.promote, "server9", "r2")
    console.close()


def iter_until(events, kind):
    for event in events:
        yield event
        if event.kind == kind:
            return


def start(kit):
    return subprocess.Popen(
        [sys.executable, "-m", "fedhelm.cli", "overseer", "--kit", str(kit.root)],
        env=child_env(kit.root, "overseer"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ready(kit, process):
    def check():
        assert process.poll() is None, process.stdout.read()
        state = read_state(kit.run)
        return bool(state and state["pid"] == process.pid and state["ready"])

    eventually_sync(check, timeout=30)


@pytest.fixture
def kits(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return make_kits(tmp_path, servers=2, base_port=port, timing="default")


@pytest.fixture
def processes():
    started = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.processes
async def test_a_restart_changes_no_primary_and_streams_do_not_delay_the_end(kits, processes):
    kit = kits["overseer"]
    processes.append(start(kit))
    await off_loop(ready, kit, processes[-1])
    renewal = RenewRequest(epoch=1, incarnation="aa", log_epoch=1, log_seq=5, role="ACTIVE")
    async with OverseerClient(kits["server1"]) as one:
        await register(one, kits["server1"], "aa")
        await lead(one, "aa", 1)
        console = OverseerConsoleClient(kits[ADMIN])
        events, found = console.events(0), []
        found.append(await off_loop(next, events))
        waiting = asyncio.ensure_future(one.wait_lease((await one.wait_lease(-1, 0)).version, 20))
        await asyncio.sleep(0)

        processes[-1].send_signal(signal.SIGTERM)
        before = time.monotonic()
        assert await off_loop(lambda: processes[-1].wait(10)) == 0
        assert time.monotonic() - before < 4
        await asyncio.wait([waiting])
        if waiting.exception() is not None:
            assert isinstance(waiting.exception(), Unreachable)
        with pytest.raises(Unreachable):
            await one.renew(renewal)

        processes.append(start(kit))
        await off_loop(ready, kit, processes[-1])

        async def held():
            with suppress(Unreachable):  # an answer has a fraction of a second, and the machine may be busy
                return await one.renew(renewal)

        reply = await eventually(held)
        assert reply.held
        assert (reply.lease.epoch, reply.lease.state) == (1, "active")
        assert (await one.primary()).name == "server1"
        after = await off_loop(next, events)
        assert after.id > found[0].id, "the stream went on by itself, with ids that rise"
        console.close()


@pytest.mark.processes
def test_a_taken_port_is_named(kits, processes):
    kit = kits["overseer"]
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", kit.own_overseer.port))
        squatter.listen()
        processes.append(start(kit))
        output, _ = processes[-1].communicate(timeout=30)
    assert processes[-1].returncode == 1
    assert "PORT_TAKEN" in output
    assert str(kit.own_overseer.port) in output


@pytest.mark.processes
def test_a_second_start_is_refused(kits, processes):
    kit = kits["overseer"]
    processes.append(start(kit))
    ready(kit, processes[-1])
    processes.append(start(kit))
    output, _ = processes[-1].communicate(timeout=30)
    assert processes[-1].returncode != 0
    assert "ALREADY_RUNNING" in output
    assert str(processes[0].pid) in output
    assert processes[0].poll() is None
