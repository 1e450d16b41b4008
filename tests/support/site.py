"""A site for tests: a real agent, in this process or in its own, and fake servers that vanish when told to."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from fedhelm.errors import Unreachable
from fedhelm.process import child_env
from fedhelm.security.order_signing import SiteOrder, sign_order
from fedhelm.security.pki import CertificateAuthority
from fedhelm.v1 import fleet_pb2
from fedhelm_client.agent import Agent
from tests.fakes.client_fleet import JOB, FakeFleet, FakeLog
from tests.support.federation import free_base_port
from tests.support.kits import ADMIN, make_kits
from tests.support.waiting import eventually

TRAIN = """
import os, time
import numpy as np
import fedhelm.script as fl

def wait_for(name):
    path = os.path.join(site.options["signals"], name)
    while not os.path.exists(path):
        time.sleep(0.01)

with fl.connect() as site:
    for task in site.tasks():
        with open(os.path.join(site.options["signals"], "calls"), "a") as calls:
            calls.write(f"{site.name} {task.kind} {task.round}\\n")
        site.log("loss", 1.0 / task.round, task.round)
        if site.options.get("wait"):
            wait_for(f"go-{task.round}")
        base = task.model.numpy()["w"] if task.model is not None else np.zeros(2)
        task.submit({"w": base + task.round}, weight=3, metrics={"round": task.round})
    print("all done")
"""


def key(number):
    return (JOB, 0, 0, number, "train", "site-1", 0)


class SiteBench:
    """One real agent and two fake servers; ``agent`` is the one that runs in this process."""

    def __init__(self, tmp_path):
        self.root = tmp_path
        self.authority = CertificateAuthority.create("poc")
        self.kits = make_kits(tmp_path, servers=2, sites=2, base_port=free_base_port(), authority=self.authority)
        self.kit = self.kits["site-1"]
        self.log = FakeLog(tmp_path / "store", self.kit.cluster, submitter=self.kits[ADMIN])
        self.one = FakeFleet(self.log, self.kits["server1"])
        self.two = FakeFleet(self.log, self.kits["server2"])
        self.signals = tmp_path / "signals"
        self.signals.mkdir()
        self.views = None
        self.asked = 0
        self._stop = asyncio.Event()
        self._agent = None

    def add_job(self, script=TRAIN, **options):
        folder = self.root / "job"
        (folder / "app").mkdir(parents=True, exist_ok=True)
        (folder / "app" / "train.py").write_text(script)
        return self.log.add_job(folder, signals=str(self.signals), **options)

    def ask(self):
        """What the overseers say of the servers; None: no overseer answers."""
        self.asked += 1
        if self.views is None:
            raise Unreachable("no overseer answers")
        return self.views

    async def start_agent(self):
        self._stop = asyncio.Event()
        self.agent = Agent(self.kit, ask=self.ask)
        self._agent = asyncio.ensure_future(self.agent.run(self._stop))

    async def ended(self):
        """The agent's end by itself."""
        running, self._agent = self._agent, None
        await asyncio.wait_for(running, 10)

    async def stop_agent(self):
        if self._agent is not None:
            self._stop.set()
            running, self._agent = self._agent, None
            await asyncio.wait_for(running, 10)

    def order(self, action, identifier="r1", reason="", *, fleet=None, sites=("@ALL",)):
        """An admin's order, signed, by way of a server; ``FakeFleet.order`` is that of nobody but the server."""
        said = SiteOrder(self.kit.project, self.kit.cluster, identifier, action, sites, reason)
        statement = sign_order(self.kits[ADMIN], said)
        server = fleet or self.one
        server.orders.append(fleet_pb2.Order(id=identifier, action=action, reason=reason, statement=statement))
        server.tell()

    def calls(self):
        path = self.signals / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def go(self, number):
        (self.signals / f"go-{number}").touch()

    def recorded(self, number):
        return lambda: key(number) in self.log.contributions


MAIN = "import sys; from fedhelm_client.cli import main; sys.exit(main(sys.argv[1:]))"


def spawn_agent(kit):
    with (kit.root / "out.txt").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", MAIN, "--kit", str(kit.root)],
            env=child_env(kit.root, "agent"),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )


async def reaped(process):
    await eventually(lambda: process.poll() is not None)
    return process.returncode
