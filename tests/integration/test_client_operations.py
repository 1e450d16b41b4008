"""What an operator does to a site while it works: restart, shutdown, servers that come and go; old and new neighbours."""

import asyncio
import json

import pytest

from fedhelm.process import ParticipantLock, marked_processes, read_state
from fedhelm.wire.overseer_api import ServerView
from fedhelm_client import roster
from fedhelm_client.outbox import Outbox
from tests.fakes.client_fleet import JOB, FakeFleet
from tests.support.federation import free_base_port
from tests.support.kits import make_kits
from tests.support.site import SiteBench, key, reaped, spawn_agent
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


def view(fleet, state="STANDBY"):
    address = fleet.kit.own_server
    return ServerView(
        name=address.name,
        state=state,
        host=address.host,
        fed_learn_port=address.fed_learn_port,
        admin_port=address.admin_port,
    )


# -- what a server may say of a job that runs, and of one that ran ---------------------------------------------------

SHOWS_ITS_OPTIONS = """
import json, os, time
import numpy as np
import fedhelm.script as fl
with open("started", "w"):
    pass
while not os.path.exists("go"):
    time.sleep(0.01)
with fl.connect() as site:
    with open("seen", "w") as seen:
        json.dump(dict(site.options), seen)
    for task in site.tasks():
        task.submit({"w": np.ones(2)}, weight=1)
"""


async def test_a_server_cannot_change_what_was_signed_nor_have_a_job_run_again_that_ended_here(fed, caplog):
    job = fed.add_job(SHOWS_ITS_OPTIONS, dp=True)
    folder = fed.kit.run / "jobs" / JOB
    signed = job.options_json
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually((folder / "work" / "started").exists, 20)
    job.options_json = json.dumps({"signals": str(fed.signals), "dp": False})
    fed.one.tell()
    await eventually(lambda: "what the primary says now is not taken" in caplog.text)
    (folder / "work" / "go").touch()
    await eventually(fed.recorded(1), 20)
    assert json.loads((folder / "work" / "seen").read_text())["dp"] is True

    job.options_json = signed
    fed.log.close_round(1)
    fed.log.finish("COMPLETED")
    fed.one.tell()
    await eventually(lambda: fed.one.held == {} and not (folder / "bundle").exists(), 20)
    assert not (folder / "privacy.json").exists()
    del job.closed[:]
    job.status = "RUNNING"
    fed.log.contributions.clear()
    fed.log.task(1)
    for start in (None, fed.start_agent):  # now, and to an agent that was started since
        caplog.clear()
        if start is not None:
            await fed.stop_agent()
            await start()
        fed.one.tell()
        await eventually(lambda: f"job {JOB} ended at this site at" in caplog.text)
        await eventually(lambda: fed.one.held == {JOB: "ENDED"})
        assert fed.log.failures == [], "a primary that does not know yet that the job ended has done nothing wrong"
    lines = [json.loads(line) for line in (fed.kit.root / "audit.jsonl").read_text().splitlines()]
    refused = [line["why"] for line in lines if (line["action"], line["outcome"]) == ("site.job", "denied")]
    assert ["another options" in why or "is not run again" in why for why in refused] == 3 * [True]

    await fed.stop_agent()
    (fed.kit.run / "ended_jobs.txt").write_text("")  # the store was restored, and the operator knows it
    await fed.start_agent()
    await eventually(fed.recorded(1), 20)


# -- orders -----------------------------------------------------------------------------------------------------------


async def test_an_ordered_shutdown_ends_the_agent_and_is_not_repeated(fed):
    fed.add_job(wait=True)
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(fed.calls, 20)
    fed.order("shutdown", reason="the night")
    await fed.ended()
    assert fed.agent.ordered == "shutdown"
    assert marked_processes(fed.kit.root) == []
    await fed.start_agent()  # the server says it again: this agent was started after it
    await eventually(lambda: len(fed.calls()) == 2, 20)
    fed.go(1)
    await eventually(fed.recorded(1))


async def test_an_order_of_a_server_that_does_not_lead_is_ignored(fed, caplog):
    await fed.one.lead(3)
    await fed.two.lead(2)
    await fed.start_agent()
    await eventually(lambda: fed.agent.links.view.leader == "server1")
    fed.order("shutdown", fleet=fed.two)
    await eventually(lambda: "an order of server2, which does not lead, is ignored" in caplog.text)
    assert fed.agent.ordered is None


async def test_what_no_admin_signed_or_the_sites_policy_denies_is_not_obeyed(fed, caplog):
    policy = fed.kit.local / "authorization.json"
    policy.write_text('{"format_version": "1.0", "permissions": {"project_admin": {"operate": "none"}}}')
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(lambda: fed.agent.links.view.leader == "server1")
    fed.order("shutdown", "r1", "the night")
    fed.one.order("shutdown", "r2")  # as a server whose key was stolen, or one of before
    await eventually(lambda: caplog.text.count("which is not obeyed") == 2)
    policy.unlink()
    fed.order("shutdown", "r3", "the night")
    await fed.ended()
    lines = [json.loads(line) for line in (fed.kit.root / "audit.jsonl").read_text().splitlines()]
    denied, unsigned, obeyed = [line for line in lines if line["action"] == "site.shutdown"]
    assert [line["outcome"] for line in (denied, unsigned, obeyed)] == ["denied", "denied", "allowed"]
    assert denied["by"]["name"] == "admin@nvidia.com"
    assert "operate is none for project_admin" in denied["why"]
    assert "nobody signed it" in unsigned["why"]
    assert (obeyed["by"]["name"], obeyed["object"]["reason"]) == ("admin@nvidia.com", "the night")


async def test_a_restarted_agent_is_the_same_process_and_runs_the_open_task_again(fed, agent):
    fed.add_job(wait=True)
    fed.log.task(1)
    await fed.one.lead(1)
    process = agent()
    await eventually(fed.calls, 20)
    before = len(fed.one.hellos)
    fed.order("restart")
    await eventually(lambda: len(fed.calls()) == 2, 20)
    assert process.poll() is None
    assert ParticipantLock.holder(fed.kit.run) == process.pid
    assert len(fed.one.hellos) == before + 1
    assert fed.one.hellos[0].incarnation != fed.one.hellos[-1].incarnation
    fed.go(1)
    await eventually(fed.recorded(1))
    fed.order("shutdown", "r2")
    assert await reaped(process) == 0
    assert fed.calls() == ["site-1 train 1"] * 2
    assert json.loads((fed.kit.run / "orders.json").read_text()) == ["r1", "r2"]


async def test_a_result_that_was_saved_survives_a_restart(fed, agent):
    fed.add_job()
    fed.log.task(1)

    async def never(_):
        await asyncio.Event().wait()

    fed.one.hooks["before_record"] = never
    await fed.one.lead(1)
    process = agent()
    await eventually(lambda: fed.one.offers == 1, 20)
    fed.one.hooks.clear()
    fed.order("restart")
    await eventually(fed.recorded(1), 20)
    assert fed.calls() == ["site-1 train 1"]
    assert process.poll() is None


# -- neighbours of the version before ----------------------------------------------------------------------------------


async def test_a_server_of_wire_version_1_is_served(fed):
    fed.one.wire = 1
    fed.add_job()
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(fed.recorded(1), 20)
    assert list(fed.one.hellos[0].wire_versions) == [2, 1]


async def test_a_failover_from_a_new_server_to_an_old_one(fed):
    fed.two.wire = 1
    fed.add_job(wait=True)
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(fed.calls, 20)
    await fed.one.stop()
    await fed.two.lead(2)
    fed.go(1)
    await eventually(fed.recorded(1))
    assert fed.calls() == ["site-1 train 1"]


# -- ephemeral jobs ----------------------------------------------------------------------------------------------------


async def test_a_held_result_goes_to_the_next_primary_and_is_deleted_with_its_round(fed):
    fed.add_job()
    fed.log.ephemeral.add(JOB)
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(lambda: key(1) in fed.one.kept, 20)
    outbox = fed.kit.run / "outbox" / JOB
    await eventually(lambda: [one.state for one in Outbox(outbox)] == ["held"])
    await fed.one.stop()
    await fed.two.lead(2)
    await eventually(lambda: key(1) in fed.two.kept)
    assert fed.calls() == ["site-1 train 1"], "it is not trained again"
    fed.log.close_round(1)
    fed.log.task(2)
    fed.two.tell()
    await eventually(lambda: key(2) in fed.two.kept)
    assert not list(outbox.glob("0-0-1-*"))
    fed.log.finish("COMPLETED")
    fed.two.tell()
    await eventually(lambda: not outbox.exists())


# -- a damaged disk ----------------------------------------------------------------------------------------------------


async def test_a_damaged_result_is_told_among_the_jobs_lines_and_its_task_runs_again(fed):
    fed.add_job()
    fed.log.task(1)

    async def never(_):
        await asyncio.Event().wait()

    fed.one.hooks["before_record"] = never
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(lambda: fed.one.offers == 1, 20)
    await fed.stop_agent()
    (meta,) = (fed.kit.run / "outbox" / JOB).glob("*.result.json")
    meta.write_text("garbled")
    fed.one.hooks.clear()
    await fed.start_agent()
    await eventually(fed.recorded(1), 20)
    assert fed.calls() == ["site-1 train 1"] * 2
    told = [line["value"] for line in fed.log.lines[JOB] if line["tag"] == "outbox"]
    assert len(told) == 1
    assert "is damaged" in told[0]


# -- servers that come and go ------------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(roster, "_FIRST", (0.0, 0.0))
    monkeypatch.setattr(roster, "_ALONE", (0.05, 0.1))
    monkeypatch.setattr(roster, "_USUAL", (0.05, 0.1))


async def test_a_server_that_was_added_is_dialled_without_a_restart(fed, tmp_path, soon):
    """The new one leads after both of the kit's servers are gone."""
    fed.add_job(wait=True)
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(fed.calls, 20)
    (tmp_path / "more").mkdir()
    more = make_kits(tmp_path / "more", servers=3, sites=1, base_port=free_base_port(), authority=fed.authority)
    three = FakeFleet(fed.log, more["server3"])
    three.cluster = fed.kit.cluster
    await three.start()
    try:
        fed.views = [view(fed.two), view(three)]
        await fed.one.stop()
        await fed.two.stop()
        await three.lead(2)
        await eventually(lambda: fed.agent.links.view.leader == "server3")
        fed.go(1)
        await eventually(fed.recorded(1))
        assert fed.calls() == ["site-1 train 1"], "nothing was aborted"
        await eventually(lambda: set(fed.agent.links.dialled) == {"server2", "server3"})
        await fed.stop_agent()
        fed.views = None  # no overseer answers the next agent
        await fed.start_agent()
        await eventually(lambda: fed.agent.links.view.leader == "server3")
    finally:
        await fed.stop_agent()
        await three.stop()


async def test_whoever_leads_is_not_dropped_whatever_an_overseer_says(fed, soon):
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(lambda: fed.agent.links.view.leader == "server1")
    fed.views = [view(fed.two)]
    asked = fed.asked
    await eventually(lambda: fed.asked > asked + 2)
    assert read_state(fed.kit.run)["primary"] == "server1"
    await fed.two.lead(2)
    await eventually(lambda: fed.agent.links.dialled == ["server2"], what="it does not lead any more")
    assert read_state(fed.kit.run)["primary"] == "server2"


async def test_overseers_that_do_not_answer_cost_nothing(fed, soon):
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(lambda: fed.agent.links.view.leader == "server1")
    assert set(fed.agent.links.dialled) == {"server1", "server2"}
