"""One child of a supervisor: its process, its end of the pipe, and what both tell, as the keeper's events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhelm.errors import ProtocolError
from fedhelm.local.channel import Channel
from fedhelm.local.frames import Frame
from fedhelm.tasks import cancel, spawn
from fedhelm_server import keeper_values as kv

__all__ = ["ChildLink", "describe_exit", "event_of"]

_log = logging.getLogger("fedhelm.supervisor")

_LAST_WORDS_S = 0.5  # how long frames that a dead child sent before its end are waited for


def describe_exit(returncode: int) -> str:
    """Return ``exited with signal 9`` or ``exited with status 1``."""
    return f"exited with signal {-returncode}" if returncode < 0 else f"exited with status {returncode}"


def event_of(incarnation: str, frame: Frame) -> kv.Event | None:
    """Return the event that a child's frame means; None for a type that this version does not know.

    Raises:
        ProtocolError: a field is missing or of the wrong type.
    """
    try:
        return _parse(incarnation, frame)
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the child sent a malformed {frame['type']!r}: {error!r}") from error


def _parse(incarnation: str, frame: Frame) -> kv.Event | None:
    match frame["type"]:
        case "beat":
            return kv.ChildBeat(incarnation, _report(frame))
        case "active":
            return kv.ChildActive(incarnation, int(frame["epoch"]), int(frame["log_seq"]), int(frame.get("jobs") or 0))
        case "drained":
            return kv.ChildDrained(incarnation, int(frame["log_seq"]))
        case "fenced":
            return kv.ChildFenced(incarnation, int(frame["epoch"]))
        case "refused" | "failed" | "restart" as kind:
            return _REASONED[kind](incarnation, str(frame["reason"]))
        case _:
            return None


_REASONED: Mapping[str, Callable[[str, str], kv.Event]] = {
    "refused": kv.ChildRefused,
    "failed": kv.ChildFailed,
    "restart": kv.ChildWantsRestart,
}


def _report(frame: Mapping[str, Any]) -> kv.Report:
    reason, cluster, token = frame.get("reason"), frame.get("cluster"), frame.get("store_token")
    return kv.Report(
        role=str(frame["role"]),
        epoch=int(frame.get("epoch") or 0),
        ready=bool(frame["ready"]),
        append_age=float(frame.get("append_age") or 0.0),
        log_epoch=int(frame.get("log_epoch") or 0),
        log_seq=int(frame["log_seq"]) if frame.get("log_seq") is not None else -1,
        cluster=str(cluster) if cluster is not None else None,
        store_ok=bool(frame.get("store_ok", True)),
        reason=str(reason) if reason else None,
        store_token=str(token) if token else None,
    )


def _spawn(
    command: Sequence[str], env: Mapping[str, str], cwd: Path, incarnation: str
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the program with one end of a socketpair; return it with the other end."""
    assert threading.current_thread() is threading.main_thread()
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = [*command, "--incarnation", incarnation, "--control-fd", str(theirs.fileno())]
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=dict(env),
                cwd=cwd,
                process_group=0,  # Ctrl-C is the supervisor's to hear; it tells the child
            )
        except BaseException:
            ours.close()
            raise
    return process, ours


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill and reap what still runs."""
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel: nobody can reap it
            process.wait(2.0)


class ChildLink:
    """A running child.

    Its exit is noticed by a pidfd, in the event loop, without a thread, and reaped at once.
    """

    def __init__(self, incarnation: str, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self.incarnation = incarnation
        self._process = process
        self._channel = channel

    @classmethod
    async def start(cls, command: Sequence[str], env: Mapping[str, str], cwd: Path, incarnation: str) -> ChildLink:
        """Start ``command`` with ``--incarnation ID --control-fd N`` added.

        Call it in the main thread: the child asks the kernel to die with the *thread* that started it.

        Raises:
            OSError: the program cannot be started.
        """
        process, ours = _spawn(command, env, cwd, incarnation)
        try:
            return cls(incarnation, process, await Channel.from_socket(ours))
        except BaseException:
            _end(process)
            ours.close()
            raise

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def send(self, type: str, **fields: Any) -> None:  # noqa: A002 - the wire's own word
        """Queue one frame; lost if the child is gone."""
        self._channel.post(type, **fields)

    def kill(self) -> None:
        """Send SIGKILL, unless the child was reaped."""
        self._process.send_signal(signal.SIGKILL)

    async def follow(self, heard: Callable[[kv.Event], None]) -> None:
        """Pass on what the child says until it was reaped; its exit is the last event.

        When cancelled, the child is killed and reaped first.
        """
        reader = spawn(self._read(heard), f"frames of child {self.incarnation}")
        try:
            await self._exited()
            await asyncio.wait({reader}, timeout=_LAST_WORDS_S)
            heard(kv.ChildExited(self.incarnation, describe_exit(self._process.returncode)))
        finally:
            await cancel(reader)
            self._channel.close()
            _end(self._process)

    async def _read(self, heard: Callable[[kv.Event], None]) -> None:
        try:
            while (frame := await self._channel.receive()) is not None:
                if (event := event_of(self.incarnation, frame)) is not None:
                    heard(event)
        except ProtocolError as error:
            _log.error("%s", error.message)
        heard(kv.ChildHungUp(self.incarnation))

    async def _exited(self) -> None:
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        handle = os.pidfd_open(self._process.pid)
        loop.add_reader(handle, gone.set)
        try:
            while self._process.poll() is None:
                await gone.wait()
                gone.clear()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
