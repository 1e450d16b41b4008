"""The agent's side of a nanny: start it, listen to it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhelm.config.site_settings import read_site_settings
from fedhelm.errors import ProtocolError
from fedhelm.local.channel import Channel
from fedhelm.process import atomic_write, child_env
from fedhelm.tasks import spawn
from fedhelm_client.script_environment import script_environment
from fedhelm_client.tree import end_all

__all__ = ["Ended", "JobPlan", "JobProcess", "end_strays", "failure_of"]


@dataclass(frozen=True)
class JobPlan:
    """What a job process is to run and may reach; see :mod:`fedhelm_client.job`."""

    script: Path
    app: Path
    work: Path
    protect: tuple[Path, ...]
    read: tuple[Path, ...]
    write: tuple[Path, ...]

    def to_bytes(self) -> bytes:
        """Return the plan file's content."""
        return json.dumps(
            {
                "script": str(self.script),
                "app": str(self.app),
                "work": str(self.work),
                "protect": [str(path) for path in self.protect],
                "read": [str(path) for path in self.read],
                "write": [str(path) for path in self.write],
            }
        ).encode()


@dataclass(frozen=True)
class Ended:
    """How a job process ended: a status or a signal, and what is known about why."""

    status: int | None
    signal: int | None
    reason: str = ""
    traceback: str = ""
    tail: str = ""

    @classmethod
    def from_frame(cls, frame: Mapping[str, Any]) -> Ended:
        """Parse a nanny's ``ended``."""
        return cls(
            status=frame["status"],
            signal=frame["signal"],
            reason=str(frame["reason"]),
            traceback=str(frame["traceback"]),
            tail=str(frame["tail"]),
        )


def failure_of(ended: Ended) -> tuple[str, str]:
    """Return reason (one line) and traceback for a script that ended before its job did. Pure."""
    details = ended.traceback or ended.tail
    if ended.reason:
        return ended.reason, details
    if ended.signal is not None:
        try:
            name = signal.Signals(ended.signal).name
        except ValueError:
            name = str(ended.signal)
        return f"the script was killed by {name}", details
    if ended.status == 0:
        return "the script returned before the job ended", details
    return f"the script exited with status {ended.status}", details


class JobProcess:
    """One nanny with its job process.

    Args:
        kit_root: marks the processes.
        job: marks them too.
        on_output: gets lines of the script's output.
        on_end: called once, when nothing of the job runs any more.
    """

    def __init__(
        self, kit_root: Path, job: str, on_output: Callable[[list[str]], None], on_end: Callable[[Ended], None]
    ) -> None:
        self._kit_root = kit_root
        self._job = job
        self._on_output = on_output
        self._on_end = on_end
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._watch: asyncio.Task[None] | None = None
        self.job_pid: int | None = None

    @property
    def pid(self) -> int | None:
        """The nanny's id while it lives."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process is not None else None

    async def start(self, plan: JobPlan, plan_file: Path, log: Path, env: Mapping[str, str]) -> None:
        """Start the nanny and have it start the job process.

        Raises:
            BadInput: a mistake in the site's ``local/site.json``.
            OSError: no process can be started.
        """
        more = await asyncio.to_thread(read_site_settings, self._kit_root / "local")
        environ = script_environment(os.environ, more.environment)  # the nanny's too: its child inherits it
        atomic_write(plan_file, plan.to_bytes(), sync=False)
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", "fedhelm_client.nanny"]
            command += ["--control-fd", str(theirs.fileno()), "--parent", str(os.getpid())]
            try:
                # From the main thread: the kernel's parent-death signal fires when the spawning thread ends.
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    env=child_env(self._kit_root, "nanny", {**environ, "FEDHELM_JOB": self._job}),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        self._channel = await Channel.from_socket(ours)
        self._watch = spawn(self._listen(), f"nanny of {self._job}")
        with contextlib.suppress(ConnectionError):  # a nanny that died is met by the listener
            await self._channel.send("start", plan=str(plan_file), log=str(log), env=dict(env))

    async def stop(self, grace: float, patience: float = 3.0) -> None:
        """Ask the script to end (SIGTERM), kill what is left after ``grace`` seconds, wait until nothing is left."""
        if self._process is None or self._channel is None:
            return
        self._channel.post("stop", grace=grace)
        try:
            async with asyncio.timeout(grace + patience):
                await self.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()  # its orphans come to the agent, which is a subreaper, and end there
            await self.wait()

    async def wait(self) -> None:
        """Wait until nothing of the job runs any more."""
        if self._watch is not None:
            await asyncio.wait({self._watch})

    async def _listen(self) -> None:
        assert self._channel is not None
        assert self._process is not None
        ended = None
        try:
            while (frame := await self._channel.receive()) is not None:
                if frame["type"] == "output":
                    self._on_output([str(line) for line in frame["lines"]])
                elif frame["type"] == "started":
                    self.job_pid = int(frame["pid"])
                elif frame["type"] == "ended":
                    ended = Ended.from_frame(frame)
        except ProtocolError:
            self._process.kill()
        finally:
            self._channel.close()
        await self._process.wait()
        self._on_end(ended or Ended(None, signal.SIGKILL, reason="the nanny of the job was killed"))


async def end_strays(nannies: set[int]) -> None:
    """Kill what a killed nanny left: its orphans are children of the agent now."""
    await asyncio.to_thread(end_all, nannies)
