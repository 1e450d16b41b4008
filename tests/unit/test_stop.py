from __future__ import annotations

import subprocess
import sys

import pytest

from fedhelm.errors import Refused
from fedhelm.process import ParticipantLock
from fedhelm.provision.stop import Home, stop_all
from tests.support.waiting import eventually_sync

HOLDER = (
    "import signal, sys; from pathlib import Path; from fedhelm.process import ParticipantLock; "
    "ParticipantLock(Path(sys.argv[1])).acquire(); signal.pause()"
)


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds the lock of ``tmp_path/site-1``; it carries no mark of the kit."""
    started = []

    def start(*more):
        run = tmp_path / "site-1" / "run"
        process = subprocess.Popen([sys.executable, "-c", HOLDER, run, *more])
        started.append(process)
        eventually_sync(lambda: ParticipantLock.holder(run) == process.pid, timeout=30)
        return Home(run.parent, "site", "site-1"), process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_participant_in_a_container_is_not_stopped_by_a_process_id_that_means_another_process_here(holder):
    # The lock is seen through the mounted folder; the id in it is the container's, here it belongs to anybody.
    home, process = holder()
    with pytest.raises(Refused, match="site-1 runs in a container") as caught:
        stop_all([home])
    assert caught.value.hint.endswith("/site-1/startup/docker.sh --stop")
    assert process.poll() is None


def test_a_participant_that_was_started_by_hand_is_stopped(holder):
    home, process = holder("--kit", "somewhere")
    assert stop_all([home]) == ["site-1"]
    assert process.wait(timeout=10) != 0
