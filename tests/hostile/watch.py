"""An audit hook: what a process that only reads must not do, and files that it touches outside its place."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["FORBIDDEN", "Watch"]

FORBIDDEN = frozenset(
    {
        "pickle.find_class", "marshal.load", "marshal.loads", "exec", "compile", "os.system", "os.exec", "os.fork",
        "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "ctypes.dlopen", "code.__new__", "import",
        "socket.connect", "socket.bind", "socket.getaddrinfo", "webbrowser.open", "urllib.Request",
    }
)  # fmt: skip
_PATHS = {
    "os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1, "shutil.rmtree": 1, "shutil.move": 2, "tempfile.mkdtemp": 1,
    "tempfile.mkstemp": 1,
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """While the context is open: ``forbidden`` events by name, with the line they came from, and ``outside`` paths.

    An audit hook cannot be taken away again, so one that is not armed does nothing.
    """

    def __init__(self, place: Path) -> None:
        self._place = place.resolve()
        self._armed = False
        self._inside = threading.local()
        self.forbidden: dict[str, str] = {}
        self.outside: list[str] = []
        sys.addaudithook(self._hear)

    def __enter__(self) -> Self:
        self._armed = True
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._armed = False

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._armed or getattr(self._inside, "busy", False):
            return
        self._inside.busy = True
        try:
            if event in FORBIDDEN:
                self.forbidden.setdefault(event, f"{args!r:.200} {_caller()}")
            elif event == "open":
                path, _, flags = args
                if isinstance(flags, int) and flags & _WRITING:
                    self._touched(path)
            elif event in _PATHS:
                for path in args[: _PATHS[event]]:
                    self._touched(path)
        finally:
            self._inside.busy = False

    def _touched(self, path: Any) -> None:
        if isinstance(path, int) or path is None or len(self.outside) >= 20:
            return
        # The folder is followed through links; the last name is what is made or taken away.
        named = Path(os.fsdecode(path))
        real = named.parent.resolve() / named.name
        if self._place not in real.parents and not real.is_relative_to("/dev"):
            self.outside.append(str(real))


def _caller() -> str:
    frame = sys._getframe(2)
    names = []
    for _ in range(6):
        names.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        if frame.f_back is None:
            break
        frame = frame.f_back
    return " < ".join(names)
