import dataclasses
import json
import os

import pytest

from fedhelm.errors import BadInput, ProtocolError
from fedhelm.v1 import fleet_pb2
from fedhelm_client import outbox as outbox_module
from fedhelm_client.journal import LINE_COST, MAX_BATCH_SIZE, Journal, Throttle, batch
from fedhelm_client.outbox import ContributionId, Outbox, Saved, id_of, is_closed, load_jobs

FIRST = ContributionId(attempt=0, step=0, round=1, kind="train", sequence=0)


def saved(contribution=FIRST, **fields):
    defaults = {"file": None, "owner": "jobs/x/0-1/sites", "weight": 3.0, "metrics": {"a": 1.0}, "lines": 7}
    return Saved(id=contribution, **{**defaults, **fields})


def result_file(tmp_path, content=b"tensors"):
    path = tmp_path / "result.safetensors"
    path.write_bytes(content)
    return path


def test_a_saved_result_is_there_after_a_restart(tmp_path):
    before = Outbox(tmp_path / "job").save(saved(), result_file(tmp_path))
    assert before.file.read_bytes() == b"tensors"
    again = Outbox(tmp_path / "job")
    assert again.to_offer() == [before]
    assert again.answered(FIRST)


def test_a_recorded_result_is_kept_until_its_round_is_closed(tmp_path):
    outbox = Outbox(tmp_path / "job")
    file = outbox.save(saved(), result_file(tmp_path)).file
    outbox.mark(FIRST, "recorded")
    assert outbox.to_offer() == []
    assert file.exists()
    assert outbox.close([fleet_pb2.ClosedRound(step=0, round=1, kind="train")]) == [FIRST]
    assert not file.exists()
    assert outbox.answered(FIRST)  # still never handed out again
    assert list(Outbox(tmp_path / "job")) == []


def test_gone_deletes_the_tensors_and_is_remembered(tmp_path):
    outbox = Outbox(tmp_path / "job")
    file = outbox.save(saved(), result_file(tmp_path)).file
    outbox.mark(FIRST, "gone")
    assert not file.exists()
    again = Outbox(tmp_path / "job")
    assert again.to_offer() == []
    assert again.answered(FIRST)


def test_results_are_offered_in_order(tmp_path):
    outbox = Outbox(tmp_path / "job")
    ids = [dataclasses.replace(FIRST, round=number) for number in (10, 2, 1)]
    for one in ids:
        outbox.save(saved(one), None)
    assert [one.id.round for one in Outbox(tmp_path / "job").to_offer()] == [1, 2, 10]


def test_an_agent_that_died_before_the_meta_file_leaves_nothing(tmp_path):
    folder = tmp_path / "job"
    Outbox(folder)
    (folder / "0-0-1-train-0.safetensors").write_bytes(b"half")
    outbox = Outbox(folder)
    assert not outbox.answered(FIRST)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"id": 3}', "\xff"])
def test_a_damaged_meta_file_is_moved_aside_and_its_task_is_run_again(tmp_path, text):
    folder = tmp_path / "job"
    Outbox(folder).save(saved(), result_file(tmp_path))
    other = dataclasses.replace(FIRST, round=2)
    Outbox(folder).save(saved(other), None)
    (folder / "0-0-1-train-0.result.json").write_text(text, encoding="latin-1")
    outbox = Outbox(folder)
    assert not outbox.answered(FIRST)
    assert [one.id for one in outbox.to_offer()] == [other]
    assert len(outbox.damaged) == 1
    assert "0-0-1-train-0.result.json" in outbox.damaged[0]
    assert (folder / "0-0-1-train-0.result.json.damaged").read_text(encoding="latin-1") == text
    assert (folder / "0-0-1-train-0.safetensors.damaged").read_bytes() == b"tensors"
    again = Outbox(folder)
    assert again.damaged == []
    again.save(saved(), result_file(tmp_path, b"second"))
    assert [one.id for one in Outbox(folder).to_offer()] == [FIRST, other]


@pytest.mark.parametrize("change", [{"state": "lost"}, {"file": "0-0-9-train-0.safetensors"}])
def test_a_result_that_cannot_be_offered_is_damaged(tmp_path, change):
    folder = tmp_path / "job"
    Outbox(folder).save(saved(), result_file(tmp_path))
    meta = folder / "0-0-1-train-0.result.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), **change}))
    assert len(Outbox(folder).damaged) == 1


def test_the_names_of_new_folders_are_durable(tmp_path, monkeypatch):
    synced = []
    real = outbox_module.fsync_dir
    monkeypatch.setattr(outbox_module, "fsync_dir", lambda path: (synced.append(path), real(path)))
    Outbox(tmp_path / "run" / "outbox" / "job")
    assert synced == [tmp_path, tmp_path / "run", tmp_path / "run" / "outbox"]
    Outbox(tmp_path / "run" / "outbox" / "job")
    assert len(synced) == 3


def test_a_held_result_is_kept_until_its_round_is_closed_and_is_not_handed_out_again(tmp_path):
    outbox = Outbox(tmp_path / "job")
    file = outbox.save(saved(), result_file(tmp_path)).file
    outbox.mark(FIRST, "held")
    again = Outbox(tmp_path / "job")
    assert (again.to_offer(), [one.id for one in again.held()]) == ([], [FIRST])
    assert again.answered(FIRST)
    again.close([fleet_pb2.ClosedRound(step=0, round=1, kind="train")])
    assert not file.exists()
    assert again.held() == []


def test_a_file_that_becomes_a_link_at_the_last_moment_is_not_a_result(tmp_path, monkeypatch):
    secret, result = tmp_path / "client.key", result_file(tmp_path)
    secret.write_bytes(b"key")
    opened = []

    def open_and_swap(path, *args):
        fd = real_open(path, *args)
        if not opened:  # the script is faster than the agent's next step
            opened.append(path)
            result.unlink(missing_ok=True)
            result.symlink_to(secret)
        return fd

    real_open = os.open
    outbox = Outbox(tmp_path / "job")
    monkeypatch.setattr(os, "open", open_and_swap)
    file = outbox.save(saved(), result).file
    assert opened
    assert not file.is_symlink()
    assert file.read_bytes() == b"tensors"


def test_what_was_no_result_is_back_where_it_came_from(tmp_path):
    outbox, folder = Outbox(tmp_path / "job"), tmp_path / "result.safetensors"
    folder.mkdir()
    with pytest.raises(ProtocolError, match="not a plain file"):
        outbox.save(saved(), folder)
    assert folder.is_dir()
    assert not outbox.answered(FIRST)
    assert list((tmp_path / "job").iterdir()) == []


def test_a_link_to_a_secret_is_not_a_result(tmp_path):
    secret = tmp_path / "client.key"
    secret.write_text("key")
    link = tmp_path / "result.safetensors"
    link.symlink_to(secret)
    outbox = Outbox(tmp_path / "job")
    with pytest.raises(ProtocolError, match="cannot be opened"):
        outbox.save(saved(), link)
    link.unlink()
    os.link(secret, link)
    with pytest.raises(ProtocolError, match="not a plain file"):
        outbox.save(saved(), link)
    assert secret.exists()
    assert not outbox.answered(FIRST)


def test_closed_rounds_cover_earlier_ones_of_the_same_kind():
    closed = [fleet_pb2.ClosedRound(step=1, round=3, kind="train")]
    for step, number, kind, over in [
        (1, 3, "train", True),
        (1, 1, "train", True),
        (1, 4, "train", False),
        (0, 1, "train", False),
        (1, 2, "evaluate", False),
    ]:
        contribution = ContributionId(0, step, number, kind, 0)
        assert is_closed(contribution, closed) is over


def test_a_kind_that_is_no_word_never_becomes_a_path():
    with pytest.raises(BadInput):
        id_of(0, fleet_pb2.Task(kind="../x", round=1))
    assert id_of(2, fleet_pb2.Task(kind="train", round=1)).key == "2-0-1-train-0"


def test_jobs_with_unfinished_business(tmp_path):
    assert load_jobs(tmp_path / "outbox") == []
    Outbox(tmp_path / "outbox" / "b")
    Outbox(tmp_path / "outbox" / "a")
    assert load_jobs(tmp_path / "outbox") == ["a", "b"]


# -- lines ------------------------------------------------------------------------------------------------------------


def line(value):
    return {"kind": "scalar", "tag": "loss", "value": value, "step": None, "time": "t"}


def test_lines_are_numbered_and_wait_until_acknowledged(tmp_path):
    journal = Journal(tmp_path / "lines.jsonl")
    journal.append([line(1), line(2)])
    journal.append([line(3)])
    journal.sync()
    assert [number for number, _ in journal.next_batch()] == [1, 2, 3]
    journal.acknowledge(2)
    assert [number for number, _ in journal.next_batch()] == [3]
    journal.close()


def test_numbers_go_on_after_a_restart(tmp_path):
    journal = Journal(tmp_path / "lines.jsonl")
    journal.append([line(1), line("ü\ud800")])
    journal.close()
    again = Journal(tmp_path / "lines.jsonl")
    again.acknowledge(1)
    again.append([line(3)])
    assert [number for number, _ in again.next_batch()] == [2, 3]
    assert "ü?" in again.next_batch()[0][1]
    again.close()


def test_a_torn_last_line_is_cut_off(tmp_path):
    path = tmp_path / "lines.jsonl"
    journal = Journal(path)
    journal.append([line(1), line(2)])
    journal.close()
    path.write_bytes(path.read_bytes()[:-3])
    again = Journal(path)
    again.append([line("again")])
    assert [number for number, _ in again.next_batch()] == [1, 2]
    assert "again" in again.next_batch()[1][1]
    again.close()


@pytest.mark.parametrize("garbage", [b"\0" * 40 + b"\n", b"[]\n", b'{"n":2}\n'], ids=["zeros", "a list", "no line"])
def test_what_a_power_cut_garbled_is_cut_off(tmp_path, garbage):
    path = tmp_path / "lines.jsonl"
    journal = Journal(path)
    journal.append([line(1)])
    journal.close()
    path.write_bytes(path.read_bytes() + garbage + b'{"n":3,"line":{}}\n')
    again = Journal(path)
    again.append([line("again")])
    assert [number for number, _ in again.next_batch()] == [1, 2]
    again.close()


def test_a_journal_that_was_lost_goes_on_above_what_the_log_has(tmp_path):
    journal = Journal(tmp_path / "lines.jsonl")
    journal.acknowledge(40)
    journal.append([line(1)])
    assert [number for number, _ in journal.next_batch()] == [41]
    journal.close()


def test_a_full_disk_takes_none_of_the_lines(tmp_path):
    journal = Journal(tmp_path / "lines.jsonl")
    journal.append([line(1)])
    journal.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        journal.append([line(2)])
    assert journal.last == 1


def test_batches_are_bounded():
    assert batch([]) == 0
    assert batch(["x"] * 10_000) == 500
    assert batch(["x" * (MAX_BATCH_SIZE + 1), "y"]) == 1
    assert batch(["x" * (MAX_BATCH_SIZE // 2)] * 3) == 2


def test_a_script_that_prints_in_a_loop_is_throttled_and_it_is_said():
    line = LINE_COST + 1
    throttle = Throttle(burst=3 * line, rate=line)
    assert throttle.take(["a", "b", "c", "d", "e"], now=0.0) == ["a", "b", "c"]
    assert throttle.take(["f"], now=0.5) == []
    assert throttle.take(["g", "h"], now=2.0) == ["(3 lines are in the site's log only)", "g", "h"]


def test_long_lines_cost_more_and_empty_ones_are_not_free():
    throttle = Throttle()
    long = throttle.take(["x" * 4096] * 10_000, now=0.0)
    assert 16 * 1024 * 1024 - 8192 < sum(map(len, long)) + LINE_COST * len(long) <= 16 * 1024 * 1024
    assert len(Throttle().take([""] * 1_000_000, now=0.0)) == 16 * 1024 * 1024 // LINE_COST
    assert throttle.take(["\udcff" * 4096] * 1000, now=1.0)[0] == "(5998 lines are in the site's log only)"


def test_a_restored_log_asks_for_a_round_that_was_closed_before(tmp_path):
    outbox, second = Outbox(tmp_path / "job"), dataclasses.replace(FIRST, round=2)
    outbox.save(saved(), result_file(tmp_path))
    outbox.mark(FIRST, "recorded")
    outbox.close([fleet_pb2.ClosedRound(step=0, round=1, kind="train")])
    outbox.save(saved(second), result_file(tmp_path))
    assert outbox.answered(FIRST)
    outbox.reopen(FIRST, again=True)
    assert not outbox.answered(FIRST)
    assert not outbox.answered(second), "it was made from a model that the log has no more"


def test_what_was_gone_is_made_anew_only_for_a_log_that_was_restored_since(tmp_path):
    outbox = Outbox(tmp_path / "job")
    outbox.save(saved(), result_file(tmp_path))
    outbox.mark(FIRST, "gone")
    outbox.reopen(FIRST, again=False)
    assert outbox.answered(FIRST)
    outbox.reopen(FIRST, again=True)
    assert not outbox.answered(FIRST)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../key.pem"},
        {"file": "0-0-2-train-0.safetensors"},
        {"id": {"attempt": 0, "step": 0, "round": 2, "kind": "train", "sequence": 0}},
        {"id": {"attempt": 0, "step": 0, "round": 1, "kind": "../..", "sequence": 0}},
        {"id": {"attempt": 0, "step": 0, "round": -1, "kind": "train", "sequence": 0}},
        {"weight": "3"},
        {"metrics": {"a": "b"}},
        {"lines": None},
    ],
)
def test_a_result_that_says_what_no_result_says_is_set_aside(tmp_path, change):
    folder, outside = tmp_path / "job", tmp_path / "key.pem"
    outside.write_bytes(b"secret")
    Outbox(folder).save(saved(), result_file(tmp_path))
    (folder / "0-0-2-train-0.safetensors").write_bytes(b"of another")
    meta = folder / f"{FIRST.key}.result.json"
    meta.write_text(json.dumps({**json.loads(meta.read_bytes()), **change}))
    outbox = Outbox(folder)
    assert list(outbox) == []
    assert len(outbox.damaged) == 1
    assert not meta.exists()
    assert outside.read_bytes() == b"secret"
