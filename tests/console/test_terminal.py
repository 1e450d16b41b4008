"""The prompt on a real pseudo-terminal: what a person sees."""

import os
import stat
import time

import pytest

from tests.fakes.admin_terminal import Terminal
from tests.support.waiting import eventually_sync

HELLO = [
    "Waiting for the overseer...",
    "Got primary SP server1:8002:8003 from overseer, epoch 1. SSID: poc:1",
    "login_result: OK",
    'Type ? to list commands; type "? cmdName" to show usage of a command.',
]


@pytest.fixture
def start(tmp_path):
    (tmp_path / "transfer" / "hello-pt-tb").mkdir(parents=True)
    opened = []

    def run(*flags, **options):
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        terminal = Terminal(["-m", "tests.fakes.admin_repl", str(tmp_path), str(fifo), *flags], **options)
        opened.append((terminal, os.open(fifo, os.O_RDWR)))
        terminal.play = lambda word: os.write(opened[-1][1], f"{word}\n".encode())
        return terminal

    yield run
    for terminal, fifo in opened:
        os.close(fifo)
        terminal.close()


def test_login_prompt_and_a_submit_as_in_the_walkthrough(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    assert terminal.lines()[:4] == HELLO
    terminal.send("submit_job hello-pt-tb\r")
    terminal.sees("Submitted job: k7m3zzzzzzzz")
    terminal.send("bye\r")
    assert terminal.ended() == 0


def test_a_failover_stands_above_the_prompt_and_what_is_typed_stays(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.sees("● server1 e1 │ standby server2")
    terminal.send("submit_job ./hello-pt --si")
    terminal.sees("fl server1·e1 ▸ submit_job ./hello-pt --si")
    terminal.play("failover")
    terminal.sees("12:03:41 ▲ failover server1 → server2  epoch 4  gap 0.3 s  1 job resumed")
    terminal.sees("           (child exited with signal 9)")
    eventually_sync(lambda: "fl server2·e4 ▸ submit_job ./hello-pt --si" in terminal.text())
    terminal.sees("● server2 e4 │ standby server1")
    lines = terminal.lines()
    event = next(at for at, line in enumerate(lines) if "▲ failover" in line)
    typed = max(at for at, line in enumerate(lines) if line.startswith("fl "))
    assert event < typed
    assert lines[typed].startswith("fl server2·e4 ▸ submit_job ./hello-pt --si")
    eventually_sync(lambda: terminal.title() == "fedhelm server2·e4")


def test_electing_is_shown(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.play("lost")
    terminal.prompt_is("fl server1·e1 (electing…) ▸")


def test_a_flood_of_events_is_a_few_lines(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.play("flood")
    terminal.sees("... 37 more (events)")
    assert sum(" is up" in line for line in terminal.lines()) == 4


def test_a_failover_is_one_line_and_the_return_another(start):
    terminal = start(columns=120)
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.play("failover")
    terminal.sees("▲ failover")
    terminal.play("back")
    terminal.sees("12:03:41 ▲ server1 is back, standby")
    assert [line for line in terminal.lines() if line.startswith("12:03:41")] == [
        "12:03:41 ▲ failover server1 → server2  epoch 4  gap 0.3 s  1 job resumed  (child exited with signal 9)",
        "12:03:41 ▲ server1 is back, standby",
    ]
    terminal.send("\x1bOR")  # F3 shows them all
    terminal.sees("12:03:41 ● epoch 4 granted to server2: child exited with signal 9")


def test_the_summary_follows_the_login(start):
    terminal = start(columns=140)
    terminal.prompt_is("fl server1·e1 ▸")
    assert terminal.lines()[4] == (
        "Signed in as admin@nvidia.com (project_admin) · project poc · server1 primary, epoch 1, 1 standby, "
        "1/2 sites up · 1 job running"  # as the toolbar says
    )


def test_the_grey_usage_is_gone_once_the_line_is_accepted(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("get_active_sp")
    eventually_sync(lambda: any(line.count("get_active_sp") == 2 for line in terminal.lines()), what="the usage")
    terminal.send("\r")
    terminal.sees("server1:8002:8003 epoch 1")
    terminal.prompt_is("fl server1·e1 ▸")
    assert "fl server1·e1 ▸ get_active_sp" in terminal.lines()


def test_a_wait_is_one_live_line(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("wait @last\r")
    terminal.sees("round 2 of 5  site-1 ✓ DONE, site-2 ▶ TRAINING  accuracy 0.9512, loss 0.2")
    terminal.play("next")
    terminal.sees("round 3 of 5")
    terminal.play("failover")
    terminal.sees("▲ failover")
    text = terminal.lines()
    assert not any("round 2 of 5" in line for line in text)
    event, live = (next(at for at, line in enumerate(text) if word in line) for word in ("▲ failover", "round 3 of 5"))
    assert event < live, "it stands below what was written meanwhile"


def test_the_time_at_a_question_is_not_the_commands(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("abort_job k7m3tq\r")
    terminal.sees("[y/N]")
    asked = time.monotonic()
    eventually_sync(lambda: time.monotonic() - asked > 0.5)
    terminal.send("y\r")
    terminal.sees("■ FINISHED:ABORTED")
    terminal.prompt_is("fl server1·e1 ▸")
    assert " s · server1" not in terminal.text()


def test_clear_empties_the_screen(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.sees("jobs 1▶")
    terminal.send("clear\r")
    eventually_sync(lambda: next((line for line in terminal.lines() if line), "") == "fl server1·e1 ▸")
    assert b"\x1b[2J" in bytes(terminal.raw)


def test_a_failover_is_shown_even_in_a_flood(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.play("flood")
    terminal.play("failover")
    terminal.sees("▲ failover server1 → server2  epoch 4")


def test_completion_of_commands_jobs_and_paths(start):
    terminal = start()
    terminal.sees("jobs 1▶")
    terminal.send("abort_")
    terminal.sees("abort_job")
    terminal.send("\t")
    terminal.send(" k7m3")
    terminal.sees("hello-pt-tb RUNNING 14.2 s")
    assert "hello-numpy" not in terminal.text()
    terminal.send("\x03")
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("submit_job hel")
    terminal.sees("hello-pt-tb/")
    terminal.send("\t")
    terminal.sees("▸ submit_job hello-pt-tb/")


def test_ctrl_c_clears_the_line_and_ctrl_d_leaves(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("nonsense")
    terminal.sees("▸ nonsense")
    terminal.send("\x03")
    terminal.prompt_is("fl server1·e1 ▸")
    assert "error[" not in terminal.text()
    terminal.send("\x04")
    assert terminal.ended() == 0


def test_ctrl_c_detaches_from_a_wait(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("wait @last\r")
    terminal.sees("round 2 of 5")  # the terminal is out of raw mode: Ctrl-C is a signal from now on
    terminal.send("\x03")
    terminal.sees("detached; the job continues: wait k7m3tq4w2zpx")
    terminal.prompt_is("fl server1·e1 ▸")


def _settle(terminal):
    """Wait for a prompt that answers: one that draws the screen anew when it is asked to (Ctrl-L)."""

    def answers():
        terminal.send("\x0c")
        return [line for line in terminal.lines()[-30:] if line][:1] == ["fl server1·e1 ▸"]

    eventually_sync(answers, what="a prompt that answers")


def test_hammering_on_ctrl_c_does_not_leave_the_console(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    for _ in range(3):
        terminal.send("wait @last\r")
        terminal.sees("round 2 of 5")
        for _ in range(20):
            terminal.send("\x03")
        _settle(terminal)
    terminal.send("get_active_sp\r")
    terminal.sees("server1:8002:8003 epoch 1")


def test_confirmations_at_the_prompt(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("abort_job k7m3tq\r")
    terminal.sees("Abort k7m3tq4w2zpx hello-pt-tb (RUNNING)? [y/N]")
    terminal.send("n\r")
    terminal.sees("error[REFUSED]: not confirmed; nothing was done")
    terminal.send("promote_sp server2\r")
    terminal.sees("Type server2 to go on:")
    terminal.send("server2\r")
    terminal.sees("after   server2 primary, epoch 2 · server1 ○ STANDBY · 1 job running")


def test_errors_and_did_you_mean(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("lst_jobs\r")
    terminal.sees("error[UNKNOWN_COMMAND]: no command 'lst_jobs' (hint: did you mean list_jobs?)")
    terminal.send("? wait\r")
    terminal.sees("usage: wait JOB")


def test_history_is_kept_private_and_comes_back(start, tmp_path):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("list_jobs -r\r")
    terminal.sees("k6aaaaaaaaaa")
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("\x1b[A")
    eventually_sync(
        lambda: [line for line in terminal.lines() if line.startswith("fl ")][-1].startswith(
            "fl server1·e1 ▸ list_jobs -r"
        )
    )
    history = tmp_path / "run" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+list_jobs -r" in history.read_text()


def test_unreachable_at_the_start_still_gives_a_prompt(start):
    terminal = start("unreachable")
    terminal.sees("login_result: NO_PRIMARY")
    terminal.sees("▸")
    terminal.send("help\r")
    terminal.sees("submit_job")
    terminal.send("bye\r")
    assert terminal.ended() == 0


def test_ascii_and_no_colour(start):
    terminal = start("ascii", env={"NO_COLOR": "1"})
    terminal.prompt_is("fl server1-e1 >")
    terminal.sees("* server1 e1 | standby server2")
    assert terminal.text().isascii()
    for colour in (b"\x1b[0;32m", b"\x1b[32m", b"\x1b[0;33m"):
        assert colour not in bytes(terminal.raw)


def test_an_idle_prompt_writes_nothing(start):
    terminal = start()
    terminal.sees("jobs 1▶")
    quiet = {"since": time.monotonic(), "size": len(terminal.raw)}

    def second_of_silence():
        if len(terminal.raw) != quiet["size"]:
            quiet.update(since=time.monotonic(), size=len(terminal.raw))
        return time.monotonic() - quiet["since"] > 1.0

    eventually_sync(second_of_silence)


def test_a_paused_failover_stands_in_prompt_toolbar_and_above(start):
    terminal = start(columns=120)
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("list_j")
    terminal.play("pause")
    terminal.sees("12:03:41 ● admin@nvidia.com paused failover: upgrade")
    terminal.sees("fl server1·e1 [failover paused] ▸ list_j")
    terminal.sees("● server1 e1 [failover paused] │")


def test_a_primary_without_a_lease_is_degraded(start):
    terminal = start(columns=120)
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.play("unleased")
    terminal.sees("12:03:41 ▼ the lease store does not answer")
    terminal.sees("DEGRADED: no failover")
    terminal.prompt_is("fl server1·e1 [no failover] ▸")


def test_a_system_that_was_shut_down_is_said_to_be_down(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.play("down")
    terminal.sees("12:03:41 ▼ admin@nvidia.com shuts the system down")
    terminal.prompt_is("fl system down ▸")
    terminal.sees("the system is down: an admin has shut it down")
    assert "is down" not in [line for line in terminal.lines() if "server1" in line]


def test_grade_3_wants_the_projects_name_and_the_count(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("shutdown_system\r")
    terminal.sees("Shut down server1, server2, site-1. 1 job running: stopped, and going on after the next start.")
    terminal.sees("Type poc 3 to go on:")
    terminal.send("poc 2\r")
    terminal.sees("error[REFUSED]: not confirmed; nothing was done")
    terminal.send("shutdown_system\r")
    eventually_sync(lambda: terminal.text().count("Type poc 3 to go on:") == 2)
    terminal.send("poc 3\r")
    terminal.sees("the system is down")


def test_an_interrupt_leaves_no_mark(start):
    terminal = start()
    terminal.prompt_is("fl server1·e1 ▸")
    terminal.send("wait k7m3tq\r")
    terminal.sees("round 2 of 5")
    for _ in range(5):
        terminal.send("\x03")
    terminal.sees("detached; the job continues")
    terminal.prompt_is("fl server1·e1 ▸")
    assert "^C" not in terminal.text()
