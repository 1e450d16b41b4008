"""The demo's printer: headings, commands as they would be typed, what comes of them."""

from __future__ import annotations

import contextlib
import threading
from typing import TextIO

from fedhelm_console.render import Style

__all__ = ["Stage"]

_INDENT = "   "


class Stage:
    """Writes lines for a person, from any thread.

    Args:
        stream: standard output, or standard error where standard output belongs to a program.
        style: what the stream can show.
    """

    def __init__(self, stream: TextIO, style: Style) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._muted = False
        self.style = style

    def heading(self, text: str) -> None:
        """Begin an act."""
        self._write(f"\n{self.style.paint(self.style.plain(text), '1')}\n")

    def say(self, text: str = "") -> None:
        """Write lines below the heading."""
        text = self.style.plain(text)
        self._write("".join(f"{_INDENT}{line}".rstrip() + "\n" for line in text.split("\n")))

    def command(self, prompt: str, line: str, note: str = "") -> None:
        """Show a command as it would be typed, with the prompt that it would be typed at."""
        plain = self.style.plain
        tail = f"   {self.style.paint(plain(note), '2')}" if note else ""
        self._write(f"{_INDENT}{self.style.paint(plain(prompt), '32')} {self.style.paint(plain(line), '1')}{tail}\n")

    def event(self, line: str) -> None:
        """Write a line that comes from a background thread, unless it is muted."""
        with contextlib.suppress(OSError):  # nobody reads any more: the main thread finds that out, too
            self._write("".join(f"{_INDENT}{part}\n" for part in line.split("\n")), event=True)

    def title(self, text: str) -> None:
        """Write the first lines."""
        self._write(self.style.plain(text) + "\n")

    def mute(self) -> None:
        """Let no background thread write any more."""
        with self._lock:
            self._muted = True

    def _write(self, text: str, *, event: bool = False) -> None:
        with self._lock:
            if event and self._muted:
                return
            self._stream.write(text)
            self._stream.flush()
