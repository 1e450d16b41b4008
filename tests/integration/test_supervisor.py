"""A real supervisor and real child processes (a stub that speaks the pipe protocol); the overseer is a fake."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedhelm.config.kit import OverseerAddress
from fedhelm.config.timing import PROFILES
from fedhelm.errors import AlreadyRunning, BadCertificate
from fedhelm.process import ParticipantLock, marked_processes, read_state
from fedhelm.tasks import cancel, spawn
from fedhelm.wire import overseer_api as api
from fedhelm.wire.overseer_api import Intent
from fedhelm.wire.overseer_client import OverseerClient
from fedhelm_server import keeper_values as kv
from fedhelm_server.supervisor import Supervisor
from tests.fakes.overseer_server import ScriptedOverseer, wrong
from tests.fakes.server_kit import server_kit, stub_command
from tests.fakes.server_overseer import FakeOverseer
from tests.support.kits import make_kits
from tests.support.waiting import eventually, eventually_sync

pytestmark = pytest.mark.processes


class Server:
    """One supervisor in this process, with its stub child."""

    def __init__(self, root, mode="good", **settings):
        self.root = root
        self.kit = server_kit(root)
        self.record = root / "frames.jsonl"
        self.overseer = FakeOverseer()
        self.supervisor = Supervisor(
            self.kit, self.overseer, command=stub_command(mode, self.record),
            settings=kv.Settings("server1", self.kit.timing, **settings),
        )  # fmt: skip
        self.task = None

    def start(self):
        self.task = spawn(self.supervisor.run(), "supervisor")
        return self

    def heard(self, kind=None):
        if not self.record.exists():
            return []
        lines = self.record.read_text().splitlines()
        frames = [json.loads(line) for line in lines if line.endswith("}")]
        return [frame for frame in frames if kind is None or frame["type"] == kind]

    @property
    def children(self):
        return self.heard("started")

    async def leading(self):
        await eventually(lambda: self.overseer.row.state == "active", what="the stub leads")
        return self.children[-1]


@pytest.fixture
async def start(tmp_path):
    servers = []

    def make(mode="good", **settings):
        servers.append(Server(tmp_path, mode, **settings))
        return servers[-1].start()

    yield make
    for server in servers:
        await cancel(server.task)
    assert marked_processes(tmp_path) == []


def exists(pid):
    return Path(f"/proc/{pid}").exists()


async def test_a_child_is_started_marked_registered_and_granted(start):
    server = start()
    child = await server.leading()
    assert child["mark"] == "child"
    [request] = server.overseer.of("register")
    assert (request.incarnation, request.replaces, request.ready) == (child["incarnation"], None, True)
    [grant] = server.heard("grant")
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert now - 3 < grant["deadline"] <= now + 2.5
    state = await eventually(lambda: (s := read_state(server.kit.run)) and s["ready"] and s)
    assert state["epoch"] == 1


async def test_a_grant_travels_by_the_long_poll_not_by_the_next_beat(start):
    server = start()
    server.overseer.grants = False
    await eventually(lambda: server.overseer.of("wait_lease"))
    beats = len(server.overseer.of("beat"))
    server.overseer.grant(server.children[0]["incarnation"])
    await eventually(lambda: server.overseer.of("activate"))
    assert len(server.overseer.of("beat")) <= beats + 1


async def test_kill_9_of_the_child_is_released_after_reaping_and_a_new_incarnation_registers(start):
    server = start()
    child = await server.leading()
    os.kill(child["pid"], signal.SIGKILL)
    killed = time.monotonic()
    [release] = await eventually(lambda: server.overseer.of("release"))
    assert not exists(child["pid"])  # not even as a zombie
    assert time.monotonic() - killed < 1
    assert release.incarnation == child["incarnation"]
    assert release.reason == "child exited with signal 9"
    again = await eventually(lambda: len(r := server.overseer.of("register")) == 2 and r[1])
    assert again.replaces == child["incarnation"]
    assert again.incarnation == server.children[1]["incarnation"] != child["incarnation"]
    # With nobody better the same server leads again, under the next epoch.
    await eventually(lambda: server.overseer.row.state == "active" and server.overseer.row.epoch == 2)


async def test_a_stopped_child_gets_no_renewals_is_killed_and_released(start):
    server = start()
    child = await server.leading()
    os.kill(child["pid"], signal.SIGSTOP)
    stopped = time.monotonic()
    [release] = await eventually(lambda: server.overseer.of("release"))
    assert not exists(child["pid"])
    assert "no beat" in release.reason
    # The last renewal is at most T/2 after the last beat; what this process adds by being slow is not the keeper's.
    released = server.overseer.times("release")[0]
    assert max(when for when in server.overseer.times("renew") if when <= released) <= stopped + 1.5 + 0.2
    await eventually(lambda: len(server.overseer.of("register")) == 2)


async def test_a_child_that_wedges_is_found_the_same_way(start):
    server = start("wedged")
    await eventually(lambda: server.overseer.of("activate"))
    [release] = await eventually(lambda: server.overseer.of("release"))
    assert "no beat" in release.reason


async def test_an_overseer_that_goes_away_makes_it_unleased_and_its_return_heals_that(start):
    server = start()
    await server.leading()
    server.overseer.away = True
    await eventually(lambda: server.heard("unleased"))
    server.overseer.away = False
    count = len(server.heard("lease"))
    await eventually(lambda: len(server.heard("lease")) > count)
    assert len(server.children) == 1
    assert server.overseer.of("release") == []


async def test_a_server_that_overseers_refuse_says_why_in_its_state_until_they_do_not(start, caplog):
    caplog.set_level(logging.INFO, "fedhelm.supervisor")
    server = start()
    await server.leading()
    why = "the certificate of server server1 was revoked on 2026-11-23: stolen"
    server.overseer.away = BadCertificate(why)
    await eventually(lambda: (s := read_state(server.kit.run))["reason"] == why and not s["ready"])
    await eventually(lambda: server.heard("unleased"))
    server.overseer.away = False
    await eventually(lambda: (s := read_state(server.kit.run))["reason"] is None and s["ready"])
    assert [one.getMessage() for one in caplog.records if why in one.getMessage()] == [
        f"server1: no answer from the overseer: {why}"
    ]


async def test_another_holder_in_the_row_demotes_at_once(start):
    server = start()
    child = await server.leading()
    server.overseer.grant("x", holder="server2")
    await eventually(lambda: not exists(child["pid"]))
    await eventually(lambda: len(server.overseer.of("register")) == 2)
    assert server.overseer.of("release") == []


async def test_a_planned_switchover_drains_releases_and_comes_back_as_a_standby(start):
    server = start()
    child = await server.leading()
    server.overseer.grants = False
    server.overseer.change(intent=Intent(target="server2", request_id="r1"))
    [release] = await eventually(lambda: server.overseer.of("release"))
    assert release.handoff
    [drain] = server.heard("drain")
    assert (drain["to"], drain["request_id"]) == ("server2", "r1")
    again = await eventually(lambda: len(r := server.overseer.of("register")) == 2 and r[1])
    assert again.replaces == child["incarnation"]
    assert len(server.overseer.of("release")) == 1


async def test_a_refused_grant_is_told_and_the_same_child_registers_again(start):
    server = start("refuses")
    [release] = await eventually(lambda: server.overseer.of("release"))
    assert (release.refused, release.reason) == (True, "store went backwards")
    await eventually(lambda: len(server.overseer.of("register")) == 2)
    first, second = server.overseer.of("register")
    assert first.incarnation == second.incarnation


async def test_a_child_that_cannot_start_is_not_spun(start):
    server = start("dies", backoff=(0.0, 60.0))
    await eventually(lambda: server.supervisor._state.failures == 2)
    assert server.supervisor._state.child.phase is kv.Phase.ABSENT
    assert not server.task.done()
    assert server.overseer.of("register") == []


async def test_a_program_that_does_not_exist_is_a_child_that_cannot_start(start, tmp_path):
    server = Server(tmp_path, backoff=(60.0,))
    server.supervisor = Supervisor(
        server.kit, server.overseer, command=["/nonexistent"], settings=server.supervisor._settings
    )
    server.start()
    await eventually(lambda: server.supervisor._state.failures == 1)
    await cancel(server.task)


async def test_an_unready_child_is_not_ready_and_says_why(start):
    server = start("unready", unready_limit=0.1)
    [request] = await eventually(lambda: server.overseer.of("register"))
    assert (request.ready, request.reason) == (False, "unready")
    assert not read_state(server.kit.run)["ready"]


async def test_a_name_that_lives_elsewhere_ends_the_supervisor_with_the_message(tmp_path):
    server = Server(tmp_path)
    server.overseer.elsewhere = "abc on another machine"
    server.start()
    with pytest.raises(AlreadyRunning, match="abc on another machine"):
        await asyncio.wait_for(server.task, 20)
    assert marked_processes(tmp_path) == []


async def test_sigterm_releases_as_shutdown_and_leaves_nothing(start):
    server = start()
    child = await server.leading()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(server.task, 5)
    assert not exists(child["pid"])
    [release] = server.overseer.of("release")
    assert release.reason == "shutdown"
    assert not read_state(server.kit.run)["ready"]


# --- several overseers


@pytest.fixture
async def two_overseers(tmp_path):
    """A supervisor with the real client; the first overseer hangs whenever it is told to, the second is well."""
    kits = make_kits(tmp_path)
    async with ScriptedOverseer(kits["overseer"]) as first, ScriptedOverseer(kits["overseer"]) as second:
        addresses = tuple(OverseerAddress("overseer", "127.0.0.1", one.port) for one in (first, second))
        kit = dataclasses.replace(kits["server1"], overseers=addresses, timing=PROFILES["default"])
        kit.run.mkdir(exist_ok=True)
        async with OverseerClient(kit) as client:
            command = stub_command("good", tmp_path / "frames.jsonl")
            supervisor = Supervisor(kit, client, command=command)
            task = spawn(supervisor.run(), "supervisor")
            try:
                yield supervisor, first, second, tmp_path / "frames.jsonl"
            finally:
                await cancel(task)
    assert marked_processes(kit.root) == []


async def test_an_overseer_that_hangs_delays_no_grant_no_renewal_and_no_release(two_overseers):
    supervisor, first, second, record = two_overseers
    everything = ("register", "beat", "renew", "activate", "release", "lease")
    first.answers = dict.fromkeys(everything, "hang")
    for one in (first, second):
        one.row = api.LeaseView(version=0, epoch=0)
    [body] = await eventually(lambda: second.of("register"))
    await eventually(lambda: second.polls and first.of("register"))
    second.change(version=1, epoch=1, holder="server1", incarnation=body["incarnation"], state="granted")
    await eventually(lambda: second.of("activate"))
    second.change(version=2, state="active")
    count = len(second.of("renew"))
    deadline = supervisor._state.hold.deadline
    await eventually(lambda: len(second.of("renew")) >= count + 5)
    assert supervisor._state.hold.deadline > deadline + 1
    assert "unleased" not in record.read_text()
    os.kill(supervisor._link.pid, signal.SIGKILL)
    await eventually(lambda: second.of("release"))
    # It comes back to itself with nothing of all this in its memory, and is told again.
    first.answers = {"beat": wrong(404, "NOT_FOUND")}
    first.going.set()
    second.change(version=3, state="released")
    again = await eventually(lambda: len(r := second.of("register")) == 2 and r[1])
    await eventually(lambda: again["incarnation"] in {one["incarnation"] for one in first.of("register")})


async def test_two_overseers_that_hang_make_it_unleased_and_one_of_them_is_enough_to_heal_that(two_overseers):
    supervisor, first, second, record = two_overseers
    for one in (first, second):
        one.row = api.LeaseView(version=0, epoch=0)
    [body] = await eventually(lambda: second.of("register"))
    await eventually(lambda: first.polls)
    first.change(version=1, epoch=1, holder="server1", incarnation=body["incarnation"], state="granted")
    await eventually(lambda: "grant" in record.read_text())
    first.answers = second.answers = dict.fromkeys(("renew", "beat", "activate", "lease"), "hang")
    await eventually(lambda: "unleased" in record.read_text())
    second.answers = {}
    leases = record.read_text().count('"lease"')
    await eventually(lambda: record.read_text().count('"lease"') > leases)
    assert supervisor._state.hold.epoch == 1


# --- the supervisor as a process of its own


@pytest.fixture
def process(tmp_path):
    started = []

    def make(mode="good"):
        command = [sys.executable, "-m", "tests.fakes.server_main", str(tmp_path), mode, str(tmp_path / "frames.jsonl")]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with (tmp_path / "stderr.txt").open("ab") as log:
            started.append(subprocess.Popen(command, stderr=log, env={**os.environ, "PYTHONPATH": path}))
        return started[-1]

    yield make
    for one in started:
        if one.poll() is None:
            one.kill()
        one.wait()
    eventually_sync(lambda: not marked_processes(tmp_path), what="no process is left")


def leads(root):
    state = read_state(root / "run")
    return state if state and state["epoch"] and state["role"] == "ACTIVE" else None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_with_status_0_and_no_heavy_library_was_loaded(process, tmp_path, number):
    supervisor = process()
    child = eventually_sync(lambda: leads(tmp_path))["child"]
    supervisor.send_signal(number)
    assert supervisor.wait(5) == 0
    assert not exists(child)
    assert json.loads((tmp_path / "end.json").read_text()) == {"heavy": [], "released": ["shutdown"]}


def test_a_child_that_does_not_hear_stop_is_killed_and_all_ends_within_five_seconds(process, tmp_path):
    supervisor = process("deaf")
    child = eventually_sync(lambda: leads(tmp_path))["child"]
    supervisor.terminate()
    assert supervisor.wait(5) == 0
    assert not exists(child)


def test_kill_9_of_the_supervisor_takes_the_child_along(process, tmp_path):
    supervisor = process()
    child = eventually_sync(lambda: leads(tmp_path))["child"]
    supervisor.kill()
    supervisor.wait()
    eventually_sync(lambda: not exists(child), timeout=2)


def test_a_second_supervisor_of_the_kit_is_refused(process, tmp_path):
    supervisor = process()
    eventually_sync(lambda: leads(tmp_path))
    with pytest.raises(AlreadyRunning, match=str(supervisor.pid)):
        ParticipantLock(tmp_path / "run").acquire()


# --- the command


def fedhelm(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "fedhelm.cli", *words], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def kit(tmp_path, free_base):
    done = fedhelm("poc", "prepare", "-n", "1", "-w", "ws", "--base-port", str(free_base), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path / "ws" / "server1"


@pytest.fixture
def free_base():
    """A port with five free ones above it, as far as one can know."""
    for base in range(20000 + os.getpid() % 8000, 32000, 40):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + 6):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise AssertionError("no free ports")


def test_a_taken_port_is_named_at_the_start(kit, free_base):
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_base + 1))
        other.listen()
        done = fedhelm("server", "--kit", str(kit), cwd=kit)
    assert done.returncode == 1
    assert f"error[PORT_TAKEN]: server1 cannot listen on 127.0.0.1:{free_base + 1}" in done.stderr
    assert marked_processes(kit) == []


def test_a_kit_of_another_role_is_refused(kit):
    done = fedhelm("server", "--kit", str(kit.parent / "site-1"), cwd=kit)
    assert done.returncode == 4
    assert "error[BAD_KIT]" in done.stderr
    assert "not of a server" in done.stderr


def test_where_there_is_no_store_yet_the_way_to_make_it_is_told(kit):
    store = kit.parent / "store"
    store.rename(kit.parent / "elsewhere")
    done = fedhelm("server", "--kit", str(kit), cwd=kit)
    assert done.returncode == 1
    assert f"error[WRONG_STORE]: {store} is not a store" in done.stderr
    assert f"{kit}/startup/start.sh --found-store" in done.stderr
    (kit.parent / "elsewhere").rename(store)


def test_a_mistake_in_the_servers_own_log_levels_is_named(kit):
    (kit / "local" / "log.config").write_text("[levels]\nfedhelm = LOUD\n")
    done = fedhelm("server", "--kit", str(kit), cwd=kit)
    assert done.returncode == 2
    assert "local/log.config: fedhelm: 'LOUD' is not one of DEBUG, INFO, WARNING, ERROR" in done.stderr
    assert marked_processes(kit) == []


def test_a_running_server_is_not_started_twice(kit):
    lock = ParticipantLock(kit / "run")
    lock.acquire()
    try:
        done = fedhelm("server", "--kit", str(kit), cwd=kit)
    finally:
        lock.release()
    assert done.returncode == 1
    assert f"error[ALREADY_RUNNING]: server1 is running already, pid {os.getpid()}" in done.stderr
