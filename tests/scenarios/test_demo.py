"""`fedhelm demo` as a newcomer types it: it shows a failover, brings a result home, and leaves no process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedhelm.process import KIT_MARK

pytest.importorskip("torch")
pytest.importorskip("sklearn")

DEMO = [sys.executable, "-m", "fedhelm.cli", "demo"]


def processes_below(folder):
    """Process ids whose kit lies below the folder."""
    wanted = f"{KIT_MARK}={folder}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                named = (entry / "environ").read_bytes() + b"\0" + (entry / "cmdline").read_bytes()
                zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            except OSError:
                continue
            if not zombie and (wanted in named or f"{folder}/".encode() in (entry / "cmdline").read_bytes()):
                found.append(int(entry.name))
    return found


def environment(tmp_path):
    return {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "80"}


def test_demo_shows_a_failover_and_leaves_the_result(tmp_path):
    done = subprocess.run(
        [*DEMO, "-o", "json"], check=False, env=environment(tmp_path), capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["schema_version"], answer["status"], answer["error"]) == (1, "ok", None)
    data = answer["data"]
    assert len(data["accuracy"]) == 5
    assert data["accuracy"][-1] >= 0.95
    assert data["gap_s"] > 0
    assert data["epochs"][0] == 1
    assert data["epochs"] == sorted(data["epochs"])
    assert data["epochs"][-1] > 1, "another epoch closed the last round"

    path = Path(data["path"])
    assert path.name == data["job_id"]
    assert tmp_path in path.parents
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "FINISHED:COMPLETED"
    assert (path / "models" / "final.safetensors").stat().st_size > 0
    assert len(list(path.glob("tensorboard/*/events.out.tfevents.*"))) >= 2
    assert [one.name for one in path.parent.iterdir()] == [path.name], "the workspace with its keys is gone"
    assert processes_below(path.parent) == []

    story = done.stderr
    for line in (
        "submit_job hello-pt-tb",
        "kill -9",
        "failover server1",
        "epoch 2  gap",
        "1 job resumed",
        "list_sp",
        "download_job",
        "Nothing was lost",
    ):
        assert line in story, story
    assert "\x1b[" not in story
    paths = str(tmp_path)
    assert max(len(line) for line in story.splitlines() if paths not in line) <= 80, story


@pytest.mark.parametrize(
    ("moment", "sent"),
    [
        ("poc prepare", signal.SIGINT),
        ("poc start", signal.SIGINT),
        ("submit_job", signal.SIGTERM),
        ("kill -9", signal.SIGINT),
        ("Bring the result", signal.SIGHUP),
    ],
)
def test_interrupted_demo_leaves_no_process_and_no_file(tmp_path, moment, sent):
    process = subprocess.Popen(
        DEMO, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(100, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            if moment in line:
                process.send_signal(sent)
                break
        out, err = process.communicate()
    finally:
        watchdog.cancel()
    assert process.returncode == 130, (out, err)
    assert err.splitlines() == ["error[INTERRUPTED]: interrupted: everything was stopped and removed"]
    assert processes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_demo_whose_reader_has_gone_stops_everything(tmp_path):
    process = subprocess.Popen(
        DEMO, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "Fedhelm demo" in process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 1
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    process.stderr.close()
    assert processes_below(tmp_path) == []


def test_kept_demo_goes_on_and_says_how_to_stop_it(tmp_path):
    folder = tmp_path / "here"
    done = subprocess.run(
        [*DEMO, "--keep", "-w", str(folder)],
        check=False,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    poc = [sys.executable, "-m", "fedhelm.cli", "poc"]
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"fedhelm poc clean -w {folder}/poc" in done.stdout
        assert "fl_admin.sh" in done.stdout
        status = subprocess.run([*poc, "status", "-w", folder / "poc", "-o", "json"], check=True, capture_output=True)
        rows = json.loads(status.stdout)
        assert all(row["ready"] for row in rows["data"])
    finally:
        subprocess.run([*poc, "clean", "-w", folder / "poc"], check=True, capture_output=True)
    assert processes_below(folder) == []
    assert len([path for path in folder.iterdir() if (path / "summary.json").is_file()]) == 1
