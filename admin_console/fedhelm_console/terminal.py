"""The terminal's side of a console: what it can show, talk on stderr, questions, progress."""

from __future__ import annotations

import os
import shutil
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from fedhelm.output import one_line, plain_lines
from fedhelm_console.commands import REGISTRY
from fedhelm_console.context import Console
from fedhelm_console.render import Style, size

if TYPE_CHECKING:
    from fedhelm.admin.follow import Note
    from fedhelm.config.kit import Kit

__all__ = ["Talk", "make_console", "style_of", "without_marks"]

_EVERY = 0.1
_AT_ONCE = 0.3
_SLOWLY = 5.0


def style_of(stream: TextIO, *, ascii_only: bool = False) -> Style:
    """Return what a stream can show: no colours off a terminal or with ``NO_COLOR``, ASCII where it must be."""
    terminal = stream.isatty()
    colour = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
    width = shutil.get_terminal_size((80, 24)).columns if terminal else 1 << 16
    return Style(width, colour=colour, ascii=ascii_only or not encoding.startswith("utf"))


@contextmanager
def without_marks() -> Iterator[None]:
    """Keep the terminal from writing ``^C`` into what a command shows, for the time of the block."""
    try:
        before = termios.tcgetattr(sys.stdin.fileno())
    except (OSError, ValueError, termios.error):  # no terminal
        yield
        return
    quiet = [*before]
    quiet[3] = before[3] & ~termios.ECHOCTL
    termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, quiet)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal was closed
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, before)


class Talk:
    """Everything that is not data: notes, an election's clock, a transfer's progress. All of it on one stream.

    On a terminal a line that changes is written over; elsewhere an election says so once a few seconds.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._open = False
        self._line = ""
        self._next = 0.0
        self._began: float | None = None
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Write a line."""
        self.finish()
        self._stream.write(text + "\n")
        self._stream.flush()

    def note(self, note: Note) -> None:
        """Show what a call does while it waits; calls that a person did not ask for stay silent."""
        if threading.current_thread() is not threading.main_thread():
            return
        text = one_line(note.text)
        if note.kind != "electing":
            self.say(text)
        elif self._terminal:
            if note.seconds >= _AT_ONCE:
                self._over(f"{text}, Ctrl-C to give up")
        elif note.seconds >= self._next:
            self.say(text)
            self._next = note.seconds + _SLOWLY

    def progress(self, done: int, total: int) -> None:
        """Show bytes, rate and time left of a transfer, on a terminal and past the first 0.3 s."""
        if not self._terminal:
            return
        now = time.monotonic()
        if self._began is None:
            self._began, self._next = now, now + _AT_ONCE
        if now < self._next:
            return
        self._next = now + _EVERY
        rate = done / max(now - self._began, 0.001)
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
        self._over(f"{size(done)} of {size(total)}, {size(rate)}/s{left}")

    def live(self, text: str) -> None:
        """Show a line in place of the one before; nothing off a terminal."""
        if self._terminal:
            self._over(text)

    def above(self, write: Callable[[], None]) -> None:
        """Let somebody write lines; what is shown in place is below them again afterwards. Safe in any thread."""
        with self._lock:
            if self._open:
                self._stream.write("\r\x1b[K")
                self._stream.flush()
            write()
            if self._open:
                self._stream.write(self._line)
                self._stream.flush()

    def wipe(self) -> None:
        """Empty the screen; nothing off a terminal."""
        if self._terminal:
            self.finish()
            self._stream.write("\x1b[H\x1b[2J\x1b[3J")
            self._stream.flush()

    def ask(self, question: str) -> str:
        """Ask at the terminal; an end of input is no agreement."""
        self.finish()
        self._stream.write(plain_lines(question))
        self._stream.flush()
        return sys.stdin.readline()

    def clear(self) -> None:
        """Take away the line that is being written over. Safe in any thread."""
        with self._lock:
            if self._open:
                self._open = False
                self._stream.write("\r\x1b[K")
                self._stream.flush()

    def finish(self) -> None:
        """End what was being shown."""
        self.clear()
        self._next = 0.0
        self._began = None

    def _over(self, text: str) -> None:
        with self._lock:
            self._stream.write(f"\r{text}\x1b[K")
            self._stream.flush()
            self._open, self._line = True, text


def make_console(kit: Kit, talk: Talk, *, timeout: float | None, yes: bool, ascii_only: bool) -> Console:
    """Return the console of a kit; nothing is connected yet."""
    from fedhelm.admin.session import Session

    return Console(
        session=Session(kit, notice=talk.note),
        registry=REGISTRY,
        style=style_of(sys.stdout, ascii_only=ascii_only),
        say=talk.say,
        ask=talk.ask if sys.stdin.isatty() and sys.stderr.isatty() else None,
        transfer=kit.transfer,
        timeout=timeout,
        yes=yes,
        progress=talk.progress,
        settle=talk.finish,
        clear=talk.wipe,
    )
