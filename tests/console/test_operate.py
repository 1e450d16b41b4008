"""Operators' commands over a fake session: what is asked, what is refused before anything is sent, what is answered."""

import json
from dataclasses import replace

import pytest

from fedhelm.admin.models import Shutdown, System, Told
from fedhelm.errors import NotFound, Refused, Unreachable
from fedhelm_console.batch import run_line
from fedhelm_console.commands import REGISTRY
from fedhelm_console.context import Console
from fedhelm_console.render import Style
from tests.fakes.admin_session import JOBS, FakeSession


@pytest.fixture
def session(tmp_path):
    return FakeSession(tmp_path)


@pytest.fixture
def run(session, capsys):
    console = Console(session, REGISTRY, Style(80), [].append, session.kit.transfer)

    def call(line, fmt="json", **changes):
        outcome = run_line(replace(console, **changes), line, fmt)
        out = capsys.readouterr().out
        return (outcome.status, json.loads(out)) if fmt == "json" else (outcome.status, out)

    return call


def sent(session, *verbs):
    return [(verb, what) for verb, what, _ in session.asked if verb in verbs]


def error(answer):
    status, body = answer
    return status, body["error"]["code"], body["error"]["message"]


WRITES = (
    "promote",
    "pause_failover",
    "resume_failover",
    "remove_server",
    "operate_sites",
    "restart_primary",
    "shutdown_system",
    "delete_job",
    "revoke_certificates",
)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("promote_sp server2", "--yes"),
        ("pause_failover", "--yes"),
        ("resume_failover", "--yes"),
        ("remove_sp server2", "--yes"),
        ("restart client site-1", "--yes"),
        ("delete_job k7m3aaaa", "--yes"),
        ("shutdown_system", "--confirm poc"),
        ("shutdown_system --yes", "--confirm poc"),
    ],
)
def test_without_a_terminal_and_agreement_nothing_is_sent(run, session, line, hint):
    status, body = run(line)
    assert (status, body["error"]["code"], body["error"]["hint"]) == (2, "REFUSED", hint)
    assert session.asked == []


def test_explain(run, session):
    assert run("explain server2")[1]["data"] == {
        "name": "server2",
        "candidate": False,
        "verdict": "server2 cannot be granted the lease: it is 12 records behind.",
        "checks": [
            {"name": "heard", "ok": True, "text": "heard 0.2 s ago"},
            {
                "name": "log",
                "ok": False,
                "text": "epoch 1, slot 29, 12 records behind: promote_sp would be refused until it has read them",
            },
            {"name": "hold_down", "ok": True, "text": "not held down"},
        ],
        "next": "server3",
    }
    session.raises["explain"] = NotFound("the project has no server server9")
    assert run("explain server9")[0] == 1


def test_promote_shows_the_topology_before_and_after(run):
    data = run("promote_sp server2", yes=True)[1]["data"]
    assert (data["name"], data["epoch"]) == ("server2", 2)
    standing = {"server1": "ACTIVE", "server2": "STANDBY"}
    before = [{"name": name, "state": state} for name, state in standing.items()]
    after = [{"name": "server1", "state": "STANDBY"}, {"name": "server2", "state": "ACTIVE"}]
    assert data["before"] == {"primary": "server1", "epoch": 1, "servers": before, "jobs": 1}
    assert data["after"] == {"primary": "server2", "epoch": 2, "servers": after, "jobs": 1}


def test_promote_as_a_person_reads_it(run):
    assert run("promote_sp server2", "table", yes=True)[1].splitlines() == [
        "before  server1 primary, epoch 1 · server2 ○ STANDBY · 1 job running",
        "after   server2 primary, epoch 2 · server1 ○ STANDBY · 1 job running",
    ]


def test_pause_and_resume(run, session):
    assert run('pause_failover --reason "new switch"', yes=True)[1]["data"] == {"paused": True}
    assert error(run("pause_failover", yes=True)) == (2, "REFUSED", "failover is paused already by admin@nvidia.com")
    status, text = run("list_sp", "table")
    assert status == 0
    assert text.splitlines()[-1] == "failover is paused by admin@nvidia.com: new switch; resume_failover ends that"
    assert run("resume_failover", yes=True)[1]["data"] == {"paused": False}
    assert error(run("resume_failover", yes=True)) == (2, "REFUSED", "failover is not paused")
    assert sent(session, *WRITES) == [("pause_failover", ("new switch",)), ("resume_failover", ())]


def test_pause_is_confirmed_with_the_projects_name(run, session):
    asked = []
    assert run("pause_failover", ask=lambda question: asked.append(question) or "y\n")[0] == 2
    assert asked[0].endswith("Type poc to go on: ")
    assert run("pause_failover", ask=lambda _: "poc\n")[0] == 0


def test_list_sp_of_an_overseer_that_does_not_know_pauses(run, session):
    session.raises["system"] = NotFound("no such route")
    assert run("list_sp", "table")[0] == 0


def test_remove_is_for_servers_that_are_down(run, session):
    assert error(run("remove_sp server2", yes=True))[2] == "server2 is STANDBY: only a server that is down is removed"
    assert error(run("remove_sp server9", yes=True)) == (
        1,
        "NOT_FOUND",
        "no server server9; there are server1, server2",
    )
    session.states["server2"] = "DOWN"
    assert run('remove_sp server2 --reason "sold"', yes=True)[1]["data"] == {"removed": "server2"}
    assert sent(session, *WRITES) == [("remove_server", ("server2", "sold"))]


def test_restart_of_sites(run, session):
    asked = []
    answer = run("restart client site-1 site-2", ask=lambda question: asked.append(question) or "y\n")
    assert answer[1]["data"] == {"told": ["site-1", "site-2"], "missed": [], "refused": {}}
    assert asked == ["Restart site-1, site-2; 1 of them in a job, whose open task runs again? [y/N] "]
    session.missed = ("site-2",)
    status, body = run("restart client @ALL", yes=True)
    assert (status, body["data"]) == (1, {"told": ["site-1"], "missed": ["site-2"], "refused": {}})
    assert error(run("restart client site-9", yes=True))[1] == "NOT_FOUND"
    assert sent(session, *WRITES) == 2 * [("operate_sites", ("restart", ("site-1", "site-2"), ""))]


def test_a_site_that_refuses_says_why(run, session):
    why = "site site-2, org_admin olga@a.org: operate needs o:site"
    session.refused = {"site-2": why, "site-1": "the disk is full"}
    status, body = run("restart client @ALL", yes=True)
    assert (status, body["data"]) == (1, {"told": [], "missed": [], "refused": session.refused})
    assert run("restart client @ALL", "table", yes=True)[1].splitlines() == [
        "told to restart: nobody",
        f"refused: {why}",
        "refused: site-1: the disk is full",
    ]
    session.ended = Shutdown((), ("site-2",), ("server1",), (), {"site-2": why})
    status, text = run("shutdown_system --confirm poc", "table")
    assert (status, text.splitlines()[1:3]) == (1, ["not told, or still there: site-2", f"refused: {why}"])


def test_restart_of_the_primary(run, session):
    asked = []
    answer = run("restart server server1 --reason lib", ask=lambda question: asked.append(question) or "y\n")
    assert answer[1]["data"] == {"name": "server2", "epoch": 2}
    assert asked == ["Restart server1, primary of epoch 1: server2 takes over. [y/N] "]
    assert sent(session, *WRITES) == [("restart_primary", ("lib",))]


def test_the_primary_is_not_restarted_while_nobody_may_take_over(run, session):
    run("pause_failover", yes=True)
    assert error(run("restart server server1", yes=True))[1:] == (
        "REFUSED",
        "failover is paused: nobody would take over from server1",
    )
    assert "restart_primary" not in [name for name, _ in sent(session, *WRITES)]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("restart server server2", "REFUSED"),
        ("restart server server9", "NOT_FOUND"),
        ("restart server server1 server2", "USAGE"),
        ("restart server @ALL", "USAGE"),
        ("restart server", "USAGE"),
        ("restart overseer overseer", "USAGE"),
    ],
)
def test_what_cannot_be_restarted_is_refused_before_anything_is_sent(run, session, line, code):
    assert error(run(line, yes=True))[1] == code
    assert sent(session, *WRITES) == []


def test_shutdown_with_the_projects_name_in_a_script(run, session):
    status, body = run('shutdown_system --reason "the move" --confirm poc')
    assert status == 0
    assert body["data"] == {
        "sites": ["site-1"],
        "sites_left": [],
        "servers": ["server1", "server2"],
        "servers_left": [],
        "sites_refused": {},
        "complete": True,
    }
    assert error(run("shutdown_system --confirm other"))[1:] == (
        "REFUSED",
        "this project is poc, not other; nothing was done",
    )
    assert sent(session, *WRITES) == [("shutdown_system", ("the move",))]
    assert run("shutdown_system", confirmed="poc")[0] == 0
    assert error(run("list_sp --confirm poc"))[1] == "USAGE"


def test_a_shutdown_that_left_something_fails_and_names_it(run, session):
    session.ended = Shutdown(("site-1",), ("site-2",), ("server2",), ("server1",))
    status, text = run("shutdown_system --confirm poc", "table")
    assert status == 1
    assert text.splitlines() == [
        "gone: site-1, server2",
        "not told, or still there: site-2",
        "still there: server1",
        "see their logs",
    ]


def test_shutdown_while_nobody_leads_asks_the_servers_alone(run, session):
    session.leader = None
    asked = []
    run("shutdown_system", ask=lambda question: asked.append(question) or "poc 2\n")
    assert asked == ["Shut down server1, server2.\nType poc 2 to go on: "]
    assert "check_status" not in session.verbs()


def test_delete_wants_the_jobs_name_and_an_end(run, session):
    assert error(run("delete_job k7m3tq", yes=True))[2] == (
        "k7m3tq4w2zpx is RUNNING: only a job that has ended is deleted"
    )
    assert error(run("delete_job k7m3aaaa k7m3tq", yes=True))[1] == "REFUSED"
    assert sent(session, *WRITES) == []
    asked = []
    answer = run("delete_job k7m3aaaa", ask=lambda question: asked.append(question) or "hello-numpy\n")
    assert answer[1]["data"] == [{"job_id": JOBS[1].job_id}]
    assert asked[0].endswith("Type hello-numpy to go on: ")
    run("delete_job k7m3aaaa k6aa k7m3aaaaaaaa", ask=lambda question: asked.append(question) or "2\n")
    assert asked[1].endswith("Type 2 to go on: ")
    assert [what for _, what in sent(session, *WRITES)] == [(JOBS[1].job_id,), (JOBS[1].job_id,), (JOBS[2].job_id,)]


def test_the_time_out_reaches_every_write(run, session):
    session.states["server2"] = "DOWN"
    lines = ["pause_failover", "resume_failover", "remove_sp server2", "restart client site-1", "delete_job k6aa"]
    for line in [*lines, "restart server server1", "shutdown_system --confirm poc"]:
        run(f"{line} --timeout 7", yes=True)
    assert [limits for verb, _, limits in session.asked if verb in WRITES] == 7 * [{"timeout": 7.0}]


def test_unreachable_overseers_are_an_error_of_their_own(run, session):
    session.raises["explain"] = Unreachable("no overseer answers")
    assert error(run("explain server1")) == (3, "UNREACHABLE", "no overseer answers")


def test_a_system_that_is_down_is_said_in_list_sp(run, session):
    session.standing = System(down=True)
    assert "the system is down" in run("list_sp", "table")[1]


@pytest.fixture
def signed(session):
    """The signed list, in the admin's folder of transfers."""
    session.kit.transfer.mkdir()
    path = session.kit.transfer / "revoked.json"
    path.write_bytes(b"signed")
    return path


def test_the_list_of_revoked_certificates_goes_to_the_overseers(run, session, signed):
    status, text = run("revoke_certificates revoked.json", "table", yes=True)
    assert (status, text.splitlines()) == (
        0,
        ["version 3, 2 certificates of site site-2, server server9", "overseer: in force"],
    )
    assert sent(session, *WRITES) == [("revoke_certificates", (b"signed",))]
    data = run(f"revoke_certificates {signed}", yes=True)[1]["data"]
    assert data == {
        "version": 3,
        "certificates": 2,
        "overseers": [{"name": "overseer", "taken": True, "error": None}],
    }


def test_an_overseer_that_does_not_answer_is_named_and_the_others_have_the_list(run, session, signed):
    away = Told("overseer2", error=Unreachable("no answer in time", hint="see its log.txt"))
    session.overseers = (Told("overseer"), away)
    status, text = run(f"revoke_certificates {signed}", "table", yes=True)
    assert (status, text.splitlines()[1:]) == (
        1,
        ["overseer: had it already", "overseer2: no answer in time", "  hint: see its log.txt"],
    )


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (None, "No such file or directory"),
        (b"forged", "was not signed by this project's root"),
        (b"x" * (4 * 1024 * 1024 + 1), "larger than 4 MiB"),
    ],
)
def test_what_is_no_such_list_is_not_sent(run, session, tmp_path, write, said):
    path = tmp_path / "a.json"
    if write is not None:
        path.write_bytes(write)
    status, code, message = error(run(f"revoke_certificates {path}", yes=True))
    assert (status, code) == (2, "BAD_INPUT")
    assert message.startswith(str(path))
    assert said in message
    assert session.asked == []


def test_what_the_overseers_refuse_is_the_error(run, session, signed):
    session.raises["revoke_certificates"] = Refused("version 4 of the list of revoked certificates is in force")
    assert error(run(f"revoke_certificates {signed}", yes=True))[1] == "REFUSED"


def test_who_takes_back_their_own_certificate_is_told(run, session, signed):
    asked = []
    session.own = True
    run(f"revoke_certificates {signed}", ask=lambda question: asked.append(question) or "n")
    (question,) = asked
    assert question == (
        "Hand over the list of revoked certificates: version 3, 2 certificates of site site-2, server server9. "
        "You are among them. [y/N] "
    )
    assert sent(session, *WRITES) == []
