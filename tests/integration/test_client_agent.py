"""A real agent, real nannies and job processes, mutual TLS; the servers are fakes that vanish when told to."""

import asyncio
import json
import os
import signal

import numpy as np
import pytest

from fedhelm.errors import BadInput, NotAuthorised
from fedhelm.process import ParticipantLock, marked_processes, read_state
from fedhelm.tensors import read_file, write_file
from fedhelm.v1 import fleet_pb2
from tests.fakes.client_fleet import JOB
from tests.support.kits import make_kits
from tests.support.site import TRAIN, SiteBench, key, reaped, spawn_agent
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes


@pytest.fixture
async def fed(tmp_path):
    fed = SiteBench(tmp_path)
    await fed.one.start()
    await fed.two.start()
    yield fed
    await fed.stop_agent()
    assert marked_processes(fed.kit.root) == [], "a process was left"
    await fed.one.stop()
    await fed.two.stop()


async def test_a_job_of_two_rounds(fed, tmp_path):
    fed.add_job()
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(fed.recorded(1), 20)
    write_file(tmp_path / "model", {"w": np.array([10.0, 20.0])})
    fed.log.close_round(1)
    fed.log.task(2, model=(tmp_path / "model").read_bytes())
    fed.one.tell()
    await eventually(fed.recorded(2))
    (tmp_path / "back").write_bytes(fed.log.tensors(key(2)))
    assert read_file(tmp_path / "back")["w"].tolist() == [12.0, 22.0]
    assert fed.log.contributions[key(2)][1] == {"round": 2.0}
    fed.log.close_round(2)
    fed.log.finish("COMPLETED")
    fed.one.tell()
    await eventually(lambda: any(line["value"] == "all done" for line in fed.log.lines[JOB]))
    await eventually(lambda: fed.one.held == {})
    assert fed.calls() == ["site-1 train 1", "site-1 train 2"]
    assert marked_processes(fed.kit.root) == []
    assert fed.log.failures == []
    losses = [line["value"] for line in fed.log.lines[JOB] if line["tag"] == "loss"]
    assert losses == [1.0, 0.5]
    assert not (fed.kit.run / "outbox" / JOB).exists()
    assert not (fed.kit.run / "jobs" / JOB / "bundle").exists(), "whoever starts it again has it admitted again"


async def test_lines_are_in_the_log_before_the_contribution(fed):
    fed.add_job()
    fed.log.task(1)
    gate = asyncio.Event()

    async def slow(_):
        await gate.wait()

    fed.one.hooks["push_lines"] = slow
    await fed.one.lead(1)
    await fed.start_agent()
    outbox = fed.kit.run / "outbox" / JOB
    await eventually(lambda: list(outbox.glob("*.result.json")), 20)
    assert fed.one.offers == 0
    gate.set()
    await eventually(fed.recorded(1))
    kinds = [kind for kind, _ in fed.log.order]
    assert kinds[-1] == "contribution"
    assert set(kinds[:-1]) == {"lines"}


@pytest.mark.parametrize("moment", ["before_record", "after_record"])
async def test_the_primary_vanishes_at_the_contribution(fed, moment):
    """Before or after it is recorded: one call of the script, one contribution, the receipt from the new primary."""
    fed.add_job()
    fed.log.task(1)

    async def vanish(server):
        fed.doom = asyncio.ensure_future(server.stop())
        await asyncio.Event().wait()

    fed.one.hooks[moment] = vanish
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(lambda: fed.one.offers == 1, 20)
    await fed.doom
    assert (key(1) in fed.log.contributions) is (moment == "after_record")
    if moment == "after_record":
        fed.log.no_task()
    await fed.two.lead(2)
    await eventually(lambda: fed.two.offers == 1)
    await eventually(fed.recorded(1))
    assert fed.log.contributions[key(1)][2].epoch == (1 if moment == "after_record" else 2)
    fed.log.close_round(1)
    fed.log.task(2)
    fed.two.tell()
    await eventually(fed.recorded(2))
    assert fed.calls() == ["site-1 train 1", "site-1 train 2"]
    assert [what for what, _ in fed.log.order].count("contribution") == 2


async def test_training_goes_on_while_nobody_leads(fed):
    fed.add_job(wait=True)
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(fed.calls, 20)
    await fed.one.stop()
    await fed.two.stop()
    fed.go(1)
    outbox = fed.kit.run / "outbox" / JOB
    await eventually(lambda: list(outbox.glob("*.result.json")))
    await eventually(lambda: read_state(fed.kit.run)["ready"] is False)
    await fed.two.start()
    await fed.two.lead(2)
    await eventually(fed.recorded(1))
    assert fed.calls() == ["site-1 train 1"]
    assert read_state(fed.kit.run)["primary"] == "server2"


async def test_a_zombie_is_not_followed(fed):
    fed.add_job()
    await fed.two.lead(5)
    await fed.start_agent()
    await eventually(lambda: fed.agent.links.view.leader == "server2")
    fed.log.task(1)
    await fed.one.lead(4)
    await eventually(lambda: fed.agent.links.view.proved.get("server1") == 4)
    assert fed.agent.links.view.leader == "server2"
    assert fed.calls() == []
    await fed.stop_agent()
    assert json.loads((fed.kit.run / "epoch.json").read_text())["epoch"] == 5
    await fed.two.stop()
    await fed.start_agent()
    await eventually(lambda: fed.agent.links.view.proved.get("server1") == 4)
    assert fed.agent.links.view.leader is None
    assert fed.one.hellos[-1].highest_epoch == 5


async def test_a_server_of_another_federation_is_refused_by_name(fed, caplog):
    fed.one.cluster = "d" * 32
    fed.one.leading, fed.one.epoch = True, 1
    with caplog.at_level("INFO", logger="fedhelm"):
        await fed.start_agent()
        await eventually(lambda: "server1 belongs to another federation" in caplog.text)
    assert fed.agent.links.view.highest == 0


async def test_a_script_that_raises_is_reported_with_its_traceback(fed):
    fed.add_job(TRAIN.replace("base = ", "raise ValueError('no data here')\n        base = "))
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    (failure,) = await eventually(lambda: fed.log.failures, 20)
    assert (failure.reason, failure.round, failure.job) == ("ValueError: no data here", 1, JOB)
    assert "train.py" in failure.traceback
    await eventually(lambda: fed.one.held == {JOB: "FAILED"})
    await fed.stop_agent()
    await fed.start_agent()  # says it again, runs nothing again
    await eventually(lambda: len(fed.log.failures) == 2)
    assert fed.log.failures[1] == failure
    assert fed.calls() == ["site-1 train 1"]
    fed.log.finish("FAILED")
    fed.one.tell()
    await eventually(lambda: fed.one.held == {})


async def test_a_script_that_returns_too_early_is_a_failure(fed):
    fed.add_job("print('I do nothing')\n")
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    (failure,) = await eventually(lambda: fed.log.failures, 20)
    assert failure.reason == "the script returned before the job ended"


async def test_a_result_that_the_primary_will_never_take_is_a_failure(fed):
    async def refuse(_):
        raise BadInput("metrics of site-1 are not finite numbers by name")

    fed.add_job()
    fed.log.task(1)
    fed.one.hooks["before_record"] = refuse
    await fed.one.lead(1)
    await fed.start_agent()
    (failure,) = await eventually(lambda: fed.log.failures, 20)
    assert failure.reason == "the train result of round 1 was refused: metrics of site-1 are not finite numbers by name"
    assert failure.round == 1


async def test_custom_code_needs_byoc(fed):
    import dataclasses

    fed.kit = dataclasses.replace(fed.kit, enable_byoc=False)
    fed.add_job()
    await fed.one.lead(1)
    await fed.start_agent()
    (failure,) = await eventually(lambda: fed.log.failures, 20)
    assert failure.reason == ("site site-1 takes no job that brings its own code (enable_byoc is not set in its kit)")
    assert (fed.one.hellos[0].HasField("enable_byoc"), fed.one.hellos[0].enable_byoc) == (True, False)
    assert not (fed.kit.run / "jobs" / JOB / "bundle").exists()


async def test_a_script_outside_the_bundle_is_refused(fed):
    job = fed.add_job()
    job.script = "../../../../startup/client.key"
    await fed.one.lead(1)
    await fed.start_agent()
    (failure,) = await eventually(lambda: fed.log.failures, 20)
    assert failure.reason == f"site site-1: the server says another script than job.yaml of job {JOB}"
    assert not (fed.kit.run / "jobs" / JOB / "bundle").exists()


async def test_abort_ends_the_whole_tree(fed):
    fed.add_job("import os\nif os.fork() == 0:\n    os.setsid()\n" + TRAIN, wait=True)
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(fed.calls, 20)
    assert len(marked_processes(fed.kit.root)) == 3
    fed.log.finish("ABORTED")
    fed.one.tell()
    await eventually(lambda: fed.one.held == {})
    assert marked_processes(fed.kit.root) == []
    assert fed.log.failures == []


async def test_a_late_result_is_gone_and_the_next_task_runs(fed):
    fed.add_job(wait=True)
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(fed.calls, 20)
    fed.log.close_round(1)  # the deadline passed without this site
    fed.log.task(2)
    fed.one.tell()
    fed.go(1)
    fed.go(2)
    await eventually(fed.recorded(2))
    assert key(1) not in fed.log.contributions
    assert fed.calls() == ["site-1 train 1", "site-1 train 2"]


async def test_an_answered_task_is_not_run_again_after_a_restart(fed):
    fed.add_job()
    fed.log.task(1)

    async def never(_):
        await asyncio.Event().wait()

    fed.one.hooks["before_record"] = never
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(lambda: fed.one.offers == 1, 20)
    await fed.stop_agent()
    fed.one.hooks.clear()
    await fed.start_agent()
    await eventually(fed.recorded(1))
    fed.log.close_round(1)
    fed.log.task(2)
    fed.one.tell()
    await eventually(fed.recorded(2), 20)
    assert fed.calls() == ["site-1 train 1", "site-1 train 2"]


async def test_what_is_left_of_a_job_that_was_deleted_meanwhile_goes_from_the_disk(fed):
    fed.add_job()
    fed.log.task(1)

    async def never(_):
        await asyncio.Event().wait()

    fed.one.hooks["before_record"] = never
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(lambda: fed.one.offers == 1, 20)
    await fed.stop_agent()

    async def stranger(_):
        raise NotAuthorised("site-1 is no member of the job")

    fed.one.hooks.update(before_record=stranger, push_lines=stranger)
    fed.log.jobs[JOB] = fleet_pb2.AssignedJob(job=JOB, status="FINISHED:DELETED")
    await fed.start_agent()
    await eventually(lambda: not (fed.kit.run / "outbox" / JOB).exists(), 20)
    await eventually(lambda: fed.one.held == {})
    assert fed.log.failures == []


# -- the agent as a process of its own --------------------------------------------------------------------------------


@pytest.fixture
async def agent(fed):
    processes = []

    def start():
        processes.append(spawn_agent(fed.kit))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
    await eventually(lambda: marked_processes(fed.kit.root) == [])


def open_to_others(path):
    return not path.is_symlink() and path.stat().st_mode & 0o077 != 0


async def test_kill_9_of_the_agent_leaves_no_process_and_the_task_runs_again(fed, agent):
    fed.add_job(wait=True)
    fed.log.task(1)
    await fed.one.lead(1)
    first = agent()
    await eventually(fed.calls, 20)
    assert {one.mark for one in marked_processes(fed.kit.root)} == {"agent", "nanny", "job"}
    first.send_signal(signal.SIGKILL)
    first.wait()
    await eventually(lambda: marked_processes(fed.kit.root) == [], what="nothing outlives the agent")
    agent()
    await eventually(lambda: len(fed.calls()) == 2, 20)
    fed.go(1)
    await eventually(fed.recorded(1))
    assert fed.calls() == ["site-1 train 1"] * 2
    assert [what for what, _ in fed.log.order].count("contribution") == 1
    written = [*fed.kit.run.rglob("*"), fed.kit.log_file, fed.kit.root / "audit.jsonl", fed.signals / "calls"]
    assert len(written) > 10
    assert [path for path in written if open_to_others(path)] == []


async def test_kill_9_after_the_result_was_saved_offers_it_and_runs_nothing_again(fed, agent):
    fed.add_job()
    fed.log.task(1)

    async def never(_):
        await asyncio.Event().wait()

    fed.one.hooks["before_record"] = never
    await fed.one.lead(1)
    first = agent()
    await eventually(lambda: fed.one.offers == 1, 20)
    first.send_signal(signal.SIGKILL)
    first.wait()
    fed.one.hooks.clear()
    agent()
    await eventually(fed.recorded(1), 20)
    assert fed.calls() == ["site-1 train 1"]
    losses = [line for line in fed.log.lines[JOB] if line["tag"] == "loss"]
    assert len(losses) == 1


async def test_a_new_agent_kills_what_a_stopped_nanny_left(fed, agent):
    fed.add_job(wait=True)
    fed.log.task(1)
    await fed.one.lead(1)
    first = agent()
    await eventually(fed.calls, 20)
    old = [one.pid for one in marked_processes(fed.kit.root) if one.mark != "agent"]
    for one in marked_processes(fed.kit.root):
        if one.mark == "nanny":
            os.kill(one.pid, signal.SIGSTOP)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert [one.mark for one in marked_processes(fed.kit.root)]
    agent()
    await eventually(lambda: len(fed.calls()) == 2, 20)
    assert not set(old) & {one.pid for one in marked_processes(fed.kit.root)}


async def test_sigterm_ends_everything(fed, agent):
    fed.add_job("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + TRAIN, wait=True)
    fed.log.task(1)
    await fed.one.lead(1)
    process = agent()
    await eventually(fed.calls, 20)
    state = read_state(fed.kit.run)
    assert (state["ready"], state["primary"], state["epoch"]) == (True, "server1", 1)
    assert ParticipantLock.holder(fed.kit.run) == process.pid
    process.terminate()
    async with asyncio.timeout(5):
        assert await reaped(process) == 0
    assert marked_processes(fed.kit.root) == []
    assert ParticipantLock.holder(fed.kit.run) is None
    assert fed.log.failures == []
    log = fed.kit.log_file.read_text()
    assert "following server1, epoch 1" in log
    assert not (fed.kit.run / "runtime").is_symlink()


async def test_a_second_agent_of_the_same_kit_is_refused(fed, agent):
    process = agent()
    await eventually(lambda: ParticipantLock.holder(fed.kit.run) == process.pid)
    second = agent()
    assert await reaped(second) == 1
    assert (
        f"error[ALREADY_RUNNING]: site-1 is running already, pid {process.pid}"
        in (fed.kit.root / "out.txt").read_text()
    )


def test_bad_kits_are_refused(tmp_path, capsys):
    from fedhelm_client.cli import main

    kits = make_kits(tmp_path)
    assert main(["--kit", str(kits["server1"].root)]) == 4
    assert "error[BAD_KIT]" in capsys.readouterr().err
    assert main(["--kit", str(tmp_path / "nowhere")]) == 4
    assert main([]) == 2
