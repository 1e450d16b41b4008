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
    terminal.sees("12:03:41 ▲ failover server1 → server2  epoch 4")
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
    assert sum("▲ event" in line for line in terminal.lines()) == 4


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

    # The command runs once the terminal is out of raw mode; Ctrl-C is sent until it has become a signal.
    def detached():
        terminal.send("\x03")
        return "detached; the job continues: wait k7m3tq4w2zpx" in terminal.text()

    eventually_sync(detached)
    terminal.prompt_is("fl server1·e1 ▸")


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
    terminal.sees("server2 leads, epoch 2")


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
