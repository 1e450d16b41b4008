"""A real agent with a privacy policy: what its servers get, and what they never get. The servers are fakes."""

import asyncio
import json
import signal

import numpy as np
import pytest

from fedhelm.process import marked_processes
from fedhelm.tensors import read_file, write_file
from tests.fakes.client_fleet import JOB
from tests.support.site import SiteBench, key, reaped, spawn_agent
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes

SCRIPT = """
import os
import numpy as np
import fedhelm.script as fl

with fl.connect() as site:
    print("patient 7 has the flu")
    for task in site.tasks():
        with open(os.path.join(site.options["signals"], "calls"), "a") as calls:
            calls.write(f"{site.name} {task.kind} {task.round}\\n")
        site.log("loss", 0.123456, task.round)
        site.log("age of patient 7", 81, task.round)
        if site.options.get("raises"):
            raise ValueError("patient 7 has the flu")
        model = task.model.numpy() if task.model is not None else {"head": np.zeros(2), "body": np.zeros(2)}
        task.submit(
            {name: value + site.options.get("step", 1.0) for name, value in model.items()},
            weight=7, metrics={"loss": 0.123456, "patients": 7},
        )
"""

MODEL = {"head": np.zeros(2), "body": np.array([3.0, 4.0])}


@pytest.fixture
async def fed(tmp_path):
    fed = SiteBench(tmp_path)
    await fed.one.start()
    yield fed
    await fed.stop_agent()
    assert marked_processes(fed.kit.root) == [], "a process was left"
    await fed.one.stop()


def decree(fed, **keys):
    """Write the site's own policy."""
    (fed.kit.local / "privacy.json").write_text(json.dumps({"format_version": "1.0", **keys}))


def model_bytes(tmp_path):
    write_file(tmp_path / "model", MODEL)
    return (tmp_path / "model").read_bytes()


def got(fed, number, tmp_path):
    (tmp_path / "back").write_bytes(fed.log.tensors(key(number)))
    return {name: value.tolist() for name, value in read_file(tmp_path / "back").items()}


def audited(fed):
    """What the site's audit file has of results: outcome, filters, reason."""
    lines = map(json.loads, (fed.kit.root / "audit.jsonl").read_text().splitlines())
    found = [line for line in lines if line["action"] == "site.result"]
    assert {(line["object"]["job"], line["object"]["site"]) for line in found} <= {(JOB, "site-1")}
    return [(line["outcome"], line["object"]["filters"], line["why"]) for line in found]


def said(fed, tag):
    return [line["value"] for line in fed.log.lines.get(JOB, ()) if line["tag"] == tag]


async def test_what_leaves_is_filtered_and_says_so_and_a_job_keeps_its_policy(fed, tmp_path):
    decree(
        fed,
        filters=[
            {"type": "weight", "value": 1},
            {"type": "exclude", "tensors": ["head*"]},
            {"type": "clip", "norm": 0.5},
        ],
        metrics={"only": ["loss"], "digits": 2},
        lines=["scalar"],
    )
    fed.add_job(SCRIPT, step=2.0)
    fed.log.task(1, model=model_bytes(tmp_path))
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(fed.recorded(1), 20)
    assert np.allclose(got(fed, 1, tmp_path)["body"], np.array([3.0, 4.0]) + 0.5 / np.sqrt(2))
    assert got(fed, 1, tmp_path)["head"] == [0.0, 0.0]
    assert fed.log.contributions[key(1)][1] == {"loss": 0.12}
    (offer,) = fed.log.offers
    assert offer.weight == 1.0
    told = ["weight(value=1)", "exclude(tensors=head*)", "clip(norm=0.5)"]
    assert list(offer.filters) == [*told, "metrics(only=loss, digits=2)"]
    assert said(fed, "loss") == [0.12]
    assert said(fed, "privacy") == [f"privacy filters of this site: {', '.join(offer.filters)}, lines(only=scalar)"]
    assert "patient" not in json.dumps(fed.log.lines)

    decree(fed)  # nothing more: for the next job
    fed.log.close_round(1)
    await fed.stop_agent()
    assert audited(fed) == [("allowed", ", ".join(offer.filters), "")]
    fed.log.task(2, model=model_bytes(tmp_path))
    await fed.start_agent()
    await eventually(fed.recorded(2), 20)
    assert got(fed, 2, tmp_path)["head"] == [0.0, 0.0]
    assert fed.log.offers[-1].weight == 1.0


@pytest.mark.parametrize(
    ("policy", "has_model", "reason"),
    [
        ({"type": "min_samples", "samples": 8}, True, "privacy filter min_samples of this site: the result is of too few"),
        ({"type": "clip", "norm": 1}, False, "privacy filter clip of this site: it works on what an update changes"),
        ({"type": "limits", "tensors": 1}, True, "privacy filters of this site: the update has more tensors"),
    ],
    ids=lambda one: one["type"] if isinstance(one, dict) else "",
)  # fmt: skip
async def test_what_cannot_be_filtered_fails_the_job_here_and_nothing_of_it_leaves(
    fed, tmp_path, policy, has_model, reason
):
    decree(fed, filters=[policy])
    fed.add_job(SCRIPT)
    fed.log.task(1, model=model_bytes(tmp_path) if has_model else None)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(lambda: fed.log.failures, 20)
    (failure,) = fed.log.failures
    assert reason in failure.reason
    assert failure.round == 1
    assert failure.traceback == ""
    assert fed.log.offers == []
    assert list((fed.kit.run / "outbox" / JOB).glob("*.safetensors")) == []
    assert bool(fed.calls()) is has_model, "without a model nothing is trained"
    await fed.stop_agent()
    if has_model:
        ((outcome, filters, why),) = audited(fed)
        assert (outcome, filters.partition("(")[0]) == ("failed", policy["type"])
        assert reason in why


async def test_an_agent_that_is_stopped_while_it_filters_fails_nothing_and_does_it_again(fed, tmp_path):
    decree(fed, filters=[{"type": "gaussian_noise", "norm": 1, "multiplier": 1}, {"type": "keep_largest", "share": 1}])
    fed.add_job(SCRIPT)
    write_file(tmp_path / "large", {"w": np.zeros(4_000_000, np.float32)})
    fed.log.task(1, model=(tmp_path / "large").read_bytes())
    await fed.one.lead(1)
    await fed.start_agent()
    outbox = fed.kit.run / "outbox" / JOB
    await eventually(lambda: list(outbox.glob("step-1*")), 20)
    await fed.stop_agent()
    assert not (fed.kit.run / "jobs" / JOB / "failed.json").exists()
    assert fed.log.failures == []
    await fed.start_agent()
    await eventually(fed.recorded(1), 20)
    assert set(fed.calls()) == {"site-1 train 1"}  # twice, but for a test that slept through the filter


async def test_a_failed_scripts_words_stay_where_log_lines_do(fed, tmp_path):
    decree(fed, lines=["scalar"])
    fed.add_job(SCRIPT, raises=True)
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(lambda: fed.log.failures, 20)
    (failure,) = fed.log.failures
    assert failure.reason == "the script exited with status 1; its messages stay at this site"
    assert failure.traceback == ""
    assert "patient 7 has the flu" in (fed.kit.run / "jobs" / JOB / "log.txt").read_text()


async def test_a_mistake_made_while_the_agent_runs_fails_the_next_job_with_its_place(fed, tmp_path):
    await fed.start_agent()
    decree(fed, filters=[{"type": "clap"}])
    fed.add_job(SCRIPT)
    fed.log.task(1)
    await fed.one.lead(1)
    await eventually(lambda: fed.log.failures, 20)
    assert "local/privacy.json:1:40: filters[0].type: unknown filter 'clap' (did you mean clip?)" in (
        fed.log.failures[0].reason
    )
    assert fed.calls() == []


# -- the agent as a process of its own --------------------------------------------------------------------------------


async def test_a_mistake_keeps_the_agent_from_starting(fed):
    (fed.kit.local / "privacy.json").write_text('{"format_version": "1.0", // mine\n "filtres": []}')
    agent = spawn_agent(fed.kit)
    assert await reaped(agent) == 2
    (line,) = (fed.kit.root / "out.txt").read_text().splitlines()
    assert "local/privacy.json:2:2: filtres: unknown key (did you mean filters?)" in line


async def test_noise_is_drawn_once_though_the_agent_is_killed_before_the_upload(fed, tmp_path):
    decree(fed, filters=[{"type": "gaussian_noise", "norm": 1, "multiplier": 1}])
    fed.add_job(SCRIPT)
    fed.log.task(1, model=model_bytes(tmp_path))
    gate = asyncio.Event()

    async def held(_):
        await gate.wait()

    fed.one.hooks["push_lines"] = held  # lines go before the result: it is saved, and waits
    await fed.one.lead(1)
    outbox = fed.kit.run / "outbox" / JOB
    agents = [spawn_agent(fed.kit)]
    try:
        await eventually(lambda: list(outbox.glob("*.result.json")), 20)
        (saved,) = outbox.glob("*.safetensors")
        noisy = saved.read_bytes()
        agents[0].send_signal(signal.SIGKILL)
        agents[0].wait()
        gate.set()
        agents.append(spawn_agent(fed.kit))
        await eventually(fed.recorded(1), 20)
        assert fed.log.tensors(key(1)) == noisy
        assert fed.calls() == ["site-1 train 1"]
        assert {offer.blob.digest for offer in fed.log.offers} == {fed.log.contributions[key(1)][0]}
        (tmp_path / "noisy").write_bytes(noisy)
        assert read_file(tmp_path / "noisy")["body"].tolist() != [4.0, 5.0]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
        await eventually(lambda: marked_processes(fed.kit.root) == [])
