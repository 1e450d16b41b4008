from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fedhelm.process import ParticipantLock, write_state
from fedhelm.provision import health
from tests.support.kits import ADMIN, make_kits
from tests.support.waiting import eventually_sync

HOLDER = (
    "import signal, sys; from pathlib import Path; from fedhelm.process import ParticipantLock, write_state; "
    "run = Path(sys.argv[1]); ParticipantLock(run).acquire(); write_state(run, ready=True); signal.pause()"
)


@pytest.fixture
def kits(tmp_path):
    return make_kits(tmp_path)


@pytest.fixture
def site(kits):
    """A site of which this process plays the agent."""
    lock = ParticipantLock(kits["site-1"].run)
    lock.acquire()
    yield kits["site-1"]
    lock.release()


def asked(capsys, kit, *options):
    status = health.main([str(kit.root), *options])
    said = capsys.readouterr()
    return status, (said.out + said.err).rstrip()


def test_ready_is_well(site, capsys):
    write_state(site.run, ready=True)
    assert asked(capsys, site) == (0, f"site-1 is ready, pid {os.getpid()}")


def test_not_ready_is_unwell_with_the_participants_own_reason_and_alive_all_the_same(site, capsys):
    write_state(site.run, ready=False, reason="no server answers")
    assert asked(capsys, site) == (1, "error[UNREACHABLE]: site-1 is not ready: no server answers")
    assert asked(capsys, site, "--alive") == (0, f"site-1 is alive, pid {os.getpid()}")
    write_state(site.run, ready=False)
    assert asked(capsys, site)[1].endswith("site-1 is not ready")


def test_what_a_former_process_wrote_does_not_count(site, capsys):
    (site.run / "state.json").write_text('{"pid": 1, "ready": true}')
    assert asked(capsys, site) == (1, f"error[UNREACHABLE]: site-1 is starting, pid {os.getpid()}")


def test_what_does_not_run_is_unwell_whatever_its_state_says(kits, capsys):
    kit = kits["server1"]
    kit.run.mkdir()
    write_state(kit.run, ready=True)
    for options in ((), ("--alive",)):
        assert asked(capsys, kit, *options) == (1, "error[UNREACHABLE]: server1 is not running")


def test_a_stopped_process_is_unwell(kits, capsys):
    kit = kits["overseer"]
    with subprocess.Popen([sys.executable, "-c", HOLDER, kit.run], stderr=subprocess.DEVNULL) as holder:
        try:
            eventually_sync(lambda: asked(capsys, kit)[0] == 0, timeout=30)
            holder.send_signal(signal.SIGSTOP)
            eventually_sync(lambda: "is stopped" in asked(capsys, kit)[1], timeout=30)
            assert asked(capsys, kit, "--alive")[0] == 1
        finally:
            holder.kill()


@pytest.mark.parametrize("what", ["admin", "no kit", "usage"])
def test_every_other_case_is_1_as_engines_want_it(kits, capsys, tmp_path, what):
    arguments = {"admin": [str(kits[ADMIN].root)], "no kit": [str(tmp_path / "nothing")], "usage": ["--what"]}[what]
    assert health.main(arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_it_can_be_run_as_the_image_runs_it(kits):
    command = [sys.executable, "-P", "-m", "fedhelm.provision.health", kits["site-1"].root]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "error[UNREACHABLE]: site-1 is not running\n")
