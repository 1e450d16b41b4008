"""The console as scripts and people meet it: exit statuses, Ctrl-C, files, pipes, and a prompt through a failover."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.fakes.admin_terminal import Terminal
from tests.support.federation import Federation, free_base_port
from tests.support.jobs import calls, make_job
from tests.support.waiting import eventually_sync

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("console")]

# A shell shows 130 for both: Python ends by the signal itself when that met it in the middle of an import.
SIGINT_SEEN = (130, -signal.SIGINT)


@pytest.fixture
def held(standing, tmp_path):
    """A job that runs until its sites' gates are opened, which is at the end of the test."""
    folder, shared = make_job(tmp_path / "held", rounds=1)
    for site in standing.sites:
        (shared / f"hold-{site}-1").touch()
    job = standing.submit(folder)
    eventually_sync(lambda: all(calls(shared, site) for site in standing.sites), 40, standing.tails())
    yield job
    for site in standing.sites:
        (shared / f"gate-{site}-1").touch()
    assert standing.wait(job) == "FINISHED:COMPLETED"


def _kit(federation):
    return str(federation.admin_kit)


def _finish(process, timeout=20):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


# -- exit statuses ----------------------------------------------------------------------------------------------------


def test_each_exit_status(standing, held, tmp_path):
    assert standing.console("list_jobs").rc == 0
    missing = standing.console("show_job zzzzzzzz")
    assert (missing.rc, missing.error["code"]) == (1, "JOB_NOT_FOUND")
    unknown = standing.console("sumbit_job hello-numpy")
    assert (unknown.rc, unknown.error["code"]) == (2, "UNKNOWN_COMMAND")
    assert "submit_job" in unknown.error["message"] + (unknown.error["hint"] or "")
    nobody = Federation(tmp_path / "nobody", sites=1, servers=1)  # prepared, never started
    away = nobody.console("list_jobs")
    assert (away.rc, away.error["code"]) == (3, "UNREACHABLE")
    leads = nobody.console("get_active_sp")
    assert (leads.rc, leads.error["code"]) == (3, "UNREACHABLE")
    stranger = standing.run("console", str(standing.kit("site-1")), "-o", "json", "-c", "list_jobs")
    assert stranger.rc == 4
    late = standing.console(f"wait {held}", "--timeout", "0.5")
    assert (late.rc, late.error["code"]) == (5, "TIMEOUT")


def test_a_person_gets_one_line_on_standard_error(standing):
    answer = standing.run("console", _kit(standing), "-c", "sumbit_job hello-numpy")
    assert (answer.rc, answer.out) == (2, "")
    assert answer.err.startswith("error[UNKNOWN_COMMAND]: ")
    assert "submit_job" in answer.err
    assert len(answer.err.splitlines()) == 1


def test_ctrl_c_while_waiting(standing, held):
    leader = standing.primary()["name"]
    logins = standing.log(leader).count("logged in")
    waiting = standing.begin("console", _kit(standing), "-o", "json", "-c", f"wait {held}")
    eventually_sync(lambda: standing.log(leader).count("logged in") > logins, 10)
    waiting.send_signal(signal.SIGINT)
    status, out, err = _finish(waiting)
    assert status in SIGINT_SEEN
    assert json.loads(out)["error"]["code"] == "INTERRUPTED"
    assert "Traceback" not in err
    assert standing.show(held)["status"] == "RUNNING", "the job goes on"


def test_ctrl_c_while_preparing_leaves_nothing_half_done(standing, tmp_path):
    words = ["poc", "prepare", "-n", "200", "--base-port", str(free_base_port(5)), "-w", str(tmp_path / "half")]
    process = standing.begin(*words)
    eventually_sync(lambda: list(tmp_path.iterdir()), 20)
    process.send_signal(signal.SIGINT)
    status, _, err = _finish(process)
    assert status in SIGINT_SEEN
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_starting_is_put_right_by_start_or_stop(standing, tmp_path):
    other = Federation(tmp_path / "other", sites=1, servers=1)
    try:
        starting = other.begin("poc", "start", "-w", str(other.root))
        eventually_sync(other.processes, 20)
        starting.send_signal(signal.SIGINT)
        status, _, err = _finish(starting)
        assert status in SIGINT_SEEN
        assert "Traceback" not in err
        other.start()
        other.stop()
    finally:
        other.close()


def test_ctrl_c_while_nobody_leads(standing, tmp_path):
    nobody = Federation(tmp_path / "electing", sites=1, servers=1)
    nobody.start_one("overseer")
    try:
        process = nobody.begin("console", _kit(nobody), "-o", "json", "-c", "submit_job hello-numpy")
        line = process.stderr.readline()
        assert "electing" in line or "overseer" in line
        process.send_signal(signal.SIGINT)
        status, out, _ = _finish(process)
        assert status in SIGINT_SEEN
        assert json.loads(out)["error"]["code"] == "INTERRUPTED"
        timed = nobody.console("list_jobs", "--timeout", "1")
        assert (timed.rc, timed.error["code"]) == (5, "TIMEOUT")
        asked = nobody.console("get_active_sp")
        assert (asked.rc, asked.error["code"]) == (3, "NO_PRIMARY")
    finally:
        nobody.close()


def test_ctrl_c_in_a_download_keeps_what_arrived(standing, tmp_path):
    script = """
        import numpy as np
        import fedhelm.script as fl

        with fl.connect() as site:
            for task in site.tasks():
                task.submit({"w": np.ones(1)})
    """
    folder, _ = make_job(tmp_path / "large", script, rounds=1)
    noise = np.random.default_rng(1).integers(0, 255, 96 << 20, dtype=np.uint8)
    save_file({"noise": noise}, folder / "noise.safetensors")  # goes along in job/, and comes back
    job = standing.submit(folder)
    assert standing.wait(job) == "FINISHED:COMPLETED"
    target = tmp_path / "results"
    process = standing.begin("console", _kit(standing), "-o", "json", "-c", f"download_job {job} {target}")
    eventually_sync(lambda: any(one.stat().st_size for one in target.rglob("noise*.part")), 30, standing.tails())
    process.send_signal(signal.SIGINT)
    status, out, err = _finish(process)
    assert status in SIGINT_SEEN
    assert json.loads(out)["error"]["code"] == "INTERRUPTED"
    assert "Traceback" not in err
    assert not (target / job).exists(), "a download that is not whole does not look like one"
    kept = max(one.stat().st_size for one in target.rglob("*noise*"))
    assert kept > 0
    done = standing.console(f"download_job {job} {target}")
    assert done.data == {"path": str(target / job)}
    assert (target / job / "job" / "noise.safetensors").read_bytes() == (folder / "noise.safetensors").read_bytes()
    assert [path.name for path in target.iterdir()] == [job], "nothing of the way is left"


# -- where lines come from, where options stand -----------------------------------------------------------------------


def test_lines_from_a_file_and_from_a_pipe(standing, tmp_path):
    lines = "# what is there\n\nlist_jobs\n  get_active_sp\n"
    (tmp_path / "lines").write_text(lines)
    kit = _kit(standing)
    from_file = standing.run("console", kit, "-o", "json", "-f", str(tmp_path / "lines"))
    from_pipe = standing.run("console", kit, "-o", "json", stdin=lines)
    from_dash = standing.run("console", kit, "-o", "json", "-f", "-", stdin=lines)
    for answer in (from_file, from_pipe, from_dash):
        assert answer.rc == 0, answer.err
        assert [type(one["data"]) for one in answer.objects] == [list, dict]
    twice = standing.run("console", kit, "-o", "json", "-c", "get_active_sp", "-c", "list_sp")
    assert [type(one["data"]) for one in twice.objects] == [dict, list]


def test_the_first_failure_ends_a_file_unless_told_otherwise(standing, tmp_path):
    (tmp_path / "lines").write_text("show_job zzzzzzzz\nlist_jobs\nno_such\n")
    words = ["console", _kit(standing), "-o", "json", "-f", str(tmp_path / "lines")]
    stopped = standing.run(*words)
    assert stopped.rc == 1
    assert [one["status"] for one in stopped.objects] == ["error"]
    went_on = standing.run(*words, "--keep-going")
    assert went_on.rc == 1
    assert [one["status"] for one in went_on.objects] == ["error", "ok", "error"]
    missing = standing.run("console", _kit(standing), "-o", "json", "-f", str(tmp_path / "no-such"))
    assert (missing.rc, missing.error["code"]) == (2, "BAD_INPUT")


def test_options_stand_anywhere(standing, held):
    kit = _kit(standing)
    wait = f"wait {held}"
    orders = [
        ["console", kit, "-o", "json", "--timeout", "0.3", "-c", wait],
        ["console", kit, "-c", wait, "--timeout", "0.3", "-o", "json"],
        ["console", "-c", wait, "-o", "json", kit, "--timeout", "0.3"],
        ["console", "--timeout=0.3", "-ojson", "-c", wait, kit, "--yes"],
        ["console", kit, "-c", f"{wait} --timeout 0.3 -o json"],
        ["console", kit, "-c", f"wait -o json --timeout=0.3 {held}", "-o", "table", "--timeout", "60"],
    ]
    for words in orders:
        answer = standing.run(*words)
        assert (answer.rc, answer.error["code"]) == (5, "TIMEOUT"), words


def test_output_that_nobody_reads_is_no_crash(standing):
    process = standing.begin("console", _kit(standing), "-c", "help")
    process.stdout.close()
    process.wait(20)
    with process.stderr:
        assert "Traceback" not in process.stderr.read()


# -- the prompt -------------------------------------------------------------------------------------------------------


def test_the_prompt_through_a_failover(standing):
    before = standing.primary()
    other = next(name for name in standing.servers if name != before["name"])
    terminal = Terminal(["-m", "fedhelm.cli", "console", _kit(standing)], columns=110)
    try:
        terminal.prompt_is(f"fl {before['name']}·e{before['epoch']} ▸")
        greeting = terminal.lines()
        assert greeting[0] == "Waiting for the overseer..."
        ports = f"{before['fed_learn_port']}:{before['admin_port']}"
        epoch = before["epoch"]
        assert f"Got primary SP {before['name']}:{ports} from overseer, epoch {epoch}. SSID: poc:{epoch}" in greeting
        assert "login_result: OK" in greeting
        terminal.send("submit_job hello-numpy\r")
        terminal.sees("Submitted job: ")
        terminal.send("wait @last\r")
        eventually_sync(lambda: "FINISHED:COMPLETED" in terminal.text(), 40, terminal.text())
        terminal.send("download_job @last --ti")
        terminal.sees("download_job @last --ti")
        standing.kill(before["name"], "child")
        standing.leader(above=epoch)
        eventually_sync(lambda: f"{before['name']} → {other}" in terminal.text(), 20, terminal.text())
        typed = f"fl {other}·e{epoch + 1} ▸ download_job @last --ti"
        eventually_sync(lambda: any(line.startswith(typed) for line in terminal.lines()), 20, terminal.text())
        terminal.send("meout 60\r")
        eventually_sync(lambda: "Download to dir " in terminal.text(), 30, terminal.text())
        terminal.send("bye\r")
        assert terminal.ended() == 0
    finally:
        terminal.close()
