"""A terminal for tests: a pty, pyte as its screen, answers to the cursor's position, keys as bytes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading

import pyte

from tests.support.waiting import eventually_sync


class _Screen(pyte.HistoryScreen):
    def __init__(self, columns, lines, answer):
        self.answer = answer
        super().__init__(columns, lines, history=500)

    def write_process_input(self, data):
        self.answer(data)

    def report_device_status(self, mode, **kwargs):
        if not kwargs.get("private"):
            super().report_device_status(mode)


class Terminal:
    def __init__(self, arguments, *, columns=100, lines=30, env=None):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen = _Screen(columns, lines, self.send)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.raw = bytearray()
        environment = {**os.environ, "TERM": "xterm-256color", "TZ": "UTC", "PYTHONUTF8": "1", **(env or {})}
        for name in ("NO_COLOR", "COLUMNS", "LINES"):  # a size in the environment goes before the terminal's own
            environment.pop(name, None)
        environment.update(env or {})
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                with self._lock:
                    self.raw += data
                    self._stream.feed(data)

    def send(self, keys):
        with contextlib.suppress(OSError):
            os.write(self._master, keys.encode())

    def lines(self):
        with self._lock:
            past = ["".join(row[x].data for x in range(self._screen.columns)) for row in self._screen.history.top]
            return [line.rstrip() for line in [*past, *self._screen.display]]

    def title(self):
        with self._lock:
            return self._screen.title

    def text(self):
        return "\n".join(self.lines())

    def sees(self, text):
        eventually_sync(lambda: text in self.text(), what=f"{text!r} on the screen")

    def prompt_is(self, text):
        """The last line that begins with ``fl`` is this one."""
        eventually_sync(
            lambda: [line for line in self.lines() if line.startswith("fl ")][-1:] == [text], what=f"prompt {text!r}"
        )

    def ended(self, timeout=10):
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self._reader.join(10)
        os.close(self._master)
