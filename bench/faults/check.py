"""The offline check of a history against I1 to I10 (docs/ha.md section 6). Pure: values in, findings out.

Nothing here is shared with the code that wrote the history but the record's form.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.faults.work import Call, JobPlan, average, safetensors
from fedhelm.persist.record import NO_RECORD, Record

__all__ = ["Evidence", "JobEvidence", "Receipt", "check_history", "check_job", "check_models"]

CONTRIBUTION = ("job", "attempt", "step", "round", "kind", "site", "sequence")
ROUND = ("job", "attempt", "step", "round", "kind")
_RAISING = ("fence", "epoch_repair")


@dataclass(frozen=True)
class Receipt:
    """What a site's log says of an acknowledged contribution."""

    site: str
    job: str
    kind: str
    round: int
    seq: int
    epoch: int


@dataclass(frozen=True)
class JobEvidence:
    """What is known of a job from outside the log.

    Attributes:
        job: its id, which the primary gave when it accepted the job.
        plan: what it was to do.
        models: sha256 after each round, computed apart.
        status: what a client was told at the end; None: nobody was told.
        calls: what each site's script wrote.
        kills: when the fault killed a site's own processes (boot time), by site.
        doomed: what the reason of its failure must say, where the fault was meant to cost the job; None: it has to
            complete.
        aborted: an admin aborted it: it has to end so, and never to run again.
    """

    job: str
    plan: JobPlan
    models: Sequence[str]
    status: str | None
    calls: Mapping[str, Sequence[Call]]
    kills: Mapping[str, Sequence[float]] = field(default_factory=dict)
    doomed: str | None = None
    aborted: bool = False


@dataclass(frozen=True)
class Evidence:
    """What clients of a federation know.

    Attributes:
        receipts: of contributions.
        acknowledged: (job, source) -> highest line number that was acknowledged to a client.
        epochs_seen: site -> the epochs that it followed, in order.
    """

    receipts: Sequence[Receipt] = ()
    acknowledged: Mapping[tuple[str, str], int] = field(default_factory=dict)
    epochs_seen: Mapping[str, Sequence[int]] = field(default_factory=dict)


def _items(record: Record) -> list[Any]:
    return list(record.body.get("items", (record.body,)))


def _chain(history: Sequence[Record]) -> Iterator[str]:
    prev = NO_RECORD
    for number, record in enumerate(history):
        if record.seq != number:
            yield f"I8: slot {number} holds record {record.seq}"
        if record.prev != prev:
            yield f"I8: slot {record.seq} does not continue the slot before"
        prev = record.sha256


def _epochs(history: Sequence[Record]) -> Iterator[str]:
    writers: dict[int, tuple[str, str]] = {}
    highest = 0
    for record in history:
        if record.kind == "genesis":
            continue
        by = (record.by.name, record.by.incarnation)
        if record.epoch < highest:
            yield f"I1: epoch {record.epoch} after {highest} in slot {record.seq}"
        highest = max(highest, record.epoch)
        if record.kind in _RAISING:
            if record.epoch in writers:
                yield f"I9: a second fence of epoch {record.epoch} in slot {record.seq}"
            if record.kind == "fence" and not record.body.get("cause"):
                yield f"I9: the fence of epoch {record.epoch} has no cause"
            writers.setdefault(record.epoch, by)
        if record.epoch not in writers:
            yield f"I9: slot {record.seq} is of epoch {record.epoch}, which has no fence"
        elif writers[record.epoch] != by:
            yield f"I1: epoch {record.epoch} has two writers: {writers[record.epoch]} and {by} in slot {record.seq}"


def _contributions(history: Sequence[Record]) -> Iterator[str]:
    given: dict[tuple[Any, ...], set[str]] = {}
    seen: set[tuple[Any, ...]] = set()
    closed: set[tuple[Any, ...]] = set()
    for record in history:
        for item in _items(record) if record.kind in ("contribution", "round_close") else ():
            which = tuple(item[name] for name in ROUND)
            if record.kind == "contribution":
                key = tuple(item[name] for name in CONTRIBUTION)
                if key in seen:
                    yield f"I3: contribution {key} is recorded twice, again in slot {record.seq}"
                seen.add(key)
                if which in closed:
                    yield f"I4: {item['site']} contributed to closed round {which} in slot {record.seq}"
                given.setdefault(which, set()).add(item["site"])
            else:
                if which in closed:
                    yield f"I4: round {which} is closed twice, again in slot {record.seq}"
                closed.add(which)
                if set(item["members"]) != given.get(which, set()):
                    yield f"I4: round {which} is closed with {item['members']}, given by {sorted(given.get(which, ()))}"


def _acknowledged(history: Sequence[Record], evidence: Evidence) -> Iterator[str]:
    last: dict[tuple[str, str], int] = {}
    for record in history:
        for item in _items(record) if record.kind == "metrics" else ():
            key = (item["job"], item["source"])
            if item["first"] != last.get(key, 0) + 1:
                yield f"I2: lines of {key} go on at {item['first']} after {last.get(key, 0)} in slot {record.seq}"
            last[key] = item["first"] + len(item["lines"]) - 1
    for key, number in evidence.acknowledged.items():
        if last.get(key, 0) < number:
            yield f"I2: line {number} of {key} was acknowledged, the log ends at {last.get(key, 0)}"
    for receipt in evidence.receipts:
        if not _is_there(history, receipt):
            yield f"I2: acknowledged but not in the log: {receipt}"
    for site, epochs in evidence.epochs_seen.items():
        if list(epochs) != sorted(epochs):
            yield f"I6: {site} saw epochs {list(epochs)}"


def _is_there(history: Sequence[Record], receipt: Receipt) -> bool:
    if receipt.seq >= len(history):
        return False
    record = history[receipt.seq]
    wanted = (receipt.job, receipt.kind, receipt.round, receipt.site)
    return (
        record.kind == "contribution"
        and record.epoch == receipt.epoch
        and any((item["job"], item["kind"], item["round"], item["site"]) == wanted for item in _items(record))
    )


def check_history(history: Sequence[Record], evidence: Evidence) -> list[str]:
    """Return what is wrong with a whole log, and with what it says of all that was acknowledged; empty: nothing.

    Args:
        history: every record from genesis on, compacted ones too.
        evidence: what clients know.
    """
    findings = [*_chain(history), *_epochs(history), *_contributions(history), *_acknowledged(history, evidence)]
    accepted = Counter(record.body["job"] for record in history if record.kind == "job_submitted")
    ended = Counter(record.body["job"] for record in history if record.kind == "job_done")
    findings += [f"I7: job {job} is recorded {n} times" for job, n in accepted.items() if n > 1]
    findings += [f"I7: job {job} has ended {n} times" for job, n in ended.items() if n > 1]
    return findings


def _calls(one: JobEvidence) -> Iterator[str]:
    for site in one.plan.sites:
        begun: dict[tuple[str, int], list[Call]] = {}
        accepted: set[tuple[str, int]] = set()
        for call in one.calls.get(site, ()):
            key = (call.kind, call.round)
            if call.word == "begin":
                if key in accepted:
                    yield f"{site} trained round {call.round} again, whose result it had finished"
                elif begun.get(key):
                    before = begun[key][-1].at
                    if not any(before <= moment <= call.at for moment in one.kills.get(site, ())):
                        yield f"{site} trained round {call.round} twice, and nothing had killed it"
                begun.setdefault(key, []).append(call)
            elif call.word == "accepted":
                accepted.add(key)
        if one.status == "FINISHED:COMPLETED" and set(begun) != {("train", n + 1) for n in range(one.plan.rounds)}:
            yield f"{site} was called for {sorted(begun)}"


def _lines(history: Sequence[Record], one: JobEvidence) -> Iterator[str]:
    values: Counter[tuple[str, float]] = Counter()
    for record in history:
        for item in _items(record) if record.kind == "metrics" else ():
            if item["job"] == one.job:
                values.update((item["source"], line["value"]) for line in item["lines"] if line["tag"] == "trial")
    for site in one.plan.sites:
        for number in range(1, one.plan.rounds + 1):
            for k in range(one.plan.lines):
                count = values[site, number * 1000 + k]
                if count == 0:
                    yield f"I2: line {number * 1000 + k} of {site} is lost"
                elif count > 1 and not one.kills.get(site):
                    yield f"I3: line {number * 1000 + k} of {site} is recorded {count} times"


def check_job(history: Sequence[Record], one: JobEvidence) -> list[str]:
    """Return what is wrong with one job that had to complete with all its sites; empty: nothing."""
    records = [record for record in history if any(item.get("job") == one.job for item in _items(record))]
    if not any(record.kind == "job_submitted" for record in records):
        return [f"I7: accepted job {one.job} is not in the log"]
    done = next((record.body for record in records if record.kind == "job_done"), None)
    if done is None:
        return [f"I10: job {one.job} has not ended; a client was told {one.status}"]
    if done["status"] != one.status:
        return [f"I7: job {one.job} is {done['status']}, a client was told {one.status}"]
    if one.aborted:
        return list(_aborted(records, one, done["status"]))
    if one.doomed is not None:
        said = re.search(one.doomed, done["reason"])
        expected = done["status"] == "FINISHED:FAILED" and said is not None
        return [] if expected else [f"job {one.job} is {done['status']}: {done['reason']!r} does not say {one.doomed}"]
    if done["status"] != "FINISHED:COMPLETED":
        return [f"job {one.job} is {done['status']}: {done['reason']}"]
    closes = [record.body for record in records if record.kind == "round_close"]
    findings = [*_calls(one), *_lines(history, one)]
    if [body["model_sha256"] for body in closes] != list(one.models):
        findings.append(f"the models of job {one.job} are not those of a run without a fault")
    if any(sorted(body["members"]) != sorted(one.plan.sites) for body in closes):
        findings.append(f"not every site is in every round of job {one.job}")
    return findings


def _aborted(records: Sequence[Record], one: JobEvidence, status: str) -> Iterator[str]:
    if status != "FINISHED:ABORTED":
        yield f"aborted job {one.job} is {status}"
    ended = next(record.seq for record in records if record.kind == "job_done")
    for record in records:
        if record.seq > ended and record.kind in ("job_state", "round_open", "round_close"):
            yield f"I7: aborted job {one.job} runs again: {record.kind} in slot {record.seq}"


def check_models(history: Sequence[Record], job: str, read: Callable[[Any], bytes]) -> list[str]:
    """Compute each model of a job again from the contributions in the log (I5).

    Args:
        history: every record.
        job: whose.
        read: returns a blob's bytes; raises FileNotFoundError.
    """
    given: dict[int, list[Any]] = {}
    findings = []
    for record in history:
        for item in _items(record) if record.kind in ("contribution", "round_close") else ():
            if item.get("job") != job or item["kind"] != "train":
                continue
            if record.kind == "contribution":
                given.setdefault(item["round"], []).append(item)
                continue
            try:
                sources = sorted(given[item["round"]], key=lambda one: str(one["site"]))
                model = average([(float(one["weight"]), _tensor(read(one["blob"]))) for one in sources])
                stored = hashlib.sha256(read(item["model"])).hexdigest()
            except (FileNotFoundError, KeyError) as error:
                findings.append(f"I5: round {item['round']} of job {job} cannot be computed again: {error}")
                continue
            if {hashlib.sha256(safetensors(model)).hexdigest(), stored} != {item["model_sha256"]}:
                findings.append(
                    f"I5: the model of round {item['round']} of job {job} is not its contributions' average"
                )
    return findings


def _tensor(data: bytes) -> Any:
    return np.frombuffer(data[8 + int.from_bytes(data[:8], "little") :], np.float32)
