"""What a site says has the last word at it: no code of others, or not from this person. The console is told why."""

from __future__ import annotations

import json

import pytest

from fedhelm.errors import BadInput, NotAuthorised
from tests.support.jobs import make_job
from tests.support.organisations import Organisations
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("organisations")]

LEA, LARS, ANNA, ROOT = "lea@alpha.org", "lars@alpha.org", "anna@alpha.org", "root@alpha.org"
OWN_POLICY = """\
{
  // Of the leads, only one is trusted here.
  "format_version": "1.0",
  "permissions": {"project_admin": "any", "lead": {"submit_job": "n:lars@alpha.org", "byoc": "any"}}
}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = Organisations(tmp_path_factory.mktemp("organisations"), closed=("site-b",))
    try:
        made.start(played=())
        policy = made.kits["site-a"].local / "authorization.json"
        policy.write_text(OWN_POLICY.replace("n:lars", "nobody:lars"))
        with pytest.raises(BadInput, match=r"local/authorization\.json:4:\d+: permissions\.lead\.submit_job: unknown"):
            made.launch("site-a")
        policy.write_text(OWN_POLICY)
        made.launch("site-a", "site-b")
        yield made
    finally:
        made.close()


SCRIPT = """
    import pathlib
    import numpy as np
    import fedhelm.script as fl

    with fl.connect() as site:
        for task in site.tasks():
            (pathlib.Path(site.options["folder"]) / f"ran-at-{site.name}").touch()
            task.submit({"w": np.ones(3, np.float32)}, weight=1)
"""


def job(world, name, *sites):
    """A job folder, and where its script leaves a file for each site that it ran at."""
    folder = world.folder / name
    yaml = f"""
        name: {name}
        deploy: {{app: [{", ".join(sites)}]}}
        options: {{folder: "{folder}-files"}}
        workflow: [{{type: fedavg, rounds: 1}}]
    """
    return make_job(folder, SCRIPT, yaml=yaml)


def ran(files):
    return {path.name.removeprefix("ran-at-") for path in files.iterdir()}


def outcome(world, who, folder):
    """How the job ended, and why, as its submitter is told; or why it was not taken at all."""
    session = world.session(who)
    try:
        done = session.wait(session.submit(folder, timeout=60).job_id, timeout=60)
    except NotAuthorised as error:
        return "NOT_AUTHORISED", error.message
    return done.status, done.reason


def test_a_site_that_takes_no_code_of_others_gets_none_and_says_so(world):
    folder, files = job(world, "closed", "site-a", "site-b")
    status, reason = outcome(world, LARS, folder)
    assert status in ("NOT_AUTHORISED", "FINISHED:FAILED"), world.tails()
    assert "site site-b takes no job that brings its own code" in reason
    assert "site-b" not in ran(files)


def test_a_site_takes_jobs_of_those_whom_its_own_policy_names(world):
    folder, files = job(world, "hers", "site-a")
    status, reason = outcome(world, LEA, folder)
    assert status == "FINISHED:FAILED", world.tails()
    assert f"site-a, lead {LEA}: submit_job needs n:{LARS} (local/authorization.json)" in reason
    assert ran(files) == set()
    folder, files = job(world, "his", "site-a")
    status, reason = outcome(world, LARS, folder)
    assert (status, reason) == ("FINISHED:COMPLETED", ""), world.tails()
    assert ran(files) == {"site-a"}


def test_a_site_obeys_whom_its_own_policy_lets_operate_it(world):
    told = world.session(ANNA).operate_sites("restart", ("site-a",), reason="new driver")  # an org_admin of its own
    assert told.told == ()
    assert told.refused["site-a"].startswith(f"site site-a, org_admin {ANNA}: "), told.refused
    assert world.session(ROOT).operate_sites("restart", ("site-a",)).told == ("site-a",)

    def orders():
        lines = [json.loads(line) for line in (world.kits["site-a"].root / "audit.jsonl").read_text().splitlines()]
        return [(one["outcome"], (one["by"] or {}).get("name")) for one in lines if one["action"] == "site.restart"]

    eventually_sync(lambda: orders() == [("denied", ANNA), ("allowed", ROOT)], 20, world.tails())
