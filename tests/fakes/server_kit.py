"""The kit of a server as a value, and the stub child's command, for supervisors that need no certificates."""

from __future__ import annotations

import sys
from pathlib import Path

from fedhelm.config.kit import Kit, OverseerAddress, ServerAddress
from fedhelm.config.timing import PROFILES


def server_kit(root, timing="default"):
    (root / "run").mkdir(exist_ok=True)
    return Kit(
        root=root, project="poc", cluster="c", role="server", name="server1", org="nvidia",
        overseers=(OverseerAddress("overseer", "127.0.0.1", 1),),
        servers=(ServerAddress("server1", "127.0.0.1", 2, 3),),
        sites=(), timing=PROFILES[timing],
    )  # fmt: skip


def stub_command(mode, record):
    return (sys.executable, str(Path(__file__).parent / "server_stub_child.py"), mode, str(record))
