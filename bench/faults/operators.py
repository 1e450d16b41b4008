"""What operators do at the wrong moment, and what kits and messages do that come twice."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from bench.faults.kinds import Scene, kind
from bench.faults.processes import power_off, send
from bench.federation import now, until
from fedhelm.config.kit import read_kit
from fedhelm.errors import FedhelmError, NotFound, Refused
from fedhelm.provision.launch import spawn
from fedhelm.provision.stop import Home, stop_all
from fedhelm.v1 import common_pb2, fleet_pb2
from fedhelm.wire.channels import FleetStub, aio_channel

__all__: list[str] = []

_LAGGING_TRIES = 8
_LAGGING_SECONDS = 2.0

_REFUSALS = {
    "dead": (Refused.code, "is down"),
    "lagging": (Refused.code, "records behind"),
    "unknown": (NotFound.code, "no server"),
    "active": (Refused.code, "leads already"),
}
"""Target of a switchover -> the code and the words with which it has to be refused."""


@kind("switchover-refused", "none", failover=False, rested=True, prelude=True, weight=2)
def switchover_refused(scene: Scene) -> Iterator[None]:
    """``promote_sp`` of a server that is dead, lagging, unknown or leads already: refused before anything drains."""
    target = scene.standby
    why = scene.params["target"] = scene.rng.choice(list(_REFUSALS))
    if why == "dead":
        power_off(scene, target)
        until(lambda: True if _state(scene, target) == "DOWN" else None, 20, f"{target} is down")
    name = {"unknown": "server99", "active": scene.primary}.get(why, target)
    yield
    yield
    if why == "lagging":
        _promote_lagging(scene, target)
        return
    said: list[tuple[str, str]] = []
    scene.strike(lambda: said.append(_refusal(scene, name)))
    _expect_refusal(scene, why, *said[0])


def _refusal(scene: Scene, name: str) -> tuple[str, str]:
    """Ask for a switchover; return code and words of the refusal, empty if it was not refused."""
    try:
        scene.lab.session.promote(name, timeout=10)
    except FedhelmError as error:
        scene.params["said"] = str(error)[:120]
        return error.code, str(error)
    return "", ""


def _expect_refusal(scene: Scene, why: str, code: str, text: str) -> None:
    wanted, words = _REFUSALS[why]
    right = code == wanted and words in text
    scene.expect(right, f"promote_sp of a server that is {why} was answered with {code or 'yes'}: {text[:200]}")


def _promote_lagging(scene: Scene, target: str) -> None:
    """Stop the target's child: its supervisor still beats, and tells how far the child had read.

    That lasts until the child is replaced as wedged, half a lease later. Where nobody saw it lag so long, it is tried
    again. Struck is when it first begins to lag.
    """
    for number in range(1, _LAGGING_TRIES + 1):
        scene.params["tries"] = number
        pid = scene.lab.pid(target, "child")
        if number == 1:
            scene.strike(lambda pid=pid: send([pid], signal.SIGSTOP))  # type: ignore[misc]
        else:
            send([pid], signal.SIGSTOP)
        try:
            if _seen_to_lag(scene, target):
                code, text = _refusal(scene, target)
                if "last heard" not in text:  # else it was slower than its child's end
                    _expect_refusal(scene, "lagging", code, text)
                    return
        finally:
            send([pid], signal.SIGCONT)
        scene.lab.wait_whole()
        scene.lab.wait_candidates()
    scene.findings.append(f"{target} was not seen to lag in {_LAGGING_TRIES} tries")


def _seen_to_lag(scene: Scene, target: str) -> bool:
    deadline = now() + _LAGGING_SECONDS
    while now() < deadline:
        if any(one.name == target and one.lag for one in scene.lab.session.servers(timeout=5)):
            return True
    return False


def _state(scene: Scene, name: str) -> str:
    return next(one.state for one in scene.lab.session.servers(timeout=5) if one.name == name)


@kind("switchover-interrupted", "compound", failover=True, weight=2, rested=True)
def switchover_interrupted(scene: Scene) -> Iterator[None]:
    """The old or the new primary's child dies in the middle of a planned switchover."""
    lab, target = scene.lab, scene.standby
    victim = scene.rng.choice([scene.primary, target])
    scene.params["victim"] = "old" if victim == scene.primary else "new"
    pid = lab.pid(victim, "child")
    delay = scene.rng.uniform(0.0, 0.15)

    def ask() -> None:
        try:
            lab.session.promote(target, timeout=30)
        except FedhelmError as error:
            scene.params["said"] = str(error)[:120]

    asking = threading.Thread(target=ask, name="promote")
    yield
    scene.strike(asking.start)
    time.sleep(delay)
    send([pid], signal.SIGKILL)
    asking.join()


@kind("name-used-twice", "none", failover=False)
def name_used_twice(scene: Scene) -> Iterator[None]:
    """A second kit of a server's name is started, as on another machine: it is refused by name."""
    lab = scene.lab
    name = scene.rng.choice([scene.primary, scene.standby])
    scene.params["of"] = "primary" if name == scene.primary else "standby"
    twin = lab.second_kit(name)
    yield
    launched = []
    scene.strike(lambda: launched.append(spawn(read_kit(twin))))
    try:
        until(lambda: launched[0].exited or None, 30, f"the second {name} ends")
        said = (twin / "log.txt").read_text().strip().splitlines()[-1]
        scene.params["said"] = said[:160]
        scene.expect(name in said and "error[" in said, f"the second {name} does not say why it ends: {said[:300]}")
    finally:
        stop_all([Home(twin, "server", name)])
        shutil.rmtree(twin.parent)


@kind("duplicates", "none", failover=False)
def duplicates(scene: Scene) -> Iterator[None]:
    """Contributions and lines are sent again, with other contents too, and late: one receipt, or "gone"."""
    yield
    scene.strike(lambda: None)
    asyncio.run(_again(scene))


async def _again(scene: Scene) -> None:
    lab, job = scene.lab, scene.jobs[0].handle.job_id
    placed = [
        (one.record, index, item)
        for one in lab.watch.seen
        if one.record.kind == "contribution"
        for index, item in enumerate(one.record.body["items"])
        if item["job"] == job
    ]
    for site in lab.sites:
        kit = lab.kit(site)
        address = kit.server(lab.primary())
        channel = aio_channel(kit, address.host, address.fed_learn_port, address.name)
        stub = FleetStub(channel, address.name)
        try:
            for record, index, item in placed:
                if item["site"] == site:
                    others = [o for _, _, o in placed if o["round"] == item["round"] and o["site"] != site]
                    await _offer_again(scene, stub, item, (record.seq, index, record.epoch), others)
            await _lines_again(scene, stub, job, site)
        finally:
            await channel.close(None)


def _contribution(item: Any, blob: Any, attempt: int) -> fleet_pb2.Contribution:
    return fleet_pb2.Contribution(
        job=item["job"],
        attempt=attempt,
        step=item["step"],
        round=item["round"],
        kind=item["kind"],
        site=item["site"],
        sequence=item["sequence"],
        blob=common_pb2.BlobRef(**blob),
        weight=item["weight"],
        metrics_json=json.dumps(item["metrics"]),
    )


async def _offer_again(scene: Scene, stub: FleetStub, item: Any, where: tuple[int, int, int], others: Any) -> None:
    async def offer(blob: Any, attempt: int) -> common_pb2.Receipt | None:
        try:
            return await stub.contribute(_contribution(item, blob, attempt), timeout=10)
        except FedhelmError as error:  # the blobs of a closed round may be gone already
            scene.params["refused"] = str(error)[:120]
            return None

    # Receipts are kept for the open round and the one before; of an older one the answer is that it is over.
    same = await offer(item["blob"], item["attempt"])
    if same is not None and not same.gone:
        got = (same.seq, same.index, same.epoch)
        scene.expect(got == where and not same.superseded, f"sent again, {where} was answered with {got}")
    if same is not None and same.gone:
        scene.expect(_closed(scene, item), f"sent again, {where} of a round that is not closed is gone")
    for other in others:
        answer = await offer(other["blob"], item["attempt"])
        told = answer is None or answer.superseded or (answer.gone and _closed(scene, item))
        scene.expect(told, "another result under a recorded id is not superseded")
    late = await offer(item["blob"], item["attempt"] + 1)
    scene.expect(late is None or late.gone, "a result of another attempt was recorded")


def _closed(scene: Scene, item: Any) -> bool:
    which = ("job", "step", "round", "kind")
    closes = (one.record.body for one in scene.lab.watch.seen if one.record.kind == "round_close")
    return any(all(body[key] == item[key] for key in which) for body in closes)


async def _lines_again(scene: Scene, stub: FleetStub, job: str, site: str) -> None:
    recorded = [
        line
        for one in scene.lab.watch.seen
        if one.record.kind == "metrics"
        for item in one.record.body["items"]
        if (item["job"], item["source"]) == (job, site)
        for line in item["lines"]
    ]
    lines = [fleet_pb2.Line(number=number, json=json.dumps(line)) for number, line in enumerate(recorded, 1)]
    if lines:
        ack = await stub.push_lines(fleet_pb2.LineBatch(job=job, lines=lines), timeout=10)
        scene.expect(ack.acknowledged >= len(lines), "lines that are in the log are not acknowledged again")
