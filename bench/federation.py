"""A federation to measure, in a temporary folder and on free ports; commanded as a user would."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from fedhelm.admin.session import Session, connect
from fedhelm.process import marked_processes
from fedhelm_lab.demo_acts import free_base_port
from fedhelm_lab.workspace import ADMIN, Workspace, plan, prepare

__all__ = ["FEDHELM", "Federation", "federation", "fedhelm", "now", "until"]

FEDHELM = (sys.executable, "-m", "fedhelm.cli")

T = TypeVar("T")


def now() -> float:
    """Seconds since boot: one clock for all processes of the machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def fedhelm(*words: str) -> float:
    """Run a command as a user would; return the seconds it took."""
    began = now()
    subprocess.run([*FEDHELM, *words], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return now() - began


def until(look: Callable[[], T | None], seconds: float, what: str) -> T:
    """Look again and again; return the first thing that was found."""
    deadline = now() + seconds
    while (found := look()) is None:
        if now() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)
    return found


class Federation:
    """A workspace and one open session."""

    def __init__(self, folder: Path, workspace: Workspace) -> None:
        self.folder = folder
        self.workspace = workspace
        self.kit = workspace.kit(ADMIN).root
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """An open session of the admin."""
        if self._session is None:
            self._session = connect(self.kit)
        return self._session

    def start(self) -> None:
        """Start everything and wait until it is ready."""
        self.workspace.start()

    def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            self._session.close()

    def job(self, name: str, script: str, yaml: str) -> Path:
        """Write a job's folder; the script may write to ``<folder>/<name>-files``, its option ``folder``."""
        root = self.folder / name
        shared = self.folder / f"{name}-files"
        shared.mkdir()
        (root / "app").mkdir(parents=True)
        (root / "app" / "train.py").write_text(script)
        (root / "job.yaml").write_text(
            f'name: {name}\ndeploy: {{app: ["@ALL"]}}\noptions: {{folder: "{shared}"}}\n{yaml}\n'
        )
        return root

    def log_text(self, name: str) -> str:
        """Return a participant's log."""
        return self.workspace.kit(name).log_file.read_text(errors="replace")

    def child(self, server: str) -> int:
        """Process id of a server's child."""
        return until(lambda: self._find(server, "child"), 10, f"a child of {server}")

    def _find(self, name: str, mark: str) -> int | None:
        return next((one.pid for one in marked_processes(self.workspace.kit(name).root) if one.mark == mark), None)

    def kill_child(self, server: str) -> float:
        """Kill a server's child with SIGKILL; return the moment."""
        pid = self.child(server)
        moment = now()
        os.kill(pid, signal.SIGKILL)
        return moment

    def wait_for_standby(self) -> None:
        """Wait until the server that does not lead stands by."""

        def look() -> bool | None:
            states = sorted(one.state for one in self.session.servers())
            return True if states == ["ACTIVE", "STANDBY"] else None

        until(look, 30, "one server leads and one stands by")


@contextlib.contextmanager
def federation(*, sites: int = 2, servers: int = 2, start: bool = True) -> Iterator[Federation]:
    """Make a federation; when it is left no process and no file of it is there, also after SIGTERM and Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    folder = Path(tempfile.mkdtemp(prefix="fedhelm-bench-")).resolve()
    try:
        workspace = prepare(folder / "poc", plan(sites, servers, free_base_port(2 * servers + 1)))
        made = Federation(folder, workspace)
        try:
            if start:
                made.start()
            yield made
        finally:
            made.close()
            workspace.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
