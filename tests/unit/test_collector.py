"""What may be deleted: what a covered record has closed, and nothing that anybody may still ask for."""

from __future__ import annotations

from fedhelm.persist.blobs import BlobWriter
from fedhelm.persist.record import By, Record
from fedhelm_server.collector import collectable, sweep
from fedhelm_server.job_book import JobBook
from fedhelm_server.places import bundle_owner, job_folder, lines_owner, model_owner, provenance_owner, sites_owner
from tests.fakes.persist_memory import MemoryBlobStore
from tests.fakes.server_log import JOB, TIME, blob, closed, contribution, done, opened, state, submitted

SITES = ("site-1", "site-2")


class Log:
    """Records one after the other; ``cover`` is a checkpoint of all that was before."""

    def __init__(self, **config):
        self.book = JobBook()
        self.add("genesis", {})
        self.add("fence", {"cause": "start"})
        self.add("job_submitted", submitted(**config))
        self.add("job_state", state())

    def add(self, kind, body):
        epoch = 1 if kind != "genesis" else 0
        self.book.apply(Record(self.book.seq + 1, epoch, By("server1", "i1"), "n", "", kind, body, "", v=2))

    def round(self, number, kind="train", **metrics):
        self.add("round_open", opened(number, kind=kind, rounds=9))
        self.add("contribution", {"items": [contribution(site, number, kind=kind) for site in SITES]})
        model = {"metrics": metrics} if kind == "train" else {"metrics": metrics, "model": None}
        self.add("round_close", closed(number, kind=kind, **model))

    def cover(self, segments=None):
        covered = self.book.seq
        self.add(
            "checkpoint", {"covered": covered, "blob": blob(f"checkpoints/{covered:016d}"), "segments": segments or {}}
        )
        return covered

    def every(self, rounds=6):
        owners = [bundle_owner(JOB)]
        for number in range(rounds):
            owners += [model_owner(JOB, 0, number), sites_owner(JOB, 0, number)]
        return owners

    def collected(self):
        return {owner.removeprefix(f"jobs/{JOB}/") for owner in collectable(self.book, self.every())}


def test_nothing_goes_before_a_checkpoint_covers_what_closed_it():
    log = Log()
    for number in (1, 2, 3):
        log.round(number)
    assert log.collected() == set()
    log.cover()
    assert log.collected() == {"0-1/sites", "0-2/sites", "0-3/sites", "0-0/model", "0-1/model", "0-2/model"}
    log.round(4)
    assert log.collected() == {"0-1/sites", "0-2/sites", "0-3/sites", "0-0/model", "0-1/model", "0-2/model"}


def test_the_best_model_stays_for_the_download():
    log = Log()
    for number, loss in ((1, 0.5), (2, 0.1), (3, 0.7), (4, 0.9)):
        log.round(number, loss=loss)
    log.cover()
    assert {"0-1/model", "0-3/model"} == {one for one in log.collected() if one.endswith("model")} - {"0-0/model"}
    log.round(5, loss=0.05)
    log.cover()
    assert {one for one in log.collected() if one.endswith("model")} == {f"0-{n}/model" for n in range(5)}


def test_evaluation_judges_the_models_and_none_of_them_goes_too_soon():
    log = Log(evaluate=True)
    for number, accuracy in ((1, 0.9), (2, 0.2), (3, 0.3)):
        log.round(number)
        log.cover()
        assert f"0-{number}/model" not in log.collected()
        log.round(number, "evaluate", accuracy=accuracy)
        log.cover()
    assert {one for one in log.collected() if one.endswith("model")} == {"0-0/model", "0-2/model"}


def test_the_open_round_keeps_its_model_and_what_is_uploaded_to_it():
    log = Log()
    log.round(1)
    log.add("round_open", {**opened(2, rounds=9), "model": blob(model_owner(JOB, 0, 1))})
    log.cover()
    assert log.collected() == {"0-1/sites", "0-0/model"}


def test_the_initial_model_stays_until_a_round_has_made_another():
    log = Log()
    log.cover()
    assert log.collected() == set()
    log.add("round_open", opened(1, rounds=9))
    log.cover()
    assert log.collected() == set()


def test_an_ended_job_keeps_bundle_newest_and_best_model():
    log = Log()
    for number, loss in ((1, 0.1), (2, 0.5), (3, 0.3)):
        log.round(number, loss=loss)
    log.add("round_open", opened(4, rounds=9))
    log.add("job_done", done("FINISHED:ABORTED"))
    assert log.collected() == set()
    log.cover()
    kept = {owner.removeprefix(f"jobs/{JOB}/") for owner in log.every()} - log.collected()
    assert kept == {"bundle", "0-1/model", "0-3/model"}


def test_the_statement_of_provenance_stays_for_as_long_as_the_job():
    log = Log()
    log.round(1)
    statement = provenance_owner(JOB)
    log.add("job_done", done(provenance=blob(statement)))
    log.cover()
    assert model_owner(JOB, 0, 1) not in collectable(log.book, [statement, model_owner(JOB, 0, 1)])
    assert collectable(log.book, [statement, sites_owner(JOB, 0, 1)]) == [sites_owner(JOB, 0, 1)]
    log.add("job_deleted", {"job": JOB, "request_id": "request9", "by": "a@b", "time": TIME})
    log.cover()
    assert collectable(log.book, [statement]) == [statement]


def test_all_of_a_deleted_job_goes_when_its_tombstone_is_covered(tmp_path):
    log = Log()
    log.round(1)
    log.add("job_done", done())
    log.cover()
    log.add("job_deleted", {"job": JOB, "request_id": "request9", "by": "a@b", "time": TIME})
    assert collectable(log.book, [bundle_owner(JOB), lines_owner(JOB, 3)]) == []
    log.cover()
    blobs = MemoryBlobStore()
    for owner in (bundle_owner(JOB), lines_owner(JOB, 3), model_owner(JOB, 0, 1), "jobs/zzzzzzzzzzzz/bundle"):
        writer = BlobWriter(blobs, owner)
        writer.write(b"x" * 10)
        writer.finish()
    folder = job_folder(tmp_path, JOB)
    (folder / "export-3").mkdir(parents=True)
    assert sweep(log.book, blobs, tmp_path) >= 30
    assert blobs.owners("jobs") == ["jobs/zzzzzzzzzzzz/bundle"]
    assert not folder.exists()
    assert sweep(log.book, blobs, tmp_path) == 0


def test_lines_that_the_book_does_not_name_go_once_a_newer_checkpoint_is_there():
    log = Log()
    named = lines_owner(JOB, log.book.seq)
    covered = log.cover({JOB: {"keep": 0, "blob": blob(named)}})
    orphan, being_written = lines_owner(JOB, covered - 1), lines_owner(JOB, covered + 5)
    assert collectable(log.book, [named, orphan, being_written, f"jobs/{JOB}/lines/odd"]) == [orphan]
