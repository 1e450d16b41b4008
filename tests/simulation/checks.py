"""The invariants of docs/ha.md, section 6, on the final log and on what clients were told."""

from __future__ import annotations

from collections import Counter

from fedhelm.errors import FedhelmError
from fedhelm.persist.log import Log
from fedhelm_server.job_book import CONTRIBUTION_KEY, JobBook, finished
from tests.fakes.persist_memory import MemoryLogStore
from tests.simulation.runners import aggregate

__all__ = ["SERVICE_S", "check_log", "check_promises"]

SERVICE_S = 30.0
"""Seconds in which somebody must serve after everything was healed, whatever happened before; at the times of ``wan``,
as long as two fail-overs take."""

SLACK_S = 1.0

CRASH_GAP = 1.0
STORE_GAP = 10.0
"""Beyond F: how long a primary without its store waits before it gives the lease back."""


def check_promises(sim):
    """I10, and the gaps that were promised."""
    fail = sim.world.fail
    fences = [record for record in _records(sim) if record.kind == "fence"]
    sim.facts = {"fences": len(fences), "kind": sim.plan.kind, "acks": len(sim.acks), "jobs": len(sim.jobs)}
    if sim.served_at is None:
        fail("I10: nobody serves after the last heal")
    else:
        sim.facts["service_s"] = sim.served_at - sim.healed_at
        if sim.served_at - sim.healed_at > max(SERVICE_S, 2 * sim.timing.failover):
            fail(f"I10: service only {sim.served_at - sim.healed_at:.1f} s after the last heal")
    if sim.plan.kind == "benign" and len(fences) > 1:
        fail(f"a needless failover: {[(one.epoch, one.by.name, one.body['cause']) for one in fences]}")
    reach = sim.plan.reached
    if reach is not None and reach.had_leader:
        sim.facts |= {"fault": reach.fault, "gap": reach.gap}
        limit = allowed_gap(sim, reach.fault)
        if limit is not None and (reach.gap is None or reach.gap > limit):
            fail(f"the gap of {reach.fault!r} was {reach.gap}, allowed is {limit:.2f} s")


def allowed_gap(sim, fault):
    """Seconds until another epoch serves; None: none has to."""
    longest = sim.timing.failover + SLACK_S
    match fault:
        case "kill the child":
            return CRASH_GAP
        case "switch over":
            return CRASH_GAP + SLACK_S
        case "the primary's disk hangs" | "the primary's disk is down":
            return longest + STORE_GAP
        case "cut the overseers' words to the primary":
            return None  # its renewals arrive: the lease is alive
        case _:
            return longest


def _records(sim):
    """Every record there ever was: what compaction deleted was put aside."""
    whole, slots = MemoryLogStore(), sim.shared.slots
    whole.contents = {**slots.contents, **slots.archive}
    try:
        return Log(whole).read_new().records
    except FedhelmError as error:
        sim.world.fail(f"I8: the log cannot be read: {error}")
        return []


def check_short_log(sim, book):
    """Whoever starts from the newest checkpoint has the book of one who read everything."""
    try:
        batch = Log(sim.shared.slots, sim.shared.blobs).read_new()
        short = JobBook.restore(batch.base.state) if batch.base is not None else JobBook()
        for record in batch.records:
            short.apply(record)
    except FedhelmError as error:
        sim.world.fail(f"the shortened log cannot be read: {error}")
        return
    sim.facts["shortened"] = min(sim.shared.slots.contents, default=0)
    if short.seq != book.seq or short.fence != book.fence:
        sim.world.fail(f"the shortened log ends at {short.seq}, the whole at {book.seq}")
    for job in book.jobs.values():
        same = short.jobs.get(job.job)
        if same is None or (same.status, same.lines, len(same.closed)) != (job.status, job.lines, len(job.closed)):
            sim.world.fail(f"job {job.job} is another one for who starts from a checkpoint")


def check_log(sim):
    """I1 to I9 on the whole log; every record is decoded and folded as a new reader would."""
    fail = sim.world.fail
    book = JobBook()
    log, writers, fences = {}, {}, Counter()
    last = 0
    for record in _records(sim):
        try:
            book.apply(record)
        except FedhelmError as error:
            fail(f"the log cannot be folded: {error}")
            return
        log[record.seq] = record
        if record.epoch < last:
            fail(f"I1: epoch {record.epoch} after {last} in slot {record.seq}")
        last = record.epoch
        if record.kind == "fence":
            fences[record.epoch] += 1
        if record.kind != "genesis":
            writer = writers.setdefault(record.epoch, record.by)
            if writer != record.by:
                fail(f"I1: epoch {record.epoch} has two writers: {writer} and {record.by}")
    for epoch, count in fences.items():
        if count != 1:
            fail(f"I9: epoch {epoch} has {count} fences")
    _check_acks(sim, log, book)
    _check_jobs(sim, log, book)
    check_short_log(sim, book)


def _check_acks(sim, log, book):
    fail = sim.world.fail
    for key, (seq, index, epoch, _superseded), _digest in sim.acks:
        record = log.get(seq)
        if record is None or record.kind != "contribution" or index >= len(record.body["items"]):
            fail(f"I2: nothing at the receipt {seq}/{index} of {key}")
            continue
        item = record.body["items"][index]
        if (item["job"], *(item[name] for name in CONTRIBUTION_KEY)) != key or record.epoch != epoch:
            fail(f"I2: another contribution at the receipt {seq}/{index} of {key}")
    placed = Counter()
    for record in log.values():
        if record.kind == "contribution":
            placed.update((item["job"], *(item[name] for name in CONTRIBUTION_KEY)) for item in record.body["items"])
    for key, count in placed.items():
        if count != 1:
            fail(f"I3: {key} is in the log {count} times")
    for (job, site), number in sim.line_acks.items():
        found = book.jobs[job].lines.get(site, 0) if job in book.jobs else 0
        if found < number:
            fail(f"I2: lines of {site} up to {number} were acknowledged, the log has {found}")
    _check_lines(sim, log)
    for key in sim.gones:
        if key not in placed and not _superfluous(book, key):
            fail(f"a finished result was thrown away: {key}")


def _check_lines(sim, log):
    written = {}
    for record in log.values():
        if record.kind == "metrics":
            for item in record.body["items"]:
                if item["source"] in sim.site_disks:
                    written.setdefault((item["job"], item["source"]), []).extend(item["lines"])
    for (job, site), lines in written.items():
        if lines != sim.site_disks[site].lines.get(job, [])[: len(lines)]:
            sim.world.fail(f"lines of {site} for {job} are not those that it wrote")


def _superfluous(book, key):
    """Whether the round was over without this one: another life of the site contributed, or it was closed without it."""
    job = book.jobs.get(key[0])
    return job is not None and finished(job.status) and job.status != "FINISHED:COMPLETED"


def _check_jobs(sim, log, book):
    fail = sim.world.fail
    for job, seq in sim.jobs.items():
        if seq not in log or log[seq].body.get("job") != job:
            fail(f"I7: job {job} was acknowledged at {seq}, which says something else")
    if len(sim.jobs) < sim.jobs_expected:
        fail(f"I10: {sim.jobs_expected - len(sim.jobs)} jobs could not be submitted")
    for job in book.jobs.values():
        if job.status != "FINISHED:COMPLETED":
            fail(f"I10: job {job.job} is {job.status} {job.reason!r}")
    _check_rounds(sim, log)


def _check_rounds(sim, log):
    """I4 and I5, from the records alone: what was there when a round was closed, and the model that follows from it."""
    given, models, closed = {}, {}, set()
    for record in log.values():
        if record.kind == "contribution":
            for item in record.body["items"]:
                given.setdefault(_round(item), {})[item["site"]] = item
                if _round(item) in closed:
                    sim.world.fail(f"I4: a contribution to {_round(item)} after it was closed")
        elif record.kind == "round_close":
            which, members = _round(record.body), given.get(_round(record.body), {})
            if which in closed:
                sim.world.fail(f"I4: {which} is closed twice")
            closed.add(which)
            if set(members) != set(record.body["members"]):
                sim.world.fail(f"I4: {which} closed another set than was contributed")
            digests = {site: item["blob"]["digest"] for site, item in members.items()}
            models[which[0]] = aggregate(models.get(which[0]), digests)
            if models[which[0]] != record.body["model_sha256"]:
                sim.world.fail(f"I5: the model of {which} does not come from the log")


def _round(entry):
    return entry["job"], entry["step"], entry["round"], entry["kind"]
