"""The runner of one job, against a child that appends to a real log by the real rules."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedhelm.errors import StoreUnavailable
from fedhelm.persist.blobs import BlobReader, BlobRef
from fedhelm.persist.posix import PosixBlobStore, PosixLogStore
from fedhelm.persist.store import init_store, open_store
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.provenance import verify_provenance
from fedhelm.security.statements import Trust
from fedhelm.tensors.codec import read_file
from fedhelm_server.job_state import counted
from fedhelm_server.runner import Runner, _Gone
from tests.fakes.server_child import Child, FaultyBlobs, arrays_of, upload
from tests.fakes.server_kit import server_kit
from tests.fakes.server_log import JOB, TIME, Writer, contribution, cover, done, fold, items, line, state, submitted
from tests.support.waiting import eventually_sync

CLUSTER = "c" * 32
AUTHORITY = CertificateAuthority.create("poc")


class Bench:
    """A store with a dispatched job, a child, and runners in threads."""

    def __init__(self, tmp_path):
        self.root = tmp_path / "store"
        init_store(self.root, CLUSTER, "poc")
        (tmp_path / "kit" / "startup").mkdir(parents=True)
        self.kit = dataclasses.replace(server_kit(tmp_path / "kit"), cluster=CLUSTER)
        issued = AUTHORITY.issue("server", "server1", "nvidia")
        self.kit.cert.write_bytes(issued.cert)
        self.kit.key.write_bytes(issued.key)
        self.writer = Writer(PosixLogStore(self.root), blobs=PosixBlobStore(self.root))
        self.threads = []

    def job(self, sites=("site-1", "site-2"), **options):
        durability = options.pop("durability", "durable")
        item = submitted(**options)
        self.writer.append("job_submitted", {**item, "config": {**item["config"], "durability": durability}})
        self.writer.append("job_state", state(sites=sites))

    def child(self, on_open=None):
        return Child(self.root, CLUSTER, on_open, self.writer)

    def start(self, child, store=None):
        """Run a new runner in a thread; return it with what its run ended with, once it has."""
        runner = Runner(self.kit, store or open_store(self.root, CLUSTER), JOB, child.connect())
        outcome = SimpleNamespace(runner=runner, error=None, channel=runner._channel)

        def run():
            try:
                runner.run()
            except BaseException as error:  # noqa: BLE001 - whatever ended it is looked at by the test
                outcome.error = error
            finally:
                runner._channel.close()

        thread = threading.Thread(target=run, daemon=True)
        outcome.thread = thread
        self.threads.append((thread, child))
        thread.start()
        return outcome

    def run(self, child, store=None):
        outcome = self.start(child, store)
        outcome.thread.join(30)
        assert not outcome.thread.is_alive(), "the runner did not end"
        if outcome.error is not None:
            raise outcome.error
        return child.job

    def model(self, entry, tmp_path):
        reader = BlobReader(open_store(self.root, CLUSTER).blobs, BlobRef.from_json(entry["model"]))
        data = reader.read()
        assert hashlib.sha256(data).hexdigest() == entry["model_sha256"]  # I5
        path = tmp_path / "model.safetensors"
        path.write_bytes(data)
        return read_file(path)

    def stop(self):
        for thread, child in self.threads:
            if thread.is_alive():
                child.channel._socket.shutdown(2)
            thread.join(10)
            assert not thread.is_alive()
            assert child.gone.wait(10)


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.stop()


def test_rounds_are_averaged_exactly_and_the_job_completes(bench, tmp_path):
    bench.job(rounds=2)
    child = bench.child()
    job = bench.run(child)
    assert (job.status, job.reason) == ("FINISHED:COMPLETED", "")
    assert child.proposed == ["job_state", "round_open", "round_close", "round_open", "round_close", "job_done"]
    for number, entry in enumerate(job.closed, 1):
        found = bench.model(entry, tmp_path)
        one, two = arrays_of("site-1", number), arrays_of("site-2", number)
        for name in one:  # weights 1 and 2
            exact = (one[name].astype(np.float64) + 2 * two[name].astype(np.float64)) / 3
            assert np.array_equal(found[name], exact.astype(one[name].dtype))
        assert entry["members"] == ["site-1", "site-2"]
        assert entry["weights"] == {"site-1": 1.0, "site-2": 2.0}
        assert entry["metrics"] == {"accuracy": number / 8}
    opened = [record.body for record in fold(PosixLogStore(bench.root))[1] if record.kind == "round_open"]
    assert [body["model_sha256"] for body in opened] == [None, job.closed[0]["model_sha256"]]
    assert opened[1]["model"] == job.closed[0]["model"]
    assert "job abcdefghijkl is complete" in child.said[-1]


def test_evaluation_rounds_have_metrics_and_no_model(bench):
    bench.job(rounds=1, evaluate=True)
    job = bench.run(bench.child())
    assert [(entry["kind"], entry["model"] is None) for entry in job.closed] == [("train", False), ("evaluate", True)]
    assert job.model["kind"] == "train"
    assert job.closed[1]["site_metrics"] == {"site-1": {"accuracy": 0.125}, "site-2": {"accuracy": 0.125}}


@pytest.mark.parametrize("killed_after", ["job_state", "round_open", "round_close"])
def test_a_runner_killed_in_the_middle_is_followed_by_one_that_makes_the_same_model(bench, tmp_path, killed_after):
    bench.job(rounds=2)
    child = bench.child()
    child.hold_after = killed_after
    first = bench.start(child)
    first.thread.join(30)
    assert isinstance(first.error, _Gone)
    if child.job.open is not None:  # the sites answer while nobody aggregates
        for weight, site in enumerate(child.job.open.members, 1):
            child.poke = lambda: None
            child.give(site, float(weight), metrics={"accuracy": 0.125})
        del child.poke
    interrupted = bench.run(child)

    other = Bench(tmp_path / "undisturbed")
    other.job(rounds=2)
    whole = other.run(other.child())
    other.stop()
    assert interrupted.status == whole.status == "FINISHED:COMPLETED"
    assert [e["model_sha256"] for e in interrupted.closed] == [e["model_sha256"] for e in whole.closed]
    assert [(e["step"], e["round"], e["kind"]) for e in interrupted.closed] == [(0, 1, "train"), (0, 2, "train")]


def test_the_order_of_arrival_does_not_change_the_model(bench, tmp_path):
    def backwards(child):
        for weight, site in reversed(list(enumerate(child.job.open.members, 1))):
            child.give(site, float(weight))

    bench.job()
    other = Bench(tmp_path / "other")
    other.job()
    hashes = {b.run(c).closed[0]["model_sha256"] for b, c in ((bench, bench.child(backwards)), (other, other.child()))}
    other.stop()
    assert len(hashes) == 1


def test_a_full_store_is_tried_again_until_the_model_is_written(bench):
    bench.job()
    store = open_store(bench.root, CLUSTER)
    blobs = FaultyBlobs(store.blobs)
    blobs.full = 2
    child = bench.child()
    job = bench.run(child, dataclasses.replace(store, blobs=blobs))
    assert blobs.refused == 2
    assert job.status == "FINISHED:COMPLETED"
    assert child.proposed.count("round_close") == 1


def test_a_store_that_cannot_be_read_for_a_while_costs_no_job(bench):
    bench.job()
    store = open_store(bench.root, CLUSTER)
    under, away = store.log._store, threading.Event()
    tried = []

    class Flaky:
        def __getattr__(self, name):
            return getattr(under, name)

        def read(self, seq):
            if away.is_set():
                tried.append(seq)
                raise StoreUnavailable("away")
            return under.read(seq)

    store.log._store = Flaky()
    child = bench.child(lambda child: (away.set(), child.poke()))
    outcome = bench.start(child, store)
    eventually_sync(lambda: len(tried) > 1)
    assert outcome.thread.is_alive(), outcome.error
    child.everybody(child)
    away.clear()
    outcome.thread.join(30)
    assert outcome.error is None
    assert child.job.status == "FINISHED:COMPLETED"


def test_contributions_that_do_not_fit_fail_the_job_and_say_why(bench):
    def misfit(child):
        child.give("site-1")
        child.give("site-2", arrays={"w": np.zeros((5,), np.float32)})

    bench.job()
    job = bench.run(bench.child(misfit))
    assert job.status == "FINISHED:FAILED"
    assert job.reason.startswith("round 1: ")
    assert "site-2" in job.reason
    assert job.closed == []


def test_a_contribution_that_is_not_finite_fails_the_job_and_names_the_site(bench):
    def poisoned(child):
        child.give("site-1")
        child.give("site-2", arrays={**arrays_of("site-2", 1), "b": np.array([0, np.nan, 0, 0])})

    bench.job()
    job = bench.run(bench.child(poisoned))
    assert job.status == "FINISHED:FAILED"
    assert "site-2 holds nan in tensor 'b'" in job.reason


FINE = {"w": np.ones((3, 2), np.float32), "b": np.ones(4)}
BAD = {
    "not finite": {**FINE, "b": np.array([0, np.nan, 0, 0])},
    "another shape": {**FINE, "w": np.ones((5,), np.float32)},
    "one tensor more": {**FINE, "c": np.ones(1)},
}


def refusing(bad, sites=("a-site", "b-site", "c-site")):
    """In each round a-site gives this, the others what is fine."""

    def give(child):
        child.give(sites[0], arrays=bad)
        for site in sites[1:]:
            child.give(site, arrays=FINE)

    return give


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_contribution_is_refused_by_name_and_the_round_goes_on(bench, tmp_path, bad):
    sites = ("a-site", "b-site", "c-site")
    bench.job(sites=sites, rounds=2, min_responses=2)
    child = bench.child(refusing(BAD[bad]))
    job = bench.run(child)
    assert (job.status, job.reason) == ("FINISHED:COMPLETED", "")
    for entry in job.closed:
        assert (entry["members"], counted(entry)) == ([*sites], ["b-site", "c-site"])
        assert entry["weights"] == {"b-site": 1.0, "c-site": 1.0}
        assert [*entry["refused"]] == ["a-site"]
        assert bench.model(entry, tmp_path)["b"].tolist() == [1.0] * 4
    said = [text for text in child.said if "refused" in text]
    assert [text.partition(" is refused")[0] for text in said] == [
        f"round {n}: the contribution of a-site" for n in (1, 2)
    ]
    ((_, verified),) = statements(bench)
    assert verified.provenance.members == ("b-site", "c-site")


def test_a_weight_beyond_all_counting_that_an_older_server_took_is_refused_by_name(bench):
    bench.job(sites=("a-site", "b-site", "c-site"), min_responses=2)

    def give(child):
        for site, weight in (("a-site", 1e308), ("b-site", 1.0), ("c-site", 1.0)):
            owner = f"jobs/{JOB}/0-1/sites"
            blob = upload(child.store.blobs, owner, FINE)
            child.writer.append("contribution", {"items": [contribution(site, blob=blob, weight=weight)]})
        child.poke()

    job = bench.run(bench.child(give))
    assert job.status == "FINISHED:COMPLETED"
    assert "1e+308" in job.closed[0]["refused"]["a-site"]


def test_the_first_round_has_nothing_but_contributions_to_compare_and_two_cannot_tell(bench):
    sites = ("a-site", "b-site")
    bench.job(sites=sites)
    job = bench.run(bench.child(refusing(BAD["another shape"], sites=sites)))
    assert job.status == "FINISHED:FAILED"
    assert job.reason.startswith("round 1: the contributions of a-site and b-site do not fit one another: tensor 'w'")


def test_two_that_do_not_fit_wait_for_one_who_tells(bench):
    """With two answers the round would close; a third one comes after the runner has looked."""

    bench.job(sites=("a-site", "b-site", "c-site"), min_responses=2)
    child = bench.child(refusing(BAD["another shape"], ("a-site", "b-site")))
    serve = child._on_frame

    def third(channel, frame):
        serve(channel, frame)
        if any("it waits for c-site" in line["value"] for line in frame.get("lines", ())):
            child.give("c-site", arrays=FINE)

    child._on_frame = third
    job = bench.run(child)
    assert job.status == "FINISHED:COMPLETED"
    assert [*job.closed[0]["refused"]] == ["a-site"]


def test_a_job_that_waits_for_all_ends_with_the_name_and_the_reason(bench):
    bench.job(sites=("a-site", "b-site", "c-site"))
    job = bench.run(bench.child(refusing(BAD["another shape"])))
    assert job.status == "FINISHED:FAILED"
    assert job.reason.startswith(
        "a-site failed: the contribution of a-site does not fit most contributions: tensor 'w'"
    )
    assert job.closed == []


def test_the_rounds_model_says_who_is_wrong_where_there_are_two(bench):
    def give(child):
        if child.job.open.round == 2:
            child.give("a-site", arrays=BAD["another shape"])
        child.give("b-site", arrays=FINE)

    bench.job(sites=("a-site", "b-site"), rounds=3, min_responses=1)
    job = bench.run(bench.child(give))
    assert job.status == "FINISHED:COMPLETED"
    assert {entry["round"]: [*entry["refused"]] for entry in job.closed if entry.get("refused")} == {2: ["a-site"]}
    assert {entry["model_sha256"] for entry in job.closed} == {job.closed[0]["model_sha256"]}


def test_another_runner_comes_to_the_same_refusal(bench, tmp_path):
    """It dies when the round is closed, or before it could propose that: from the log alone the next one goes on."""
    made = []
    for folder, hold in (("whole", None), ("killed", "round_open"), ("later", "round_close")):
        one = Bench(tmp_path / folder)
        one.job(sites=("a-site", "b-site", "c-site"), rounds=2, min_responses=2)
        child = one.child(refusing(BAD["not finite"]))
        child.hold_after = hold
        outcome = one.start(child)
        outcome.thread.join(30)
        if hold is not None:
            assert child.gone.wait(10)
            if child.job.open is not None:
                child.poke = lambda: None
                refusing(BAD["not finite"])(child)
                del child.poke
            one.run(child)
        one.stop()
        assert child.job.status == "FINISHED:COMPLETED"
        made.append([(entry["model_sha256"], entry["refused"], entry["weights"]) for entry in child.job.closed])
    assert made[0] == made[1] == made[2]


def test_the_same_of_an_ephemeral_job(bench):
    bench.job(sites=("a-site", "b-site", "c-site"), min_responses=2, durability="ephemeral")
    job = bench.run(bench.child(refusing(BAD["not finite"])))
    assert job.status == "FINISHED:COMPLETED"
    assert [*job.closed[0]["refused"]] == ["a-site"]


def test_a_refusal_counts_for_its_round_alone(bench):
    def once(child):
        refusing(BAD["not finite"] if child.job.open.round == 1 else FINE)(child)

    bench.job(sites=("a-site", "b-site", "c-site"), rounds=2, min_responses=2)
    job = bench.run(bench.child(once))
    assert [counted(entry) for entry in job.closed] == [["b-site", "c-site"], ["a-site", "b-site", "c-site"]]
    assert "refused" not in job.closed[1]


def test_a_damaged_blob_fails_its_job_alone(bench):
    def damage(child):
        child.give("site-1")
        chunks = [p for p in (bench.root / "blobs").rglob("c-*") if "0-1/sites" in str(p)]
        data = bytearray(chunks[0].read_bytes())
        data[-1] ^= 1
        chunks[0].chmod(0o600)
        chunks[0].write_bytes(data)
        child.give("site-2")

    bench.job()
    job = bench.run(bench.child(damage))
    assert (job.status, "damaged" in job.reason) == ("FINISHED:FAILED", True)


def test_a_failed_site_fails_a_job_that_waits_for_all_with_its_traceback(bench):
    bench.job()
    child = bench.child(lambda child: child.fail("site-2", "ValueError: boom", "Traceback ..."))
    job = bench.run(child)
    assert job.status == "FINISHED:FAILED"
    assert "site-2 failed: ValueError: boom" in job.reason
    assert job.traceback == "Traceback ..."


def test_a_job_goes_on_without_a_failed_site_where_it_may(bench):
    def half(child):
        if "site-2" not in child.job.failed:
            child.fail("site-2")
        child.give("site-1")

    bench.job(rounds=2, min_responses=1)
    job = bench.run(bench.child(half))
    assert job.status == "FINISHED:COMPLETED"
    assert [entry["members"] for entry in job.closed] == [["site-1"], ["site-1"]]
    opened = [record.body for record in fold(PosixLogStore(bench.root))[1] if record.kind == "round_open"]
    assert [body["members"] for body in opened] == [["site-1", "site-2"], ["site-1"]]


def test_a_deadline_closes_a_round_with_those_who_answered(bench):
    bench.job(min_responses=1, deadline=0.2)
    job = bench.run(bench.child(lambda child: child.give("site-2")))
    assert [entry["members"] for entry in job.closed] == [["site-2"]]


def test_a_refusal_that_the_log_explains_is_decided_again(bench):
    bench.job()
    child = bench.child()
    child.refuse = {"round_close": ["CONFLICT", "NOT_PRIMARY"]}
    job = bench.run(child)
    assert job.status == "FINISHED:COMPLETED"
    assert child.proposed.count("round_close") == 3
    assert len(job.closed) == 1


def test_a_record_that_can_never_be_appended_fails_the_job(bench):
    bench.job()
    child = bench.child()
    child.refuse = {"round_close": ["BAD_INPUT"]}
    job = bench.run(child)
    assert (job.status, job.reason) == ("FINISHED:FAILED", "round 1: round_close was refused: for a test")


def test_a_job_aborted_meanwhile_ends_its_runner(bench):
    def abort(child):
        child.writer.append("job_done", done("FINISHED:ABORTED"))
        child.poke()

    bench.job()
    child = bench.child(abort)
    job = bench.run(child)
    assert job.status == "FINISHED:ABORTED"
    assert child.proposed == ["job_state", "round_open"]


def test_a_runner_ends_when_its_child_is_gone(bench):
    bench.job()
    opened = threading.Event()
    child = bench.child(lambda child: opened.set())
    outcome = bench.start(child)
    assert opened.wait(10)
    child.channel._socket.shutdown(2)
    outcome.thread.join(10)
    assert isinstance(outcome.error, _Gone)


def test_a_runner_that_starts_from_a_checkpoint_has_all_lines_and_goes_on_at_the_same_step(bench, tmp_path):
    bench.job(rounds=3)
    child = bench.child()
    child.hold_after = "round_close"
    assert bench.start(child).thread.join(30) is None
    for number in range(2):
        lines = [{"kind": "scalar", "tag": "loss", "value": float(number), "step": number, "time": TIME}]
        item = {"job": JOB, "source": "site-1", "first": number + 1, "lines": lines}
        bench.writer.append("metrics", {"items": [item]})
        cover(PosixLogStore(bench.root), PosixBlobStore(bench.root), bench.writer)
    bench.writer.append("metrics", {"items": [{**item, "first": 3}]})
    assert not PosixLogStore(bench.root).read(1)
    job = bench.run(bench.child())
    assert (job.status, [entry["round"] for entry in job.closed]) == ("FINISHED:COMPLETED", [1, 2, 3])
    assert [entry["primary"] for entry in job.closed] == ["server1"] * 3

    other = Bench(tmp_path / "undisturbed")
    other.job(rounds=3)
    whole = other.run(other.child())
    other.stop()
    assert [e["model_sha256"] for e in job.closed] == [e["model_sha256"] for e in whole.closed]
    accumulated = EventAccumulator(str(tmp_path / "kit" / "run" / "jobs" / JOB / "tensorboard" / "site-1"))
    accumulated.Reload()
    assert [(event.step, event.value) for event in accumulated.Scalars("loss")] == [(0, 0.0), (1, 1.0), (1, 1.0)]


def test_a_runner_that_was_overtaken_by_a_compaction_projects_each_line_once(bench):
    def overtake(child):
        if child.job.open.round == 2:
            for _ in range(2):
                bench.writer.append("metrics", {"items": [next(items)]})
                cover(PosixLogStore(bench.root), PosixBlobStore(bench.root), bench.writer)
        child.everybody(child)

    def numbered():
        for number in range(1, 10):
            yield {"job": JOB, "source": "site-1", "first": number, "lines": [line(float(number), step=number)]}

    items = numbered()
    bench.job(rounds=3)
    job = bench.run(bench.child(overtake))
    assert job.status == "FINISHED:COMPLETED"
    accumulated = EventAccumulator(str(bench.kit.run / "jobs" / JOB / "tensorboard" / "site-1"))
    accumulated.Reload()
    assert [event.value for event in accumulated.Scalars("loss")] == [1.0, 2.0]


def test_an_ephemeral_job_is_averaged_from_what_the_child_holds_to_the_same_bits(bench, tmp_path):
    bench.job(rounds=2)
    durable = bench.run(bench.child())
    other = Bench(tmp_path / "ephemeral")
    other.job(rounds=2, durability="ephemeral")
    child = other.child()
    child.hold_after = "round_open"  # the runner dies in the middle of the round; the child holds on
    first = other.start(child)
    first.thread.join(30)
    assert child.gone.wait(10)
    child.everybody(child)
    ephemeral = other.run(child)
    records = fold(PosixLogStore(other.root))[1]
    other.stop()
    assert ephemeral.status == "FINISHED:COMPLETED"
    assert [e["model_sha256"] for e in ephemeral.closed] == [e["model_sha256"] for e in durable.closed]
    assert [e["weights"] for e in ephemeral.closed] == [e["weights"] for e in durable.closed]
    assert not [one for one in records if one.kind == "contribution"]


def test_own_lines_are_numbered_on_by_the_next_runner(bench):
    bench.job(rounds=2)
    child = bench.child()
    child.hold_after = "round_open"
    bench.start(child).thread.join(30)
    assert child.gone.wait(10)
    child.everybody(child)
    bench.run(child)
    said = [item for *_, item in items(fold(PosixLogStore(bench.root))[1], "metrics")]
    assert [item["first"] for item in said] == list(range(1, len(said) + 1))
    assert len(child.said) == len(said)


def test_a_job_that_was_complete_but_for_its_last_record_ends_and_does_nothing_again(bench):
    """A competitor's server resumed a nearly finished job wrongly."""
    bench.job(rounds=1)
    child = bench.child()
    child.hold_after = "round_close"
    bench.start(child).thread.join(30)
    assert child.gone.wait(10)
    for _ in range(2):
        cover(PosixLogStore(bench.root), PosixBlobStore(bench.root), bench.writer)
    later = bench.child()
    job = bench.run(later)
    assert (job.status, len(job.closed)) == ("FINISHED:COMPLETED", 1)
    assert later.proposed == ["job_done"]


# -- provenance -------------------------------------------------------------------------------------------------------


def statements(bench):
    """Every statement that the log names, verified; the bytes and what they say."""
    store = open_store(bench.root, CLUSTER)
    bodies = [record.body for record in store.log.read_new().records if record.kind == "job_done"]
    found = [BlobReader(store.blobs, BlobRef.from_json(body["provenance"])).read() for body in bodies]
    return [(data, verify_provenance(data, Trust(AUTHORITY.cert_pem, "poc"))) for data in found]


def test_a_job_that_completes_has_a_signed_statement_of_every_round(bench):
    bench.job(rounds=2, evaluate=True)
    child = bench.child()
    child.refuse = {"job_done": ["NOT_PRIMARY"]}
    job = bench.run(child)
    assert job.status == "FINISHED:COMPLETED"
    ((_, verified),) = statements(bench)
    assert verified.signer.name == "server1"
    said = verified.provenance
    assert (said.project, said.cluster, said.job, said.name) == ("poc", CLUSTER, JOB, "hello")
    assert (said.submitter, said.submission, said.code) == ("admin@nvidia.com", None, "ab" * 32)
    assert said.members == ("site-1", "site-2")
    rounds = [(one.round, one.kind, one.primary, one.epoch, one.members, one.model_sha256) for one in said.rounds]
    assert rounds == [
        (entry["round"], entry["kind"], "server1", entry["epoch"], ("site-1", "site-2"), entry["model_sha256"])
        for entry in job.closed
    ]
    assert said.final_model_sha256 == job.model["model_sha256"]
    assert "fedhelm" in said.software
    owned = PosixBlobStore(bench.root)
    assert [one for one in owned.owners("jobs") if one.endswith("provenance")] == [f"jobs/{JOB}/provenance"]


def test_it_names_what_the_submitter_signed_and_rounds_that_have_left_the_log(bench):
    item = submitted(rounds=3)
    signed = {"submission": '{"statement": {}}', "submitter_org": "nvidia"}
    bench.writer.append("job_submitted", {**item, **signed})
    bench.writer.append("job_state", state())
    child = bench.child()
    for _ in range(2):
        child.hold_after = "round_close"
        bench.start(child).thread.join(30)
        cover(PosixLogStore(bench.root), PosixBlobStore(bench.root), bench.writer)
    job = bench.run(bench.child())
    assert [set(entry) >= {"members"} for entry in job.closed] == [False, False, True], "two are in segments"
    ((_, verified),) = statements(bench)
    said = verified.provenance
    assert (said.submission, said.submitter_org) == (signed["submission"], "nvidia")
    assert [(one.round, one.members) for one in said.rounds] == [(n, ("site-1", "site-2")) for n in (1, 2, 3)]


def test_the_statement_is_that_of_the_record_whoever_looks_at_the_job_later(bench):
    bench.job()
    child = bench.child()
    child.hold_after = "job_done"  # the record is in the log, its runner does not learn of it
    bench.start(child).thread.join(30)
    before = statements(bench)
    job = bench.run(bench.child())
    assert job.status == "FINISHED:COMPLETED"
    assert statements(bench) == before
    assert len(before) == 1


def test_a_key_that_cannot_be_read_costs_the_statement_and_not_the_result(bench):
    bench.kit.key.unlink()
    bench.job()
    child = bench.child()
    job = bench.run(child)
    assert (job.status, job.provenance) == ("FINISHED:COMPLETED", None)
    assert "no signed statement of provenance: " in child.said[-2]
    assert "server.key" in child.said[-2]
    assert "provenance" not in fold(PosixLogStore(bench.root))[1][-1].body


def test_a_job_that_fails_has_none(bench):
    bench.job(min_responses=2)

    def fails(child):
        failed = {"job": JOB, "attempt": 1, "site": "site-1", "round": 1, "reason": "x", "traceback": "", "time": TIME}
        child.writer.append("site_failed", failed)
        child.poke()

    job = bench.run(bench.child(fails))
    assert (job.status, job.provenance) == ("FINISHED:FAILED", None)
