from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhelm.errors import BadInput, NotSupportedYet
from fedhelm.job import JobConfig, bundle, load_bundle, load_job, parse_config
from fedhelm.learning.fedavg import FedAvg
from fedhelm.learning.registry import workflow_of
from fedhelm.tensors import write_file

SMALL = """\
name: hello
deploy: {app: ["@ALL"]}
workflow:
  - {type: fedavg, rounds: 5}
"""

FULL = """\
name: hello-2.x
deploy: {app: [site-2, site-1, site-3]}
min_sites: 2
mandatory_sites: [site-1]
script: deep/train.py
options: {lr: 0.1, layers: [1, 2, {x: null}], note: "on", flag: true}
initial_model: models/start.safetensors
durability: durable
workflow:
  - type: fedavg
    rounds: 5
    min_responses: 2
    deadline: 30m
    evaluate: true
    best_metric: f1
"""


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "hello"
    (root / "app" / "deep").mkdir(parents=True)
    (root / "models").mkdir()
    (root / "job.yaml").write_text(SMALL)
    (root / "app" / "train.py").touch()
    (root / "app" / "deep" / "train.py").touch()
    write_file(root / "models" / "start.safetensors", {"w": np.ones(3)})
    return root


@pytest.mark.parametrize("durability", ["durable", "ephemeral"])
def test_a_job_says_how_durable_its_contributions_are(durability):
    config = parse_config(SMALL + f"durability: {durability}\n", "job.yaml")
    assert JobConfig.from_json(config.to_json()).durability == durability


def test_defaults():
    config = parse_config(SMALL, "job.yaml")
    assert (config.app, config.sites, config.script_path) == ("app", None, "app/train.py")
    assert (config.min_sites, config.mandatory_sites, config.options) == (None, (), {})
    assert config.initial_model is None
    assert workflow_of(config.to_json()["workflow"][0]) == FedAvg(5)


def test_everything_there_is():
    config = parse_config(FULL, "job.yaml")
    assert config.sites == ("site-1", "site-2", "site-3")
    assert config.script_path == "app/deep/train.py"
    assert config.options == {"lr": 0.1, "layers": [1, 2, {"x": None}], "note": "on", "flag": True}
    assert workflow_of(config.to_json()["workflow"][0]) == FedAvg(5, 2, 1800.0, evaluate=True, best_metric="f1")


@pytest.mark.parametrize("text", [SMALL, FULL])
def test_the_log_gives_it_back(text):
    config = parse_config(text, "job.yaml")
    assert JobConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("value", [{}, {"name": 3}, {"name": "x", "deploy": {"a": ["@ALL"]}, "workflow": [], "x": 1}])
def test_what_is_no_config_is_refused(value):
    with pytest.raises(BadInput, match="not the configuration of a job"):
        JobConfig.from_json(value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30.0), ("0.5", 0.5), ("30s", 30.0), ("5m", 300.0), ("1h", 3600.0), ("1.5 h", 5400.0), ("2d", 172800.0),
     ("250ms", 0.25), ('"90"', 90.0)],
)  # fmt: skip
def test_deadlines(text, seconds):
    config = parse_config(SMALL.replace("rounds: 5", f"rounds: 5, min_responses: 1, deadline: {text}"), "j")
    assert config.workflow[0].deadline == pytest.approx(seconds)


def step(extra):
    return SMALL.replace("rounds: 5", f"rounds: 5, {extra}")


WRONG = {
    "misspelt key": (SMALL + "scrip: x.py\n", "job.yaml:5:1: scrip: unknown key (did you mean script?)"),
    "misspelt key in a step": (step("evalute: true"), "job.yaml:4:31: workflow[0].evalute: unknown key (did you mean ev"),
    "no name": ("deploy: {app: ['@ALL']}\nworkflow: [{type: fedavg, rounds: 1}]\n", "name: missing"),
    "a name with a slash": (SMALL.replace("hello", "a/b"), "job.yaml:1:7: name:"),
    "a name with a line end": (SMALL.replace("hello", '"a\\n"'), "job.yaml:1:7: name:"),
    "no rounds": (SMALL.replace(", rounds: 5", ""), "workflow[0].rounds: missing"),
    "zero rounds": (SMALL.replace("5", "0"), "job.yaml:4:28: workflow[0].rounds:"),
    "rounds as text": (SMALL.replace("5", '"5"'), "job.yaml:4:28: workflow[0].rounds:"),
    "rounds as truth": (SMALL.replace("5", "true"), "job.yaml:4:28: workflow[0].rounds:"),
    "unknown workflow": (SMALL.replace("fedavg", "fedavgg"), "job.yaml:4:12: workflow[0].type:"),
    "no steps": (SMALL.split("workflow", maxsplit=1)[0] + "workflow: []\n", "workflow:"),
    "no sites": (SMALL.replace('"@ALL"', ""), "job.yaml:2:15: deploy.app: at least one entry is needed"),
    "no app": (SMALL.replace('{app: ["@ALL"]}', "{}"), "deploy:"),
    "an app outside": (SMALL.replace("app:", "../app:"), "deploy"),
    "a site that is no name": (SMALL.replace("@ALL", "Site_1"), "site name 'Site_1'"),
    "@ALL and more": (SMALL.replace('"@ALL"', '"@ALL", site-1'), "job.yaml:2:10: deploy.app: @ALL stands alone"),
    "a site twice": (SMALL.replace('"@ALL"', "site-1, site-1"), "deploy.app: site-1 is there twice"),
    "too many sites asked for": (FULL.replace("min_sites: 2", "min_sites: 4"), "job.yaml:3:1: min_sites: 4 is more than the 3"),
    "a foreign mandatory site": (FULL.replace("[site-1]", "[site-9]"), "job.yaml:4:1: mandatory_sites: site-9 is not among"),
    "mandatory @ALL": (FULL.replace("[site-1]", '["@ALL"]'), "mandatory_sites: names of sites"),
    "more answers than sites": (FULL.replace("min_responses: 2", "min_responses: 3"), "job.yaml:12:5: workflow[0].min_responses: 3 is m"),
    "a deadline for nothing": (step("deadline: 5m"), "job.yaml:4:31: workflow[0].deadline: needs min_responses"),
    "a deadline that is none": (step("min_responses: 1, deadline: soon"), 'must be a duration such as 30s, 5m or 1h, not "soon"'),
    "a deadline in the past": (step("min_responses: 1, deadline: -5"), "more than 0"),
    "a deadline that is true": (step("min_responses: 1, deadline: true"), "workflow[0].deadline:"),
    "a script outside": (SMALL + "script: ../../etc/x.py\n", "job.yaml:5:9: script: is not a plain relative path"),
    "an absolute script": (SMALL + "script: /etc/x.py\n", "script: is not a plain relative path"),
    "a script in a hidden folder": (SMALL + "script: .x/y.py\n", "script: hidden files"),
    "a script that is no Python": (SMALL + "script: run.sh\n", "script: must be a Python file"),
    "a model outside": (SMALL + "initial_model: ../m\n", "initial_model: is not a plain"),
    "options that are a list": (SMALL + "options: [1]\n", "job.yaml:5:10: options:"),
    "options beyond floats": (SMALL + "options: {x: [1e999]}\n", "finite numbers"),
    "unknown durability": (SMALL + "durability: maybe\n", "job.yaml:5:13: durability:"),
    "a key twice": (SMALL + "name: again\n", "job.yaml:5:1: name: duplicate key"),
    "not YAML": ("name: [", "job.yaml:"),
    "a list": ("- 1\n", "job.yaml:1:1"),
    "nothing": ("", "job.yaml:1:1"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_its_place(case):
    text, words = WRONG[case]
    with pytest.raises(BadInput) as caught:
        parse_config(text, "job.yaml")
    assert words in caught.value.message
    assert caught.value.message.startswith("job.yaml:")
    assert caught.value.code == "BAD_INPUT"


LATER = {
    "resources": (SMALL + "resources: {site-1: {gpu: 1}}\n", "job.yaml:5:1: resources: not supported yet"),
    "priority": (SMALL + "priority: 3\n", "job.yaml:5:1: priority: not supported yet"),
    "filters": (SMALL + "filters: []\n", "filters: not supported yet"),
    "metrics": (SMALL + "metrics: []\n", "metrics: not supported yet"),
    "another workflow": (SMALL.replace("fedavg", "scaffold"), "job.yaml:4:6: workflow[0].type: scaffold is not supported yet"),
    "two steps": (SMALL + "  - {type: fedavg, rounds: 5}\n", "job.yaml:5:5: workflow[1]: more than one step is not supported yet"),
    "two apps": (SMALL.replace("{app:", "{app: [site-1], app2:"), "deploy.app2: more than one app is not supported yet"),
    "a later key of a step": (step("aggregator: median"), "workflow[0].aggregator: not supported yet"),
}  # fmt: skip


@pytest.mark.parametrize("case", LATER)
def test_what_comes_later_is_refused_never_ignored(case):
    text, words = LATER[case]
    with pytest.raises(NotSupportedYet) as caught:
        parse_config(text, "job.yaml")
    assert words in caught.value.message


def test_a_folder_is_loaded(folder):
    (folder / "job.yaml").write_text(FULL)
    job = load_job(folder)
    assert job.config == parse_config(FULL, "x")
    assert job.folder == folder
    assert job.files == ("app/deep/train.py", "app/train.py", "job.yaml", "models/start.safetensors")


def test_a_bundle_is_checked_like_its_folder(folder, tmp_path):
    (folder / "job.yaml").write_text(FULL)
    bundle.pack(folder, tmp_path / "b")
    assert load_bundle(tmp_path / "b") == load_job(folder).config


def missing_folder(folder):
    (folder / "job.yaml").rename(folder / "other.yaml")


def wrong_script(folder):
    (folder / "app" / "train.py").rename(folder / "app" / "trian.py")


def no_app(folder):
    (folder / "app").rename(folder / "app2")


def no_model(folder):
    (folder / "job.yaml").write_text(SMALL + "initial_model: start.safetensors\n")


def bad_model(folder):
    (folder / "models" / "start.safetensors").write_bytes(b"no tensors here")
    (folder / "job.yaml").write_text(SMALL + "initial_model: models/start.safetensors\n")


def latin(folder):
    (folder / "job.yaml").write_bytes(b"name: \xff\n")


def folder_as_script(folder):
    (folder / "app" / "train.py").unlink()
    (folder / "app" / "train.py").mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing_folder, "no job.yaml in the "),
        (wrong_script, "script: there is no app/train.py in the job folder (did you mean trian.py?)"),
        (no_app, "deploy.app: there is no folder app"),
        (no_model, "job.yaml:5:1: initial_model: there is no start.safetensors"),
        (bad_model, "job.yaml:5:1: initial_model: "),
        (latin, "not UTF-8"),
        (folder_as_script, "script: there is no app/train.py"),
    ],
)
def test_a_folder_or_bundle_with_something_missing_is_refused(folder, tmp_path, spoil, words):
    spoil(folder)
    with pytest.raises(BadInput) as caught:
        load_job(folder)
    assert words in caught.value.message
    bundle.pack(folder, tmp_path / "b")
    with pytest.raises(BadInput) as caught:
        load_bundle(tmp_path / "b")
    assert words in caught.value.message


def test_a_folder_that_is_not_there_or_leads_out_is_refused(folder, tmp_path):
    with pytest.raises(BadInput, match="no such job folder"):
        load_job(tmp_path / "nothing")
    with pytest.raises(BadInput, match="no such job folder"):
        load_job(folder / "job.yaml")
    (folder / "job.yaml").unlink()
    (folder / "job.yaml").symlink_to("/etc/passwd")
    with pytest.raises(BadInput, match="leads out of the job folder"):
        load_job(folder)


def test_a_broken_bundle_is_refused(tmp_path):
    (tmp_path / "b").write_bytes(b"nothing" * 200)
    with pytest.raises(BadInput, match="not a bundle"):
        load_bundle(tmp_path / "b")


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: (SMALL + text).encode("utf-8", "replace")))
def test_no_text_crashes_the_reader(content):
    try:
        parse_config(content.decode("utf-8", "replace"), "job.yaml")
    except BadInput as wrong:
        refusal = wrong.message
    else:
        return
    assert refusal.startswith("job.yaml:")


def test_loading_a_job_without_a_model_does_not_load_numpy(folder):
    code = (
        "import sys, pathlib\nfrom fedhelm.job import bundle, load_job\n"
        f"load_job(pathlib.Path({str(folder)!r}))\nassert 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])
