"""A supervisor as a process of its own: ``KIT_ROOT MODE RECORD``. The overseer is a fake in it; the child a stub."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

from fedhelm.process import ParticipantLock
from fedhelm_server.supervisor import Supervisor
from tests.fakes.server_kit import server_kit, stub_command
from tests.fakes.server_overseer import FakeOverseer

root, mode, record = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
logging.basicConfig(level=logging.INFO, stream=sys.stderr)


async def main():
    overseer = FakeOverseer()
    await Supervisor(server_kit(root), overseer, command=stub_command(mode, record)).run()
    heavy = [name for name in ("grpc", "numpy", "torch") if name in sys.modules]
    released = [request.reason for request in overseer.of("release")]
    (root / "end.json").write_text(json.dumps({"heavy": heavy, "released": released}))


lock = ParticipantLock(root / "run")
lock.acquire()
asyncio.run(main())
lock.release()
