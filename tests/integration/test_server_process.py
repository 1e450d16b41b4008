"""Real servers, supervisor and child, against real overseers: what the fakes of test_supervisor cannot show."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from fedhelm.errors import Refused
from fedhelm.persist.store import init_store
from fedhelm.process import child_env, marked_processes, read_state
from fedhelm.provision.kits import write_kits
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority
from fedhelm.wire.overseer_api import OperateRequest, PromoteRequest
from fedhelm.wire.overseer_client import OverseerClient
from fedhelm.wire.overseer_console import OverseerConsoleClient
from fedhelm_overseer.service import Service, listen
from tests.support.kits import ADMIN, make_project
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes

LONG = 60


def free_base():
    for base in range(22000 + os.getpid() % 6000, 31000, 20):
        sockets = [socket.socket() for _ in range(8)]
        try:
            for port, one in enumerate(sockets, base):
                one.bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return base
        finally:
            for one in sockets:
                one.close()
    raise AssertionError("no free ports")


class Servers:
    """Two servers' kits, an overseer in this process, and what was started."""

    def __init__(self, root):
        self.root = root
        self.base = free_base()
        authority = CertificateAuthority.create("poc")
        project = make_project(2, 1, self.base, timing="fast")
        # The second server's signed kit names another directory.
        other = dataclasses.replace(project, store="../copy")
        (root / "other").mkdir()
        roots = write_kits(project, authority, root)
        elsewhere = write_kits(other, authority, root / "other")
        shutil.copytree(elsewhere["server2"], root / "server2-elsewhere")
        self.kits = {name: open_kit(path) for name, path in roots.items()}
        self.kits["elsewhere"] = open_kit(root / "server2-elsewhere")
        init_store(root / "store", project.cluster, project.name)
        self.processes = {}
        self.service = Service(self.kits["overseer"], listen("127.0.0.1", self.base))
        self.serving = asyncio.ensure_future(self.service.run())

    def start(self, name):
        kit = self.kits[name]
        command = [sys.executable, "-P", "-m", "fedhelm.cli", "server", "--kit", str(kit.root)]
        with (kit.root / "out.txt").open("ab") as out:
            process = subprocess.Popen(command, env=child_env(kit.root, "supervisor"), stdout=out, stderr=out)
        self.processes[name] = process
        return process

    def state(self, name):
        return read_state(self.kits[name].run) or {}

    def log(self, name):
        path = self.kits[name].log_file
        return path.read_text() if path.exists() else ""

    async def leads(self, name):
        await eventually(lambda: self.state(name).get("role") == "ACTIVE", timeout=LONG, what=f"{name} leads")

    async def ready(self, name):
        await eventually(lambda: self.state(name).get("ready"), timeout=LONG, what=f"{name} is ready")

    async def ended(self, name):
        return await asyncio.to_thread(self.processes[name].wait, LONG)

    async def close(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        for kit in self.kits.values():
            await eventually(lambda kit=kit: not marked_processes(kit.root))
        self.service.stop()
        await asyncio.wait_for(self.serving, 10)


@pytest.fixture
async def servers(tmp_path):
    made = Servers(tmp_path)
    yield made
    await made.close()


async def test_a_server_with_a_copy_of_the_store_is_no_candidate_and_says_why(servers):
    shutil.copytree(servers.root / "store", servers.root / "copy")
    servers.start("server1")
    await servers.leads("server1")
    servers.start("elsewhere")
    why = "lacks what server1 wrote to its store: another directory is mounted on one of the two"
    await eventually(lambda: "server2: standby, not a candidate: " in servers.log("elsewhere"), LONG)
    assert why in servers.log("elsewhere")
    async with OverseerClient(servers.kits[ADMIN]) as admin:

        async def seen():
            two = next(one for one in await admin.servers() if one.name == "server2")
            return two if two.state == "STANDBY" and not two.candidate and why in (two.note or "") else None

        await eventually(seen, LONG)
        with pytest.raises(Refused, match="server2"):
            await admin.promote(PromoteRequest(target="server2", request_id="r1"))
        # The one that has the right store is not disturbed, and leads again after a crash.
        os.kill(servers.state("server1")["child"], signal.SIGKILL)
        await eventually(lambda: servers.state("server1").get("epoch") == 2, LONG)
        await servers.leads("server1")
        assert [term.holder for term in await admin.history()] == ["server1", "server1"]


async def test_a_damaged_log_is_the_reason_in_the_state_at_once(servers):
    servers.start("server1")
    await servers.leads("server1")
    servers.processes["server1"].terminate()
    assert await servers.ended("server1") == 0
    slot = servers.root / "store" / "log" / f"{1:016d}"
    slot.chmod(0o600)
    slot.write_bytes(slot.read_bytes().replace(b'"fence"', b'"fenze"'))
    servers.start("server1")
    state = await eventually(lambda: (s := servers.state("server1")).get("reason") and s, LONG)
    assert not state["ready"]
    assert "slot 1" in state["reason"]
    assert "slot 1" in servers.log("server1")


async def test_shutdown_ends_standby_and_primary_with_status_0_and_not_who_starts_later(servers):
    for name in ("server1", "server2"):
        servers.start(name)
        await servers.ready(name)
    await eventually(lambda: "ACTIVE" in {servers.state(name).get("role") for name in ("server1", "server2")}, LONG)
    with OverseerConsoleClient(servers.kits[ADMIN]) as console:
        await asyncio.to_thread(console.shutdown, OperateRequest(request_id="r1", reason="for a test"))
    assert [await servers.ended(name) for name in ("server1", "server2")] == [0, 0]
    assert "the system is shut down by an admin (request r1)" in servers.log("server1")
    servers.start("server1")
    await servers.leads("server1")


async def test_policy_stop_ends_a_primary_that_no_overseer_answers(servers):
    (servers.kits["server1"].local / "server.json").write_text(json.dumps({"unleased": "stop"}))
    servers.start("server1")
    await servers.leads("server1")
    child = servers.state("server1")["child"]
    servers.service.stop()
    await servers.serving
    await eventually(lambda: servers.state("server1").get("child") != child, LONG)
    assert "stops, as local/server.json says" in servers.log("server1")
    assert servers.state("server1").get("role") != "ACTIVE"
