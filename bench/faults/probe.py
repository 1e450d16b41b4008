"""The gap probe: a site that pushes one line every 0.1 s to whoever leads, with a site's own code to follow.

``python -m bench.faults.probe PARENT KIT JOB FILE`` runs until it is killed. For each acknowledgement it appends a line
to FILE: when the line was due, when it was acknowledged (boot time, seconds), its number, and the epoch of the answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.federation import now
from fedhelm.clock import SystemClock, iso
from fedhelm.ids import new_incarnation
from fedhelm.process import die_with_parent
from fedhelm.security.kit import open_kit
from fedhelm.v1 import fleet_pb2
from fedhelm_client.links import Links, dial_with_tls

__all__ = ["EVERY", "Ack", "first_under", "longest_silence", "read_acks"]

EVERY = 0.1
_CALL_SECONDS = 30.0  # what a site's courier gives a call


@dataclass(frozen=True)
class Ack:
    """One acknowledgement: when its line was due, when the answer came, which line, under which epoch."""

    due: float
    at: float
    number: int
    epoch: int


def read_acks(path: Path) -> list[Ack]:
    """Return all acknowledgements so far."""
    try:
        lines = path.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    rows = [line.split() for line in lines]
    return [Ack(float(row[0]), float(row[1]), int(row[2]), int(row[3])) for row in rows]


def first_under(acks: list[Ack], epoch: int, after: float) -> Ack | None:
    """Return the first acknowledgement under an epoch above ``epoch`` that came after the moment ``after``."""
    return next((ack for ack in acks if ack.epoch > epoch and ack.at >= after), None)


def longest_silence(acks: list[Ack], begin: float, end: float) -> float:
    """Return the longest time without an acknowledgement between two moments, in seconds."""
    marks = [begin, *(ack.at for ack in acks if begin < ack.at < end), end]
    return max(later - earlier for earlier, later in itertools.pairwise(marks))


async def _push_for_ever(links: Links, job: str, begun: asyncio.Event, out: Any) -> None:
    await begun.wait()
    clock = SystemClock()
    number, due = 0, now()
    while True:
        await asyncio.sleep(max(0.0, due - now()))
        number += 1
        stamp = iso(clock.utcnow())
        text = json.dumps({"kind": "scalar", "tag": "probe", "value": number, "step": number, "time": stamp})
        batch = fleet_pb2.LineBatch(job=job, lines=[fleet_pb2.Line(number=number, json=text)])
        ack = await links.to_leader("probe", lambda stub, batch=batch: stub.push_lines(batch, timeout=_CALL_SECONDS))  # type: ignore[misc]
        if ack.acknowledged != number:
            raise RuntimeError(f"line {number} was answered with {ack.acknowledged}")
        out.write(f"{due:.4f} {now():.4f} {number} {links.view.highest}\n")
        out.flush()
        due = max(due + EVERY, now())


async def _run(kit_root: Path, job: str, file: Path) -> None:
    kit = open_kit(kit_root, "site")
    kit.run.mkdir(mode=0o700, exist_ok=True)
    begun = asyncio.Event()

    def assigned(assignment: fleet_pb2.Assignment) -> None:
        if any(one.job == job for one in assignment.jobs):
            begun.set()

    links = Links(
        kit,
        new_incarnation(),
        dial_with_tls(kit),
        held=lambda: [fleet_pb2.HeldJob(job=job, status="TRAINING")],
        on_assignment=assigned,
        on_change=lambda _leader, _epoch: None,
        on_order=lambda _: None,
    )
    links.start()
    with file.open("a") as out:
        await _push_for_ever(links, job, begun, out)


def main(argv: list[str]) -> int:
    parent, kit, job, file = argv
    die_with_parent(int(parent))
    asyncio.run(_run(Path(kit), job, Path(file)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
