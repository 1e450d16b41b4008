from __future__ import annotations

import importlib.util
import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from fedhelm.job import load_job
from fedhelm.learning.workflow import best_round
from fedhelm.tensors import read_file
from tests.fakes.learning_site import FakeSite, FakeTask, Federation, run_script

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMPY = EXAMPLES / "hello-numpy"
DIGITS = EXAMPLES / "hello-pt-tb"


def federation(folder, tmp_path, monkeypatch, sites):
    return Federation(folder, tmp_path, tuple(f"site-{k}" for k in range(1, sites + 1)), monkeypatch)


@pytest.mark.parametrize("folder", [NUMPY, DIGITS], ids=lambda folder: folder.name)
def test_examples_pass_their_own_checks(folder):
    job = load_job(folder)
    assert job.config.name == folder.name
    assert "README.md" in job.files


def test_hello_numpy_is_what_the_pencil_says(tmp_path, monkeypatch):
    fed = federation(NUMPY, tmp_path, monkeypatch, 2)
    fed.run()
    table = (NUMPY / "README.md").read_text()
    by_hand = [float(number) for number in re.findall(r"\*\*([0-9.]+)\*\*", table)]
    assert by_hand == [1.75, 3.5, 5.25, 7.0, 8.75]
    assert [read_file(model)["x"].tolist() for model in fed.models] == [[number] * 4 for number in by_hand]
    assert [one.metrics["x"] for one in fed.closed] == by_hand
    sent = [[site.task.answer[0]["x"][0] for site in fed.runs if site.name == name] for name in fed.sites]
    assert sent == [[1, 2.75, 4.5, 6.25, 8], [2, 3.75, 5.5, 7.25, 9]]
    assert [site.scalars for site in fed.runs if site.name == "site-1"][4] == [("x", 8.0, 5)]


def test_hello_numpy_with_other_numbers_of_sites(tmp_path, monkeypatch):
    for sites, step in ((1, 1.0), (3, 22 / 9), (4, 50 / 16)):
        fed = federation(NUMPY, tmp_path, monkeypatch, sites)
        fed.run()
        np.testing.assert_allclose(read_file(fed.models[-1])["x"], 5 * step, rtol=1e-14)


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("sklearn")
    return pytest.importorskip("torch")


@pytest.fixture
def digits(torch):
    spec = importlib.util.spec_from_file_location("digits_under_test", DIGITS / "app" / "digits.py")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn's own imports
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sites", [1, 2, 3, 7])
def test_the_images_are_split_without_overlap_and_unevenly(digits, sites):
    parts = [digits.load(index, sites) for index in range(sites)]
    everything = [
        images.pixels[k].numpy().tobytes() for pair in parts for images in pair for k in range(len(images.labels))
    ]
    assert len(everything) == 1797
    assert len(set(everything)) == len({image.tobytes() for image in digits.load_digits().images})
    sizes = [len(train.labels) for train, _ in parts]
    assert sum(sizes) == 1797 - 359
    assert sum(len(test.labels) for _, test in parts) == 359
    assert all(small < large for small, large in itertools.pairwise(sizes))
    whole_test = {image.numpy().tobytes() for _, test in parts for image in test.pixels}
    assert not whole_test & {image.numpy().tobytes() for train, _ in parts for image in train.pixels}


@pytest.mark.parametrize("sites", [1, 2, 3, 4])
def test_hello_pt_tb_learns(torch, tmp_path, monkeypatch, sites):
    fed = federation(DIGITS, tmp_path, monkeypatch, sites)
    fed.run()
    held_out = [one.metrics["accuracy"] for one in fed.closed if one.kind == "evaluate"]
    assert len(held_out) == 5
    assert held_out[-1] >= 0.95
    best = best_round(fed.closed, "accuracy")
    assert held_out[best - 1] == max(held_out)
    first = fed.runs[0]
    assert first.images == [("train/examples", (1, 8, 64), 0)]
    losses = [
        (value, step)
        for site in fed.runs
        if site.name == "site-1"
        for tag, value, step in site.scalars
        if tag == "train/loss"
    ]
    assert [step for _, step in losses] == list(range(len(losses)))
    assert losses[-1][0] < losses[0][0]
    curve = [
        value
        for site in fed.runs
        if site.name == "site-1"
        for tag, value, _ in site.scalars
        if tag == "held-out/accuracy"
    ]
    assert len(curve) == 5


def test_a_repeated_task_ends_in_the_same_bits(torch, tmp_path, monkeypatch):
    options = dict(load_job(DIGITS).config.options)
    answers = []
    for name in ("site-1", "site-1", "site-2"):
        site = FakeSite(name, ("site-1", "site-2"), options, FakeTask("train", 3, 5, None))
        run_script(DIGITS / "app" / "train.py", site, monkeypatch)
        torch.rand(5)  # whatever else happened in between
        answers.append({key: tensor.numpy().tobytes() for key, tensor in site.task.answer[0].items()})
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]
    numbers = sum(tensor.numel() for tensor in site.task.answer[0].values())
    assert f"{numbers:,} numbers" in (DIGITS / "README.md").read_text()
