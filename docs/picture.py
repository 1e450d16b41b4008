"""Make docs/images/console.svg from a real session: ``python -m docs.picture`` (about half a minute).

A federation is started in a temporary folder, the admin console is opened in a terminal, a job is submitted, a command
is half typed, and the primary is killed with SIGKILL. The picture is what the terminal shows then. Needs the extras
``torch`` and ``dev``. Nothing is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pexpect
import pyte

__all__ = ["main", "svg"]

COLUMNS, LINES = 92, 24
TARGET = Path(__file__).resolve().parent / "images" / "console.svg"

_WIDTH, _HEIGHT, _SIZE = 8.4, 19, 14
_BACKGROUND, _FOREGROUND = "#15181e", "#d7dae0"
_COLOURS = {
    "black": "#3a3f4b",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "yellow": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": "#d7dae0",
    "brightblack": "#7f848e",
    "brightgreen": "#98c379",
    "brightred": "#e06c75",
}


class _Screen(pyte.Screen):
    """A screen that answers when it is asked where its cursor is, as terminals do."""

    def __init__(self, answer: Callable[[str], object]) -> None:
        super().__init__(COLUMNS, LINES)
        self._answer = answer

    def write_process_input(self, data: str) -> None:
        """Send an answer to the program."""
        self._answer(data)

    def report_device_status(self, mode: int, **kwargs: Any) -> None:
        """Answer the plain question; pyte knows no private one."""
        if not kwargs.get("private"):
            super().report_device_status(mode)


class _Session:
    """A program in a terminal of its own."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
        environment.pop("NO_COLOR", None)
        size = (LINES, COLUMNS)
        self._child: Any = pexpect.spawn(command[0], command[1:], env=environment, dimensions=size, timeout=None)
        self.screen = _Screen(self._child.send)
        self._stream = pyte.ByteStream(self.screen)

    def type(self, text: str) -> None:
        """Press keys."""
        self._child.send(text)

    def see(self, text: str, seconds: float = 60.0) -> None:
        """Read until ``text`` is on the screen, and a moment longer.

        Raises:
            SystemExit: it did not come.
        """
        until = time.monotonic() + seconds
        while not any(text in line for line in self.screen.display):
            if time.monotonic() > until:
                sys.exit(f"{text!r} is not on the screen:\n" + "\n".join(self.screen.display))
            self._read(0.1)
        self.settle(0.4)

    def settle(self, seconds: float) -> None:
        """Read for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._read(0.1)

    def _read(self, seconds: float) -> None:
        with contextlib.suppress(pexpect.TIMEOUT, pexpect.EOF):
            self._stream.feed(self._child.read_nonblocking(65536, seconds))

    def close(self) -> None:
        """End the program."""
        self._child.close(force=True)


def _colour(name: str, default: str) -> str:
    if name == "default":
        return default
    return _COLOURS.get(name, f"#{name}" if len(name) == 6 else default)


def _runs(row: Any) -> Iterator[tuple[int, str, Any]]:
    """Yield stretches of one look: first column, text, the first character."""
    start, text, look = 0, "", None
    for column in range(COLUMNS):
        char = row[column]
        key = (char.fg, char.bg, char.bold, char.reverse)
        if look is not None and key == look[0]:
            text += char.data
            continue
        if look is not None:
            yield start, text, look[1]
        start, text, look = column, char.data, (key, char)
    if look is not None:
        yield start, text, look[1]


def svg(screen: pyte.Screen, title: str) -> str:
    """Return a picture of a terminal's screen."""
    width, height = COLUMNS * _WIDTH + 32, LINES * _HEIGHT + 62
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="100%" height="100%" rx="8" fill="{_BACKGROUND}"/>',
        *(f'<circle cx="{20 + 18 * at}" cy="20" r="6" fill="#3a3f4b"/>' for at in range(3)),
        '<text x="50%" y="25" fill="#7f848e" font-size="13" text-anchor="middle" font-family="sans-serif">',
        f"{escape(title)}</text>",
        f'<g font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{_SIZE}" xml:space="preserve">',
    ]
    for line in range(LINES):
        top = 44 + line * _HEIGHT
        for start, text, char in _runs(screen.buffer[line]):
            front, back = _colour(char.fg, _FOREGROUND), _colour(char.bg, _BACKGROUND)
            if char.reverse:
                front, back = back, front
            x, length = 16 + start * _WIDTH, len(text) * _WIDTH
            if back != _BACKGROUND:
                parts.append(f'<rect x="{x:.1f}" y="{top}" width="{length:.1f}" height="{_HEIGHT}" fill="{back}"/>')
            if text.strip():
                bold = ' font-weight="bold"' if char.bold else ""
                parts.append(
                    f'<text x="{x:.1f}" y="{top + 14}" fill="{front}"{bold} textLength="{length:.1f}" '
                    f'lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
                )
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _free_ports(count: int = 5) -> int:
    for base in range(12500, 31000, 50):
        try:
            for port in range(base, base + count):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    sys.exit("no free ports")


def _fedhelm(*arguments: str) -> Any:
    command = [sys.executable, "-m", "fedhelm.cli", *arguments, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = json.loads(done.stdout)
    if answer["status"] != "ok":
        sys.exit(f"{' '.join(arguments)}: {answer['error']}")
    return answer["data"]


def _kill_child(workspace: str) -> None:
    rows = _fedhelm("poc", "status", "-w", workspace)
    os.kill(next(row for row in rows if row["name"] == "server1")["children"]["child"][0], signal.SIGKILL)


def _play(workspace: str, kit: str) -> str:
    session = _Session([sys.executable, "-m", "fedhelm.cli", "console", kit])
    try:
        session.see("server1·e1")
        session.type("submit_job hello-pt-tb\r")
        session.see("Submitted job")
        while _fedhelm("console", kit, "-c", "show_job @last")["round"] < 2:
            session.settle(0.2)
        session.type("list_jobs\r")
        session.see("RUNNING")
        session.type("show_job @la")
        session.settle(1.0)
        _kill_child(workspace)
        session.see("failover server1")
        session.see("server2·e2")
        session.settle(2.0)
        return svg(session.screen, "fl_admin.sh: the primary was killed while a line was being typed")
    finally:
        session.close()


def main() -> int:
    """Play the session and write the picture; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="fedhelm-picture-") as folder:
        workspace = str(Path(folder) / "poc")
        kit = f"{workspace}/admin@nvidia.com"
        _fedhelm("poc", "prepare", "-n", "2", "--base-port", str(_free_ports()), "-w", workspace)
        try:
            _fedhelm("poc", "start", "-w", workspace)
            picture = _play(workspace, kit)
        finally:
            _fedhelm("poc", "clean", "-w", workspace)
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(picture, encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
