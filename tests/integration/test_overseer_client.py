"""A server's calls to several overseers at once, over real sockets and TLS: what answers, hangs, refuses, is gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from fedhelm.config.kit import OverseerAddress
from fedhelm.errors import BadCertificate, NotFound, Refused, Unreachable
from fedhelm.process import child_env, read_state
from fedhelm.security.pki import CertificateAuthority, load_certificate, serial_of
from fedhelm.tasks import spawn
from fedhelm.wire import overseer_api as api
from fedhelm.wire.overseer_client import OverseerClient
from tests.fakes.overseer_server import ScriptedOverseer, wrong
from tests.support.kits import make_kits
from tests.support.waiting import eventually

# Closing a client breaks off handshakes with a black hole, and httpx leaves such sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

RENEWAL = api.RenewRequest(epoch=1, incarnation="aa", log_epoch=1, log_seq=5, role="ACTIVE")
BEAT = api.BeatRequest(incarnation="aa", role="STANDBY", log_epoch=1, log_seq=5, ready=True)
RELEASE = api.ReleaseRequest(epoch=1, incarnation="aa", reason="exit status -9")
ACTIVATE = api.ActivateRequest(epoch=1, incarnation="aa", log_seq=5)
REGISTER = api.RegisterRequest(incarnation="aa", log_epoch=1, log_seq=4, ready=True)


@pytest.fixture
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kits(tmp_path, authority):
    yield make_kits(tmp_path, timing="wan", authority=authority)
    gc.collect()


class Federation:
    """Scripted overseers, and one client that knows them and whatever else listens at `ports`."""

    def __init__(self, kits):
        self.kits = kits
        self.stack = contextlib.AsyncExitStack()
        self.first = self.second = self.client = None

    async def start(self, *ports, scripted=2, q=60.0):
        """With a Q of a minute, what comes within ten seconds was not waited for."""
        found = [await self.stack.enter_async_context(ScriptedOverseer(self.kits["overseer"])) for _ in range(scripted)]
        self.first, self.second = (*found, None, None)[:2]
        where = [*ports, *(one.port for one in found)]
        kit = self.kits["server1"]
        addresses = tuple(OverseerAddress("overseer", "127.0.0.1", port) for port in where)
        self.client = await self.stack.enter_async_context(
            OverseerClient(replace(kit, overseers=addresses, timing=replace(kit.timing, request=q)))
        )
        return self


@pytest.fixture
async def federation(kits):
    made = Federation(kits)
    async with made.stack:
        yield made


@pytest.fixture
def black_hole():
    """A port that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener.getsockname()[1]


@contextlib.contextmanager
def soon(seconds=10.0):
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


async def tell_all(client):
    await client.register(REGISTER)
    assert (await client.renew(RENEWAL)).held
    await client.beat(BEAT)
    await client.activate(ACTIVATE)
    await client.release(RELEASE)


async def test_every_overseer_hears_what_a_server_tells(federation):
    await federation.start()
    await tell_all(federation.client)
    for one in (federation.first, federation.second):
        for kind in ("register", "renew", "beat", "activate", "release"):
            await eventually(lambda one=one, kind=kind: len(one.of(kind)) == 1, what=kind)


async def test_a_black_hole_costs_nothing(federation, black_hole):
    await federation.start(black_hole, scripted=1)
    await tell_all(federation.client)  # connections are made
    with soon():
        for _ in range(20):
            await tell_all(federation.client)
            await federation.client.wait_lease(-1, 0)


async def test_a_black_hole_is_read_from_once_and_then_asked_last(federation, black_hole):
    await federation.start(black_hole, scripted=1, q=4.0)
    assert await federation.client.servers() == ()
    assert federation.client._lanes[0].address.port == federation.first.port  # it answered last


async def test_calls_of_a_new_kit_show_its_certificate_and_those_on_their_way_go_on(federation, authority):
    await federation.start(scripted=1)
    kit, overseer, client = federation.kits["server1"], federation.first, federation.client
    poll = spawn(client.wait_lease(overseer.row.version, 60), "poll")
    await eventually(lambda: overseer.polls)
    await client.beat(BEAT)
    assert set(overseer.serials) == {serial_of(load_certificate(kit.cert.read_bytes(), "x"))}

    issued = authority.issue(kit.role, kit.name, kit.org)
    kit.cert.write_bytes(issued.cert)
    kit.key.write_bytes(issued.key)
    client.reconnect(client._kit)
    await client.beat(BEAT)
    await client.servers()
    assert set(overseer.serials[2:]) == {issued.serial}
    assert not poll.done()
    overseer.change(version=overseer.row.version + 1)
    assert (await poll).version == overseer.row.version


async def test_an_overseer_whose_certificate_was_revoked_is_not_told_a_thing(federation):
    await federation.start(scripted=1, q=5.0)
    revoked = []

    def check(serial):
        if serial in revoked:
            raise BadCertificate("the certificate of overseer overseer was revoked on 2026-11-23: stolen")

    async with OverseerClient(federation.client._kit, check=check) as client:
        await client.beat(BEAT)
        revoked.append(serial_of(load_certificate(federation.kits["overseer"].cert.read_bytes(), "x")))
        client.reconnect()
        with pytest.raises(BadCertificate, match="overseer was revoked on 2026-11-23: stolen"):
            await client.beat(BEAT)
    assert len(federation.first.of("beat")) == 1


async def test_calls_to_one_that_hangs_do_not_pile_up(federation):
    await federation.start()
    federation.first.answers = dict.fromkeys(("renew", "beat", "release"), "hang")
    for _ in range(10):
        assert (await federation.client.renew(RENEWAL)).held
        await federation.client.beat(BEAT)
        await federation.client.release(RELEASE)
    await eventually(lambda: all(federation.first.of(kind) for kind in ("renew", "beat", "release")))
    assert [federation.first.most[kind] for kind in ("renew", "beat", "release")] == [1, 1, 1]
    assert len(federation.second.of("renew")) == 10
    federation.first.answers.clear()
    federation.first.going.set()

    async def heard():
        await federation.client.renew(RENEWAL)
        return len(federation.first.of("renew")) > 2

    await eventually(heard)


@pytest.mark.processes
async def test_a_stopped_overseer_costs_nothing(federation, kits, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "real").mkdir()
    real = make_kits(tmp_path / "real", base_port=port, timing="wan")["overseer"]
    process = subprocess.Popen(  # noqa: ASYNC220 - to be stopped and killed by its id, from here
        [sys.executable, "-m", "fedhelm.cli", "overseer", "--kit", str(real.root)], env=child_env(real.root, "overseer")
    )
    try:
        await eventually(lambda: (read_state(real.run) or {}).get("ready"), timeout=30)
        await federation.start(port, scripted=1)
        await federation.client.beat(BEAT)
        os.kill(process.pid, signal.SIGSTOP)
        with soon():
            for _ in range(10):
                assert (await federation.client.renew(RENEWAL)).held
                await federation.client.beat(BEAT)
    finally:
        process.kill()
        process.wait()


async def test_one_that_is_gone_and_one_that_fails_count_as_nothing(federation):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        await federation.start(closed.getsockname()[1])
    federation.first.answers = dict.fromkeys(("renew", "beat", "lease"), wrong(503, "STORE_UNAVAILABLE"))
    assert (await federation.client.renew(RENEWAL)).held
    await federation.client.beat(BEAT)
    assert (await federation.client.wait_lease(-1, 0)).epoch == 1
    federation.second.answers = federation.first.answers
    for call in (federation.client.renew(RENEWAL), federation.client.wait_lease(-1, 0)):
        with soon(), pytest.raises(Unreachable) as silence:
            await call
        assert len(silence.value.tried) == 3


async def test_held_wins_over_not_held_whoever_answers_first(federation):
    await federation.start()
    not_held = (200, api.RenewReply(held=False, lease=federation.first.row).model_dump_json())
    federation.first.answers["renew"] = not_held
    federation.second.answers["renew"] = "hang"
    waiting = asyncio.ensure_future(federation.client.renew(RENEWAL))
    await eventually(lambda: federation.first.of("renew") and federation.second.of("renew"))
    federation.second.going.set()
    assert (await waiting).held
    federation.second.answers["renew"] = not_held
    with soon():
        assert not (await federation.client.renew(RENEWAL)).held


async def test_a_refusal_counts_when_nobody_answers_better_in_time(federation, black_hole):
    await federation.start(black_hole, scripted=1, q=0.5)
    federation.first.answers = {
        "renew": (200, api.RenewReply(held=False, lease=federation.first.row).model_dump_json()),
        "release": wrong(409, "REFUSED"),
        "beat": wrong(404, "NOT_FOUND"),
    }
    with soon():
        assert not (await federation.client.renew(RENEWAL)).held
    with soon(), pytest.raises(Refused):
        await federation.client.release(RELEASE)
    with soon(), pytest.raises(NotFound):
        await federation.client.beat(BEAT)


async def test_an_overseer_that_forgot_an_incarnation_is_told_again_by_the_client(federation):
    await federation.start()
    await federation.client.register(REGISTER)
    await eventually(lambda: federation.first.of("register") and federation.second.of("register"))
    federation.first.answers["beat"] = wrong(404, "NOT_FOUND")
    await federation.client.beat(BEAT.model_copy(update={"log_seq": 9}))
    again = await eventually(lambda: len(r := federation.first.of("register")) == 2 and r[1])
    assert (again["incarnation"], again["log_seq"]) == ("aa", 9)
    assert len(federation.second.of("register")) == 1
    await federation.client.beat(BEAT.model_copy(update={"incarnation": "bb"}))  # not the one that was registered
    await eventually(lambda: len(federation.first.of("beat")) == 2)
    assert len(federation.first.of("register")) == 2


async def test_all_deny_is_denied(federation):
    await federation.start()
    for one in (federation.first, federation.second):
        one.answers = {"beat": wrong(404, "NOT_FOUND"), "activate": wrong(409, "REFUSED")}
    with pytest.raises(NotFound):
        await federation.client.beat(BEAT)
    with pytest.raises(Refused):
        await federation.client.activate(ACTIVATE)
    assert federation.first.of("register") == []


async def test_the_row_is_followed_at_every_overseer_and_old_news_is_none(federation):
    await federation.start()
    first, second, client = federation.first, federation.second, federation.client
    assert (await client.wait_lease(-1, 5)).version == 1
    waiting = asyncio.ensure_future(client.wait_lease(1, 60))
    await eventually(lambda: first.polls[-1:] == [1] and second.polls[-1:] == [1])
    second.change(version=2, epoch=2)
    assert (await waiting).version == 2
    waiting = asyncio.ensure_future(client.wait_lease(2, 60))
    await eventually(lambda: second.polls[-1] == 2)
    first.change(version=2, epoch=2)  # late
    await eventually(lambda: first.polls[-1] == 2)
    assert not waiting.done()
    assert len(first.polls) + len(second.polls) <= 6  # nobody was asked in a circle
    first.change(version=3, epoch=3)
    assert (await waiting).version == 3
    waiting = asyncio.ensure_future(client.wait_lease(3, 60))
    await eventually(lambda: first.polls[-1] == 3)
    first.change(version=0, epoch=0)  # its database was emptied
    assert (await waiting).version == 0


async def test_a_poll_without_news_ends_in_time_and_one_that_hangs_does_not_matter(federation, black_hole):
    await federation.start(black_hole, scripted=1)
    assert (await federation.client.wait_lease(-1, 5)).version == 1
    with soon():
        assert (await federation.client.wait_lease(1, 0.2)).version == 1
    waiting = asyncio.ensure_future(federation.client.wait_lease(1, 60))
    await eventually(lambda: federation.first.polls[-1] == 1)
    federation.first.change(version=2)
    assert (await waiting).version == 2


async def test_a_slow_read_is_asked_of_the_next_overseer_too(federation):
    await federation.start(q=1.0)
    federation.first.answers["servers"] = "hang"
    with soon():
        assert await federation.client.servers() == ()
    assert len(federation.first.of("servers")) == 1
    with soon():
        await federation.client.servers()
    assert len(federation.first.of("servers")) == 1


async def test_a_certificate_of_another_project_is_named_only_when_nobody_else_answers(federation, tmp_path):
    (tmp_path / "other").mkdir()
    stranger = ScriptedOverseer(make_kits(tmp_path / "other")["overseer"])
    async with stranger:
        await federation.start(stranger.port, scripted=1)
        assert (await federation.client.renew(RENEWAL)).held
        federation.first.answers["renew"] = wrong(503, "STORE_UNAVAILABLE")
        with pytest.raises(BadCertificate):
            await federation.client.renew(RENEWAL)


@pytest.mark.parametrize("answer", ["hang", "gone"])
async def test_a_single_overseer_is_waited_for_as_long_as_q_and_no_longer(federation, answer):
    await federation.start(scripted=1, q=0.5)
    federation.first.answers["renew"] = "hang"
    if answer == "gone":
        federation.first._server.close()
    with soon(), pytest.raises(Unreachable):
        await federation.client.renew(RENEWAL)
    if answer == "hang":
        federation.first.answers.clear()
        assert (await federation.client.renew(RENEWAL)).held
