"""The nanny of one job: starts its job process, keeps its output, and leaves nothing of it behind.

It is a subreaper in a session of its own. It ends the *whole* tree below it (children that daemonised, that are
stopped, that fork meanwhile) when the job process ends, when the agent says so, and when the agent is gone: its
control socket is also a life-line.

Agent to nanny: ``start {plan, log, env}``, ``stop {grace}``. Nanny to agent: ``started {pid}``, ``output {lines}``,
``ended {status, signal, reason, traceback, tail}``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from fedhelm.local.frames import FrameReader, encode
from fedhelm.process import ROLE_MARK, set_subreaper
from fedhelm_client.tree import end_all

__all__ = ["TAIL", "LineCutter", "main"]

TAIL = 16 * 1024
"""Bytes of output that a report of a death carries."""

_MAX_LOG_LINE = 4096
_MAX_BACKLOG = 16 * 1024 * 1024
_PIECE = 64 * 1024
_PR_SET_PDEATHSIG = 1


class LineCutter:
    """Cuts a byte stream into lines of text of at most 4096 bytes. Does no I/O."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Add bytes; return the lines they complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LOG_LINE:
            lines.append(self._rest)
            self._rest = b""
        return [line[:_MAX_LOG_LINE].decode(errors="replace").rstrip("\r") for line in lines]

    def end(self) -> list[str]:
        """Return what is left, if anything."""
        rest, self._rest = self._rest, b""
        return [rest.decode(errors="replace")] if rest else []


class _Agent:
    """The control socket: never blocks the nanny, whatever the agent does."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.gone = False
        self.unsent = bytearray()
        self._reader = FrameReader()

    def tell(self, type: str, **fields: Any) -> None:  # noqa: A002 - the wire's own word
        self.unsent += encode({"type": type, **fields})
        self.push()

    def push(self) -> None:
        """Send what the socket takes now."""
        try:
            while self.unsent and not self.gone:
                del self.unsent[: self.socket.send(self.unsent)]
        except BlockingIOError:
            return
        except OSError:
            self.gone = True

    def read(self) -> list[dict[str, Any]]:
        """Return the frames that have come; sets ``gone`` at the end."""
        try:
            data = self.socket.recv(_PIECE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.gone = True
        return self._reader.feed(data)


class _Nanny:
    def __init__(self, control: socket.socket) -> None:
        self._agent = _Agent(control)
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, "agent")
        self._job: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._report: int | None = None
        self._log: IO[bytes] | None = None
        self._cutter = LineCutter()
        self._tail = b""
        self._dropped = 0
        self._kill_at: float | None = None
        self._wake_in, self._wake_out = socket.socketpair()

    def run(self) -> None:
        """Live until the job, the agent or a signal ends it; afterwards nothing is left below this process."""
        self._selector.register(self._wake_in, selectors.EVENT_READ, "signal")
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        signal.set_wakeup_fd(self._wake_out.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._on_signal)
        try:
            while not self._over():
                self._turn()
        finally:
            end_all()
        self._finish()

    def _on_signal(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:
            self._agent.gone = True  # told to end: as if the agent had gone

    def _over(self) -> bool:
        if self._agent.gone or (self._kill_at is not None and time.monotonic() >= self._kill_at):
            self._kill()
            return True
        return self._job is not None and self._job.poll() is not None

    def _kill(self) -> None:
        if self._job is not None and self._job.poll() is None:
            self._job.kill()
            self._job.wait()

    def _turn(self) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._agent.unsent else 0)
        self._selector.modify(self._agent.socket, events, "agent")
        timeout = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())
        for key, ready in self._selector.select(timeout):
            if key.data == "output":
                self._take_output()
            elif key.data == "signal":
                with contextlib.suppress(BlockingIOError):
                    self._wake_in.recv(_PIECE)
                self._reap_orphans()
            else:
                if ready & selectors.EVENT_WRITE:
                    self._agent.push()
                if ready & selectors.EVENT_READ:
                    for frame in self._agent.read():
                        self._obey(frame)

    def _reap_orphans(self) -> None:
        """Bury what daemonised and ended, so that a long job does not fill the process table."""
        with contextlib.suppress(ChildProcessError):
            while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if self._job is not None and dead.si_pid == self._job.pid:
                    return  # the job process itself: its status is read elsewhere, and ends this loop
                os.waitpid(dead.si_pid, os.WNOHANG)

    def _obey(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "start" and self._job is None:
            self._start(frame)
        elif frame["type"] == "stop":
            grace = float(frame["grace"])
            self._kill_at = min(self._kill_at or float("inf"), time.monotonic() + grace)
            if self._job is not None and self._job.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._job.pid, signal.SIGTERM)
                    os.killpg(self._job.pid, signal.SIGCONT)  # a stopped process gets its chance too

    def _start(self, frame: dict[str, Any]) -> None:
        self._log = Path(frame["log"]).open("ab", buffering=0)  # noqa: SIM115 - lives as long as the nanny
        self._report, report_write = os.pipe()
        command = [sys.executable, "-P", "-m", "fedhelm_client.job"]
        command += ["--parent", str(os.getpid()), "--report-fd", str(report_write), frame["plan"]]
        env = {**os.environ, **frame["env"], ROLE_MARK: "job"}
        self._job = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(report_write,),
            process_group=0,
            bufsize=0,
        )
        os.close(report_write)
        assert self._job.stdout is not None
        self._output = self._job.stdout
        os.set_blocking(self._job.stdout.fileno(), False)
        self._selector.register(self._job.stdout, selectors.EVENT_READ, "output")
        self._agent.tell("started", pid=self._job.pid)

    def _take_output(self) -> bool:
        assert self._output is not None
        try:
            data = os.read(self._output.fileno(), _PIECE)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(self._output)
            return False
        self._keep(data)
        self._forward(self._cutter.feed(data))
        return True

    def _keep(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-TAIL:]
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full disk must not end the training
                self._log.write(data)

    def _forward(self, lines: list[str]) -> None:
        if len(self._agent.unsent) > _MAX_BACKLOG:
            self._dropped += len(lines)  # the agent does not read; the job's log has them
            return
        if self._dropped and lines:
            lines = [f"({self._dropped} lines are in the site's log only)", *lines]
            self._dropped = 0
        if lines:
            self._agent.tell("output", lines=lines)

    def _finish(self) -> None:
        """Nothing runs any more: read what is in the pipes, then report."""
        if self._job is None or self._agent.gone:
            return
        assert self._output is not None
        assert self._report is not None
        if self._output in (key.fileobj for key in self._selector.get_map().values()):
            while self._take_output():
                pass
        self._forward(self._cutter.end())
        os.set_blocking(self._report, False)
        report: Any = None
        with contextlib.suppress(BlockingIOError, ValueError, RecursionError):
            report = json.loads(os.read(self._report, 1 << 20) or b"{}")
        if not isinstance(report, dict):  # the script can write there what it likes
            report = {}
        code = self._job.returncode
        self._agent.tell(
            "ended",
            status=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            reason=str(report.get("reason", "")),
            traceback=str(report.get("traceback", "")),
            tail=self._tail.decode(errors="replace"),
        )
        deadline = time.monotonic() + 2.0
        while self._agent.unsent and not self._agent.gone and time.monotonic() < deadline:
            self._selector.select(0.05)
            self._agent.push()


def main(argv: list[str]) -> int:
    """Run one nanny on the control descriptor."""
    parser = argparse.ArgumentParser(prog="fedhelm_client.nanny")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args(argv)
    set_subreaper()
    # A second life-line. SIGTERM, not SIGKILL: the nanny itself has to end the tree below it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    nanny = _Nanny(socket.socket(fileno=arguments.control_fd))
    if os.getppid() != arguments.parent:
        return 1
    nanny.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
