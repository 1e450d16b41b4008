"""What a job's gate lets out, which policy it keeps, and what a killed agent leaves behind."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedhelm.errors import BadInput, Refused
from fedhelm.tensors import read_file, write_file
from fedhelm_client.folders import JobFolder
from fedhelm_client.job_process import Ended
from fedhelm_client.outbox import ContributionId, Outbox, Saved
from fedhelm_client.outgoing import check_privacy, outgoing_of_job
from fedhelm_client.supplies import let_go
from tests.support.kits import make_kits

JOB = "a23456723456"
ID = ContributionId(0, 0, 1, "train", 0)
SAVED = Saved(ID, None, "owner", 7.0, {"loss": 0.5, "age": 81.0}, 0)
CLIP = {"format_version": "1.0", "filters": [{"type": "clip", "norm": 1}], "metrics": {"only": ["loss"]}}


@pytest.fixture
def kit(tmp_path):
    return make_kits(tmp_path)["site-1"]


@pytest.fixture
def folder(kit):
    folder = JobFolder.of(kit, JOB)
    folder.make()
    return folder


def decree(kit, policy):
    (kit.local / "privacy.json").write_text(policy if isinstance(policy, str) else json.dumps(policy))


def files(folder):
    source, model, outbox = folder.results / "r.safetensors", folder.models / "m.safetensors", folder.root / "outbox"
    write_file(source, {"w": np.array([6.0, 8.0])})
    write_file(model, {"w": np.zeros(2)})
    return source, {"model": model, "folder": outbox}


def test_without_a_policy_everything_passes_untouched(kit, folder):
    gate = outgoing_of_job(kit, folder)
    source, rest = files(folder)
    saved, file = gate.result(SAVED, source, **rest)
    assert saved is SAVED
    assert file is source
    assert "filters" not in saved.to_json()
    lines = [{"kind": "log", "tag": "output", "value": "x"}]
    assert gate.lines(lines) is lines
    assert gate.told == ()
    gate.check_task("train", has_model=False)
    ended = Ended(1, None, reason="ValueError: boom", traceback="Traceback")
    assert gate.failure(ended) == ("ValueError: boom", "Traceback")


def test_a_result_is_filtered_before_it_is_saved_and_names_its_filters(kit, folder):
    decree(kit, CLIP)
    gate = outgoing_of_job(kit, folder)
    source, rest = files(folder)
    outbox = Outbox(rest["folder"])
    saved, file = gate.result(SAVED, source, **rest)
    assert not source.exists()
    assert outbox.save(saved, file).filters == ("clip(norm=1)", "metrics(only=loss)")
    (again,) = Outbox(rest["folder"])
    assert again.filters == ("clip(norm=1)", "metrics(only=loss)")
    assert again.metrics == {"loss": 0.5}
    assert read_file(again.file)["w"].tolist() == pytest.approx([0.6, 0.8])
    assert len(list(rest["folder"].iterdir())) == 2


def test_what_an_agent_filtered_that_died_before_it_saved_is_deleted_and_its_task_is_open(kit, folder):
    decree(kit, CLIP)
    gate = outgoing_of_job(kit, folder)
    source, rest = files(folder)
    Outbox(rest["folder"])
    _, file = gate.result(SAVED, source, **rest)
    assert file.exists()
    outbox = Outbox(rest["folder"])
    assert list(rest["folder"].iterdir()) == []
    assert not outbox.answered(ID)


def test_a_job_keeps_the_policy_that_it_began_with(kit, folder):
    decree(kit, CLIP)
    assert outgoing_of_job(kit, folder).told == ("clip(norm=1)", "metrics(only=loss)")
    folder.bundle.mkdir()
    decree(kit, {"format_version": "1.0"})
    assert outgoing_of_job(kit, folder).told == ("clip(norm=1)", "metrics(only=loss)")
    later = JobFolder.of(kit, "b23456723456")
    later.make()
    assert outgoing_of_job(kit, later).told == ()
    later.bundle.mkdir()
    decree(kit, CLIP)
    assert outgoing_of_job(kit, later).told == (), "it began without one"
    later.privacy.unlink()  # by the site's operator, for a job that must not go on like that
    assert outgoing_of_job(kit, later).told == ("clip(norm=1)", "metrics(only=loss)")


def test_a_job_that_is_over_takes_the_policy_that_it_began_with_along(kit, folder):
    assert outgoing_of_job(kit, folder).told == ()
    folder.bundle.mkdir()
    decree(kit, CLIP)
    let_go(folder)
    assert not folder.privacy.exists()
    assert outgoing_of_job(kit, folder).told == ("clip(norm=1)", "metrics(only=loss)")
    decree(kit, {"format_version": "1.0"})  # it did not begin: an agent that was killed had unpacked nothing yet
    assert outgoing_of_job(kit, folder).told == ()


def test_a_damaged_copy_fails_the_job_and_lets_nothing_out(kit, folder):
    decree(kit, CLIP)
    outgoing_of_job(kit, folder)
    folder.bundle.mkdir()
    for damage in (b"", b"[[1]]", b"[", b'{"a": 1}', b"\xff", b"null"):
        folder.privacy.write_bytes(damage)
        with pytest.raises(BadInput, match=r"privacy\.json: the job's copy of privacy\.json is damaged"):
            outgoing_of_job(kit, folder)


def test_a_mistake_names_file_line_and_column_and_is_not_kept(kit, folder):
    decree(kit, '{"format_version": "1.0",\n "filters": [{"type": "clip"}]}')
    for look in (lambda: check_privacy(kit), lambda: outgoing_of_job(kit, folder)):
        with pytest.raises(BadInput, match=r"local/privacy\.json:2:14: filters\[0\]\.norm: missing"):
            look()
    assert not folder.privacy.exists()


def test_the_projects_default_applies_before_the_sites_own(kit, folder):
    (kit.startup / "privacy.json").write_text(json.dumps(CLIP))
    decree(kit, {"format_version": "1.0", "filters": [{"type": "weight", "value": 1}]})
    assert outgoing_of_job(kit, folder).told == ("clip(norm=1)", "weight(value=1)", "metrics(only=loss)")


def test_the_words_of_a_failed_script_stay_with_log_lines(kit, folder):
    decree(kit, {"format_version": "1.0", "lines": ["scalar"]})
    gate = outgoing_of_job(kit, folder)
    reason = "ValueError: patient 7"
    assert gate.failure(Ended(1, None, reason=reason, traceback="patient 7", tail="patient 7")) == (
        "the script exited with status 1; its messages stay at this site",
        "",
    )
    assert gate.failure(Ended(None, 9, tail="patient 7"))[0].startswith("the script was killed by SIGKILL; ")


def test_a_job_that_has_ended_here_filters_nothing_more(kit, folder):
    decree(kit, CLIP)
    gate = outgoing_of_job(kit, folder)
    source, rest = files(folder)
    Outbox(rest["folder"])
    gate.close()
    with pytest.raises(Refused, match="the job ended at this site"):
        gate.result(SAVED, source, **rest)
    assert list(rest["folder"].iterdir()) == []


def test_an_evaluation_needs_no_model_and_too_few_samples_keep_it_here(kit, folder):
    decree(kit, {"format_version": "1.0", "filters": [*CLIP["filters"], {"type": "min_samples", "samples": 8}]})
    gate = outgoing_of_job(kit, folder)
    gate.check_task("evaluate", has_model=False)
    with pytest.raises(Refused, match="too few samples"):
        gate.result(SAVED, None, model=None, folder=folder.root)
