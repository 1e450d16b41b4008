"""`python -m bench.steady --minutes 60`: a busy machine and no fault must not cause a failover.

Four processes spin, two write blocks of 1 MiB with an fsync every 64 MiB to the disk of the store, and a job runs all
the while. Every epoch above the first is a failover that nobody needed. Prints one line of JSON; exit status 1 if there
was one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.failover import LogProbe, probing_job
from bench.federation import Federation, federation, now
from bench.machine import REPOSITORY, describe, load
from fedhelm.persist import open_store
from fedhelm.process import die_with_parent

__all__ = ["main", "steady"]

RESULTS = REPOSITORY / "bench" / "steady.jsonl"
SPINNING, WRITING = 4, 2
_BLOCK = 1024 * 1024
_SYNC_EVERY = 64
_FILE_BLOCKS = 512


def _spin() -> None:
    while True:
        pass


def _write(folder: Path) -> None:
    block = os.urandom(_BLOCK)
    with (folder / f"blocks-{os.getpid()}").open("wb") as file:
        number = 0
        while True:
            if number % _FILE_BLOCKS == 0:
                file.seek(0)
            file.write(block)
            number += 1
            if number % _SYNC_EVERY == 0:
                file.flush()
                os.fsync(file.fileno())


@contextlib.contextmanager
def _load(folder: Path) -> Iterator[None]:
    words = [*(["spin"] * SPINNING), *(["write"] * WRITING)]
    command = [sys.executable, "-m", "bench.steady", "--parent", str(os.getpid()), "--folder", str(folder)]
    busy = [subprocess.Popen([*command, "--be", word], cwd=REPOSITORY, stdin=subprocess.DEVNULL) for word in words]
    try:
        yield
        dead = [one.args for one in busy if one.poll() is not None]
        if dead:
            raise RuntimeError(f"the load did not last: {dead}")
    finally:
        for one in busy:
            one.kill()
            one.wait()


def steady(minutes: float) -> dict[str, Any]:
    """Run a job under load; return what happened."""
    with federation() as made, tempfile.TemporaryDirectory(dir=made.folder) as scratch:
        made.session.submit(probing_job(made))
        kit = made.workspace.kit("server1")
        assert kit.store is not None
        with LogProbe(open_store(kit.store, kit.cluster).log) as probe:
            probe.first(0, "round_close")
            began, loads = now(), []
            with _load(Path(scratch)):
                while now() - began < minutes * 60:
                    time.sleep(min(15.0, max(0.0, began + minutes * 60 - now())))
                    loads.append(load())
                    print(f"{(now() - began) / 60:.1f} min, load {loads[-1]}", file=sys.stderr, flush=True)
            lasted = now() - began
            seen = probe.since(began)
        return _summary(made, seen, lasted, loads)


def _summary(made: Federation, seen: list[Any], lasted: float, loads: list[float]) -> dict[str, Any]:
    told = [one.at for one in seen if one.kind in ("metrics", "contribution")]
    epochs = made.session.history()
    return {
        "minutes": round(lasted / 60, 1),
        "failovers": len(epochs) - 1,
        "causes": [one.cause for one in epochs[1:]],
        "rounds": sum(one.kind == "round_close" for one in seen),
        "records": len(seen),
        "checkpoints": sum(one.kind == "checkpoint" for one in seen),
        "longest_silence_s": round(max((b - a for a, b in pairwise(told)), default=lasted), 3),
        "load_max": max(loads, default=load()),
    }


def main(argv: list[str]) -> int:
    """Measure, or be a part of the load."""
    parser = argparse.ArgumentParser(prog="python -m bench.steady", description=__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="append here (%(default)s)")
    for hidden in ("--be", "--parent", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.be:
        die_with_parent(int(args.parent))
        _spin() if args.be == "spin" else _write(Path(args.folder))
    machine = describe(Path(tempfile.gettempdir()))
    line = steady(args.minutes) | {"time": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine}
    text = json.dumps(line)
    with args.results.open("a") as file:
        file.write(text + "\n")
    print(text)
    return 1 if line["failovers"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
