"""Commands without a terminal: one JSON object each, exit statuses, confirmations, nothing sent when refused."""

import json
import signal
from dataclasses import replace

import pytest

from fedhelm.admin.models import Job
from fedhelm.errors import DeadlineExceeded, NotAuthorised, Unreachable
from fedhelm_console.batch import run_line, run_lines
from fedhelm_console.commands import REGISTRY
from fedhelm_console.context import Console
from fedhelm_console.render import Style
from tests.fakes.admin_session import JOBS, FakeSession


@pytest.fixture
def session(tmp_path):
    return FakeSession(tmp_path)


@pytest.fixture
def console(session, talk):
    return Console(session, REGISTRY, Style(80), talk.append, session.kit.transfer)


@pytest.fixture
def talk():
    return []


@pytest.fixture
def run(console, capsys):
    def call(line, **changes):
        outcome = run_line(replace(console, **changes), line, "json")
        out = capsys.readouterr()
        assert out.err == ""
        lines = out.out.splitlines()
        assert len(lines) == 1, out.out
        body = json.loads(lines[0])
        assert body["schema_version"] == 1
        assert set(body) == {"schema_version", "status", "data", "error"}
        assert (body["error"] is None) == (body["status"] == "ok")
        return outcome.status, body

    return call


def test_submit(run, session, tmp_path, monkeypatch):
    (tmp_path / "transfer" / "hello").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert run("submit_job hello") == (0, ok({"job_id": "k7m3zzzzzzzz"}))
    assert session.asked[-1] == ("submit", (tmp_path / "transfer" / "hello",), {"timeout": 60.0})
    (tmp_path / "hello").mkdir()
    run("submit hello/")
    assert session.asked[-1][1] == (tmp_path / "hello",)


def ok(data):
    return {"schema_version": 1, "status": "ok", "data": data, "error": None}


def test_submit_of_a_folder_that_does_not_exist_sends_nothing(run, session, tmp_path):
    status, body = run("submit_job nope")
    assert status == 2
    assert body["error"]["code"] == "BAD_INPUT"
    assert "nope" in body["error"]["message"]
    (tmp_path / "file").write_text("")
    assert run(f"submit_job {tmp_path}/file")[1]["error"]["message"].endswith("is not a folder")
    assert session.asked == []


def test_list_jobs(run):
    status, body = run("list_jobs")
    assert status == 0
    assert body["data"][0] == {
        "job_id": "k7m3tq4w2zpx",
        "name": "hello-pt-tb",
        "status": "RUNNING",
        "submit_time": "2026-11-22T12:03:41.120Z",
        "duration_s": 14.23,
    }
    assert [job["job_id"][:4] for job in body["data"]] == ["k7m3", "k7m3", "k6aa"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("ls k7m3", ["hello-pt-tb", "hello-numpy"]),
        ("ls -n hello-n", ["hello-numpy"]),
        ("ls -u", ["hello-pt-tb", "hello-numpy"]),
        ("ls -r", ["broken", "hello-numpy", "hello-pt-tb"]),
        ("ls -m 1", ["hello-pt-tb"]),
        ("ls --status FINISHED", ["hello-numpy", "broken"]),
        ("ls --status FAILED -u", []),
        ("ls -m 1 --all", ["hello-pt-tb", "hello-numpy", "broken"]),
    ],
)
def test_list_jobs_options(run, line, names):
    assert [job["name"] for job in run(line)[1]["data"]] == names


def test_a_list_that_was_cut_says_so(run, session, talk):
    session.found = [Job(f"k7m3aaaaaa{a}{b}", "n", "RUNNING", "", 0.0) for a in "abcde" for b in "abcde"]
    assert len(run("ls")[1]["data"]) == 20
    assert talk == ["the newest 20 are shown; --all for the rest"]


def test_show_job(run, session):
    session.traceback, session.reason = "Traceback\n", "site-1: boom"
    data = run("show_job k6aa")[1]["data"]
    assert set(data) >= {"job_id", "name", "status", "submit_time", "duration_s", "round", "rounds", "sites", "reason"}
    assert (data["round"], data["rounds"], data["reason"]) == (2, 5, "site-1: boom")
    assert data["sites"] == [{"name": "site-1", "status": "DONE"}, {"name": "site-2", "status": "TRAINING"}]
    assert data["traceback"] == "Traceback\n"
    session.traceback = session.reason = ""
    data = run("show_job k6aa")[1]["data"]
    assert data["reason"] is None
    assert data["traceback"] is None


def test_wait_has_the_jobs_exit_status_and_its_data(run, session):
    assert run("wait k7m3aaaa") == (0, ok({"job_id": "k7m3aaaaaaaa", "status": "FINISHED:COMPLETED"}))
    assert run("wait k6aa") == (1, ok({"job_id": "k6aaaaaaaaaa", "status": "FINISHED:FAILED"}))
    assert session.asked[-1][2] == {"timeout": None}
    run("wait k6aa --timeout 5")
    assert session.asked[-1][2] == {"timeout": 5.0}


def test_download(run, tmp_path, session, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("download_job k7m3aaaa")[1]["data"] == {"path": str(tmp_path / "transfer" / "k7m3aaaaaaaa")}
    assert run("dl k7m3aaaa there")[1]["data"] == {"path": str(tmp_path / "there" / "k7m3aaaaaaaa")}
    assert session.asked[-1][2] == {"timeout": None}


def test_the_overseers_answers(run, session):
    assert run("get_active_sp")[1]["data"] == {
        "name": "server1",
        "epoch": 1,
        "fed_learn_port": 8002,
        "admin_port": 8003,
    }
    session.notes["server2"] = "not preferred"
    assert run("list_sp")[1]["data"] == [
        {
            "name": "server1",
            "state": "ACTIVE",
            "epoch": 1,
            "candidate": False,
            "lag": 0,
            "beat_age_s": 0.2,
            "note": None,
            "software": "",
        },
        {
            "name": "server2",
            "state": "STANDBY",
            "epoch": None,
            "candidate": True,
            "lag": 0,
            "beat_age_s": 0.2,
            "note": "not preferred",
            "software": "",
        },
    ]
    last = run("history")[1]["data"][1]
    assert (last["gap_s"], last["jobs"], last["by"]) == (0.412, 2, None)
    session.leader = None
    status, body = run("get_active_sp")
    assert (status, body["error"]["code"]) == (3, "NO_PRIMARY")
    session.raises["servers"] = Unreachable("no overseer answers")
    status, body = run("list_sp")
    assert (status, body["error"]["code"]) == (3, "UNREACHABLE")


def test_check_status(run):
    data = run("check_status")[1]["data"]
    assert data["server"]["name"] == "server1"
    assert data["server"]["checkpoint"] == 40
    assert data["server"]["low_water"] == 12
    assert data["server"]["warnings"] == ["the store has 4.9 GiB free, new jobs are refused below 1.0 GiB"]
    assert [site["name"] for site in data["sites"]] == ["site-1", "site-2"]
    assert run("status client site-2")[1]["data"] == [{"name": "site-2", "connected": False, "jobs": []}]
    assert run("status client nobody")[0] == 1


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DeadlineExceeded("late"), 5, "TIMEOUT"),
        (NotAuthorised("no"), 4, "NOT_AUTHORISED"),
        (Unreachable("nobody"), 3, "UNREACHABLE"),
        (ValueError("a mistake"), 1, "INTERNAL"),
        (KeyboardInterrupt(), 130, "INTERRUPTED"),
    ],
)
def test_errors_are_one_object_and_a_status(run, session, error, status, code):
    session.raises["jobs"] = error
    got, body = run("list_jobs")
    assert (got, body["error"]["code"], body["data"]) == (status, code, None)
    assert set(body["error"]) == {"code", "message", "hint"}


def test_usage_errors_are_one_object(run):
    status, body = run("lst_jobs")
    assert (status, body["error"]["code"], body["error"]["hint"]) == (2, "UNKNOWN_COMMAND", "did you mean list_jobs?")
    assert run("show_job")[0] == 2
    assert run("show_job 'x")[0] == 2


@pytest.mark.parametrize("name", ["audit", "authz", "pki"])
def test_who_looks_for_a_command_of_kits_is_told_where_it_is(run, name):
    status, body = run(f"{name} verify x")
    assert (status, body["error"]["code"]) == (2, "UNKNOWN_COMMAND")
    assert body["error"]["hint"] == f"outside of it: fedhelm {name} -h"


def test_job_not_found(run):
    status, body = run("show_job zzzz")
    assert (status, body["error"]["code"]) == (1, "JOB_NOT_FOUND")


@pytest.mark.parametrize("line", ["abort_job k7m3", "promote_sp server2"])
def test_dangerous_commands_without_a_terminal_are_refused_and_send_nothing(run, session, line):
    status, body = run(line)
    assert (status, body["error"]["code"], body["error"]["hint"]) == (2, "REFUSED", "--yes")
    assert session.asked == []


def test_yes_inside_or_outside_the_command(run, session):
    assert run("abort_job k7m3tq --yes --reason 'wrong data'")[1]["data"]["status"] == "FINISHED:ABORTED"
    assert session.asked[-1] == ("abort", ("k7m3tq4w2zpx", "wrong data"), {"timeout": 60.0})
    assert run("promote_sp server2", yes=True)[1]["data"]["name"] == "server2"


def test_abort_asks_with_the_resolved_job(run, session):
    questions = []

    def ask(question):
        questions.append(question)
        return "n\n"

    status, body = run("abort_job k7m3tq", ask=ask)
    assert (status, body["error"]["code"]) == (2, "REFUSED")
    assert questions == ["Abort k7m3tq4w2zpx hello-pt-tb (RUNNING)? [y/N] "]
    assert "abort" not in session.verbs()
    assert run("abort_job k7m3tq", ask=lambda _: "Y\n")[0] == 0


def test_promote_wants_the_servers_name(run, session):
    assert run("promote_sp server2", ask=lambda _: "y\n")[0] == 2
    assert "promote" not in session.verbs()
    asked = []
    assert run("promote_sp server2", ask=lambda question: asked.append(question) or "server2\n")[0] == 0
    assert asked[0].splitlines() == [
        "before  server1 primary, epoch 1 · server2 ○ STANDBY · 1 job running",
        "Switch over to server2?",
        "Type server2 to go on: ",
    ]
    status, body = run("promote_sp server9", yes=True)
    assert (status, body["error"]["code"]) == (1, "NOT_FOUND")


@pytest.mark.parametrize(
    ("server", "states", "leader", "told"),
    [
        ("server1", {}, "server1", (2, "REFUSED", "server1 leads already, epoch 1")),
        ("server2", {"server2": "DOWN"}, "server1", (2, "REFUSED", "server2 cannot take over: it is DOWN")),
        ("server2", {}, None, (3, "NO_PRIMARY", "nobody leads at the moment")),
        ("server9", {}, "server1", (1, "NOT_FOUND", "no server server9; there are server1, server2")),
    ],
)
def test_what_cannot_be_promoted_is_refused_before_anybody_is_asked(run, session, server, states, leader, told):
    session.states, session.leader = states, leader
    asked = []
    status, body = run(f"promote_sp {server}", ask=lambda question: asked.append(question) or server)
    assert (status, body["error"]["code"], body["error"]["message"]) == told
    assert asked == []
    assert "promote" not in session.verbs()


@pytest.mark.parametrize(
    ("line", "verb"), [("get_active_sp", "primary"), ("list_sp", "servers"), ("history", "history")]
)
def test_what_the_overseer_answers_honours_the_timeout(run, session, line, verb):
    run(f"{line} --timeout 1.5")
    run(line)
    assert [limits for found, _, limits in session.asked if found == verb] == [{"timeout": 1.5}, {"timeout": None}]


def test_abort_of_several_asks_once_and_answers_with_a_list(run, session):
    assert [one["job_id"][:4] for one in run("abort_job k7m3tq k6aa", yes=True)[1]["data"]] == ["k7m3", "k6aa"]


def test_last_is_the_job_submitted_here_or_the_newest(run, session, tmp_path):
    assert run("show_job @last")[1]["data"]["job_id"] == JOBS[0].job_id
    (tmp_path / "transfer" / "hello").mkdir(parents=True)
    run("submit_job hello")
    run("show_job @last")
    assert session.asked[-1][1] == ("k7m3zzzzzzzz",)


def test_running_and_failed_are_the_only_one_there_is(run, session):
    assert run("show_job @running")[1]["data"]["job_id"] == "k7m3tq4w2zpx"
    assert run("show_job @failed")[1]["data"]["job_id"] == "k6aaaaaaaaaa"
    session.found = [replace(JOBS[2], job_id=f"k6aaaaaaaaa{k}") for k in "abcd"]
    status, body = run("show_job @failed")
    assert (status, body["error"]["code"]) == (2, "AMBIGUOUS")
    assert body["error"]["message"] == "4 jobs have failed: k6aaaaaaaaaa, k6aaaaaaaaab, k6aaaaaaaaac, ..."
    status, body = run("abort_job @running", yes=True)
    assert (status, body["error"]["code"], body["error"]["message"]) == (1, "JOB_NOT_FOUND", "no job is running")


def test_a_reference_that_does_not_exist_names_those_that_do(run, session):
    status, body = run("show_job @la")
    assert (status, body["error"]["code"]) == (1, "JOB_NOT_FOUND")
    assert body["error"]["message"] == "there is no reference @la: @last, @running and @failed exist"
    assert body["error"]["hint"] == "did you mean @last?"
    assert session.asked == []


def test_events(run, session, console, capsys):
    data = run("events 2 --timeout 3")[1]["data"]
    assert session.asked[-1] == ("recent_events", (2,), {"timeout": 3.0})
    assert [(one["id"], one["kind"]) for one in data] == [(5, "failover"), (6, "member_up")]
    assert data[0]["data"]["gap_s"] == 0.309
    assert run("events 1001")[0] == 2
    run_line(console, "events", "table")
    assert "failover server1 -> server2" in capsys.readouterr().out


def test_clear_does_nothing_off_a_terminal(run, console, capsys):
    assert run("clear") == (0, ok(None))
    cleared = []
    run_line(replace(console, clear=lambda: cleared.append(True)), "clear", "table")
    assert cleared == [True]
    assert capsys.readouterr() == ("", "")


def test_progress_is_for_people_alone(console, session, tmp_path, capsys):
    (tmp_path / "transfer" / "hello").mkdir(parents=True)
    shown, order = [], []
    watched = replace(console, live=shown.append, progress=lambda *bytes_: order.append(bytes_))
    watched = replace(watched, settle=lambda: order.append("settled"))
    run_line(watched, "wait k7m3tq", "table")
    assert shown == ["round 2 of 5  site-1 ✓ DONE, site-2 ▶ TRAINING  accuracy 0.9512, loss 0.2"]
    run_line(watched, "wait k7m3tq -o json", "table")
    run_line(watched, "wait k7m3tq", "json")
    assert len(shown) == 1
    order.clear()
    run_line(watched, "submit_job hello", "table")
    assert order == [(512, 2048), "settled"]
    assert capsys.readouterr().out.endswith("Submitted job: k7m3zzzzzzzz\n")


def test_last_without_any_job(run, session):
    session.found = []
    assert run("show_job @last")[1]["error"]["code"] == "JOB_NOT_FOUND"


def test_the_timeout_inside_wins(run, session):
    run("list_jobs", timeout=7.0)
    assert session.asked[-1][2] == {"timeout": 7.0}
    run("list_jobs --timeout 2", timeout=7.0)
    assert session.asked[-1][2] == {"timeout": 2.0}


def test_the_format_inside_wins(console, capsys):
    run_line(console, "list_sp -o json", "table")
    assert json.loads(capsys.readouterr().out)["status"] == "ok"
    run_line(console, "list_sp -o table", "json")
    assert capsys.readouterr().out.startswith("SERVER")
    run_line(console, "nonsense -o json", "table")
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "UNKNOWN_COMMAND"


def test_people_get_data_on_stdout_and_errors_on_stderr(console, capsys):
    run_line(console, "get_active_sp", "table")
    assert capsys.readouterr() == ("server1:8002:8003 epoch 1\n", "")
    run_line(console, "show_job zzzz", "table")
    assert capsys.readouterr() == ("", "error[JOB_NOT_FOUND]: no job matches zzzz (hint: list_jobs)\n")


def test_lines_stop_at_the_first_failure(console, capsys):
    lines = ["", "# comment", "list_sp", "nonsense", "list_sp"]
    assert run_lines(console, lines, "json") == 2
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert run_lines(console, lines, "json", keep_going=True) == 2
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_bye_ends_the_lines(console, session, capsys):
    assert run_lines(console, ["bye", "list_sp"], "json") == 0
    assert session.asked == []
    assert json.loads(capsys.readouterr().out)["data"] is None


def test_ctrl_c_ends_the_lines_even_with_keep_going(console, session, capsys):
    session.raises["servers"] = KeyboardInterrupt()
    assert run_lines(console, ["list_sp", "list_jobs"], "json", keep_going=True) == 130
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_real_signal_in_the_middle_is_one_object(console, session, capsys):
    session.jobs = lambda **_: signal.raise_signal(signal.SIGINT)
    assert run_line(console, "list_jobs", "json").status == 130
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "INTERRUPTED"


def test_at_the_prompt_ctrl_c_detaches(console, session, capsys):
    session.raises["wait"] = KeyboardInterrupt()
    session.raises["download"] = KeyboardInterrupt()
    at_prompt = replace(console, interactive=True)
    assert run_line(at_prompt, "wait k7m3tq", "table").status == 130
    assert capsys.readouterr().out == "detached; the job continues: wait k7m3tq\n"
    assert run_line(at_prompt, "dl k7m3tq", "table").status == 130
    assert "what arrived is kept" in capsys.readouterr().out


def test_help(run, console, capsys):
    assert run("help")[1]["data"][0]["name"] == "submit_job"
    assert run("? wait")[1]["data"]["usage"] == "wait JOB"
    assert run("help wat")[1]["error"]["code"] == "UNKNOWN_COMMAND"
    run_line(console, "?", "table")
    assert "submit_job" in capsys.readouterr().out
