"""Servers that are added, replaced and removed while a job runs; nobody else gets a new kit."""

from __future__ import annotations

import shutil

import pytest

from fedhelm.provision.kits import write_kit
from fedhelm.provision.project import Participant
from fedhelm_lab.growth import authority_of, project_of
from fedhelm_lab.workspace import Workspace
from tests.support.federation import Federation
from tests.support.jobs import calls, make_job
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes]


def states(federation):
    return {one["name"]: one["state"] for one in federation.console("list_sp").data}


def test_a_server_is_added_leads_is_replaced_on_other_ports_and_the_first_one_is_removed(tmp_path):
    federation = Federation(tmp_path, servers=2)
    try:
        federation.start()
        folder, shared = make_job(tmp_path / "carried", rounds=6)
        for number in (3, 5):
            (shared / f"hold-site-1-{number}").touch()
        job = federation.submit(folder)
        eventually_sync(lambda: "train 3" in calls(shared, "site-1"), 30, "round 3")

        made = federation.poc("add", "--base-port", str(federation.base_port + 20)).data
        assert (made["name"], made["ports"][0]) == ("server3", federation.base_port + 20)
        federation.servers.append("server3")
        federation.start_one("server3")
        eventually_sync(lambda: states(federation).get("server3") == "STANDBY", 20, federation.tails())
        promoted = federation.console("promote_sp server3", "--yes")
        assert promoted.rc == 0, promoted.out
        assert federation.leader()["name"] == "server3"
        (shared / "gate-site-1-3").touch()
        # The sites have never heard of it: they learn of it from the overseer.
        eventually_sync(lambda: "train 5" in calls(shared, "site-1"), 60, federation.tails())

        federation.stop_one("server2")
        refused = federation.console("remove_sp server3", "--yes").error
        assert refused["code"] == "REFUSED"
        removed = federation.console("remove_sp server2", "--yes")
        assert removed.rc == 0, removed.out
        assert "server2" not in states(federation)
        federation.script("server2", "start.sh")
        eventually_sync(lambda: "server2 was removed" in federation.log("server2"), 30, federation.tails())
        assert "server2" not in states(federation)

        (shared / "gate-site-1-5").touch()
        assert federation.wait(job) == "FINISHED:COMPLETED"
        assert all(calls(shared, site).count(f"train {n}") == 1 for site in federation.sites for n in range(1, 7))
    finally:
        federation.close()


def test_a_server_is_replaced_by_a_new_kit_of_its_name_on_other_ports(tmp_path):
    federation = Federation(tmp_path, servers=2)
    try:
        federation.start()
        leader = federation.leader()["name"]
        other = next(name for name in federation.servers if name != leader)
        federation.stop_one(other)
        moved = tmp_path / "aside"
        shutil.move(federation.kit(other), moved)
        replacement(federation, other, federation.base_port + 30)
        federation.start_one(other)
        eventually_sync(lambda: states(federation).get(other) == "STANDBY", 20, federation.tails())
        epoch = federation.leader()["epoch"]
        federation.kill(leader)
        found = federation.leader(above=epoch)
        assert (found["name"], found["fed_learn_port"]) == (other, federation.base_port + 30)
        folder, _ = make_job(tmp_path / "after", rounds=2)
        assert federation.wait(federation.submit(folder)) == "FINISHED:COMPLETED"
    finally:
        federation.close()


def replacement(federation, name, port):
    """A kit of this name for another machine, issued with the project's root."""
    workspace = Workspace.open(federation.root)
    known = [workspace.kit(one) for one in ("overseer", *federation.servers, *federation.sites) if one != name]
    new = Participant(name, "server", known[0].org, "127.0.0.1", (port, port + 1))
    authority = authority_of(federation.root / "state", known[0].project)
    write_kit(project_of(tuple(known), new), new, authority, federation.root)
