"""The child that feeds every decoder: ``python -m tests.hostile.eat SCRATCH --each N --seed S``.

It prints one JSON object: what each decoder ate, took and refused, what escaped, how far memory grew, which files were
touched outside the place, and which forbidden things were done. It works below SCRATCH and nowhere else.
"""

from __future__ import annotations

import argparse
import base64
import codecs
import json
import logging
import mmap
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hostile.corpus import drawn, inputs
from tests.hostile.decoder import Decoder
from tests.hostile.table import decoders
from tests.hostile.watch import Watch

CPU_S = 5.0
"""One input may cost so much processor time; the parent sees to what waits for ever."""
ROOM = 1 << 30
"""Bytes that the process may ask for above what it has: a bomb becomes a MemoryError."""
KEPT = 5
ROOT = Path(__file__).resolve().parents[2]


class TooSlow(BaseException):
    """One input took longer than ``CPU_S``."""


class LastInput:
    """A file in which the parent finds what was eaten when the child died or hung."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"\0" * (1 << 20))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def note(self, name: str, data: bytes) -> None:
        head = name.encode() + b"\n" + len(data).to_bytes(8, "big")
        whole = head + data[: len(self._map) - len(head)]
        self._map[: len(whole)] = whole


def where(error: BaseException) -> str:
    """The innermost line of our own code: what a mistake is known by."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts and "tests" not in path.parts:
            return f"{type(error).__name__} in {path.stem}.{frame.name}"
    return f"{type(error).__name__} outside our code"


def _eat(decoder: Decoder, data: bytes) -> BaseException | None:
    """Return what escaped, if it may not."""
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        decoder.decode(data)
    except decoder.refuses:
        return None
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - that is the question
        return error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def _smaller(decoder: Decoder, data: bytes, kind: str) -> bytes:
    """Cut away what the escape does not need; a few hundred tries."""
    tries, size = 300, max(1, len(data) // 2)
    while size and tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            tries -= 1
            shorter = data[:at] + data[at + size :]
            error = _eat(decoder, shorter)
            if error is not None and where(error) == kind:
                data = shorter
            else:
                at += size
        size //= 2
    return data


def _feed(decoder: Decoder, eaten: Iterator[bytes], last: LastInput) -> dict[str, Any]:
    count, slowest, escaped = 0, 0.0, dict[str, Any]()
    for data in eaten:
        last.note(decoder.name, data)
        before = time.process_time()
        error = _eat(decoder, data)
        slowest = max(slowest, time.process_time() - before)
        count += 1
        if error is None:
            continue
        kind = where(error)
        if kind not in escaped and len(escaped) < KEPT:
            message = str(error)[:200]
            small = data if isinstance(error, TooSlow) else _smaller(decoder, data, kind)
            escaped[kind] = {"message": message, "input": base64.b64encode(small[:4000]).decode()}
    return {"name": decoder.name, "eaten": count, "slowest_s": round(slowest, 3), "escaped": escaped}


def _too_slow(_number: int, _frame: object) -> None:
    raise TooSlow


def _most_bytes() -> int:
    """Return the most memory that this program had; ``ru_maxrss`` begins with what its parent had at the fork."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def _forget_most_bytes() -> None:
    """Let the most memory be counted from now on: drawing inputs takes some, and that is not what is asked."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _bytes_now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _import_late_modules() -> None:
    """Import what Python itself imports only when it meets it."""
    for name in (
        "utf-8-sig",
        "utf-16",
        "utf-16-le",
        "utf-16-be",
        "utf-32",
        "utf-32-le",
        "utf-32-be",
        "idna",
        "latin-1",
    ):
        codecs.lookup(name)


def _limit_memory() -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, now + ROOM))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.hostile.eat")
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--each", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[])
    arguments = parser.parse_args(argv)
    _import_late_modules()
    logging.disable(logging.CRITICAL)
    scratch: Path = arguments.scratch.resolve()
    place = scratch / "place"
    place.mkdir()
    os.chdir(place)
    last = LastInput(scratch / "last-input")
    found = [one for one in decoders(place) if not arguments.only or one.name in arguments.only]
    assert found, arguments.only
    pool = drawn(found, max(200, arguments.each // 5), arguments.seed)
    signal.signal(signal.SIGPROF, _too_slow)
    for decoder in found:  # what is imported late is imported now
        for data in (*decoder.seeds, b"\xff", b"{}"):
            _eat(decoder, decoder.repair(data) if decoder.repair else data)
    _limit_memory()
    _forget_most_bytes()
    before = _bytes_now()
    with Watch(place) as watch:
        fed = [_feed(one, inputs(one, arguments.each, arguments.seed, pool), last) for one in found]
    peak = _most_bytes()
    told = json.dumps({"decoders": fed, "grown": peak - before, "outside": watch.outside, "forbidden": watch.forbidden})
    sys.stdout.write(told)
    sys.stdout.flush()
    os._exit(0)  # threads of handlers may wait for ever


if __name__ == "__main__":
    main(sys.argv[1:])
