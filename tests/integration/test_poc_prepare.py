"""The POC's workspace and its processes; participants are stand-ins, but for the overseer's scripts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fedhelm.config.kit import read_kit
from fedhelm.errors import AlreadyRunning, BadInput, Corrupt, DeadlineExceeded, PortTaken
from fedhelm.process import ParticipantLock, child_env, marked_processes
from fedhelm.provision.launch import is_ready, spawn, start_all
from fedhelm.provision.stop import live_processes, stop_all
from fedhelm.security.kit import open_kit
from fedhelm_lab.poc_cli import main
from fedhelm_lab.workspace import ADMIN, MARKER, Workspace, plan, prepare
from tests.support.waiting import eventually_sync

FAKE = (sys.executable, str(Path(__file__).parents[1] / "fakes" / "provision_participant.py"))


def free_range(count=40):
    """Find a run of free ports. Another process may take one later; every test has its own run."""
    for base in range(20000 + os.getpid() % 200 * 100, 60000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise AssertionError("no free ports")


@pytest.fixture
def base_port():
    return free_range()


@pytest.fixture
def workspace(tmp_path, base_port):
    made = prepare(tmp_path / "poc", plan(1, 2, base_port))
    yield made
    stop_all(made.running_homes, grace=0)
    assert not any(live_processes(home) for home in made.running_homes)


def poc(capsys, *argv):
    status = main(list(argv))
    return status, capsys.readouterr()


def poc_json(capsys, *argv):
    status, (out, err) = poc(capsys, *argv)
    assert err == ""
    assert out.count("\n") == 1
    return status, json.loads(out)


def behave(kit, **options):
    (kit.local / "fake.json").write_text(json.dumps(options))


# -- prepare


def test_the_short_form_makes_the_whole_workspace(tmp_path, base_port, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, (out, err) = poc(capsys, "-n", "2", "--base-port", str(base_port))
    assert (status, err) == (0, "")
    participants = {"overseer", "server1", "server2", "site-1", "site-2", ADMIN}
    assert {path.name for path in (tmp_path / "poc").iterdir()} == participants | {MARKER, "state", "store"}
    assert all(name in out for name in participants)
    assert list(tmp_path.iterdir()) == [tmp_path / "poc"]
    kits = {name: open_kit(tmp_path / "poc" / name) for name in participants}
    assert kits["overseer"].own_overseer.port == base_port
    assert [(s.fed_learn_port, s.admin_port) for s in kits["site-1"].servers] == [
        (base_port + 1, base_port + 2),
        (base_port + 3, base_port + 4),
    ]
    assert kits["server2"].store == tmp_path / "poc" / "store"
    assert (kits["site-2"].enable_byoc, kits["site-2"].project) == (True, "poc")


def test_the_store_is_founded_for_the_cluster_of_the_kits(workspace):
    from fedhelm.persist import open_store

    kit = workspace.kit("server1")
    store = open_store(kit.store, kit.cluster)
    assert [record.kind for record in store.log.read_new().records] == ["genesis"]


def test_default_ports_are_those_of_the_walk_through():
    project = plan(2)
    assert [(one.name, one.host, one.fed_learn_port, one.admin_port) for one in project.servers] == [
        ("server1", "127.0.0.1", 8002, 8003),
        ("server2", "127.0.0.1", 9002, 9003),
    ]
    assert project.overseers[0].port == 8443


@pytest.mark.parametrize(
    "argv", [("prepare", "-n", "1", "-w", "x", "-o", "json"), ("-o", "json", "-w", "x", "prepare", "-n", "1")]
)
def test_options_stand_in_any_order(tmp_path, base_port, capsys, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    status, body = poc_json(capsys, "--base-port", str(base_port), "--servers", "1", *argv)
    assert status == 0
    assert body["data"]["workspace"] == str(tmp_path / "x")
    assert body["data"]["participants"][1] == {
        "name": "server1",
        "role": "server",
        "ports": [base_port + 1, base_port + 2],
    }


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(workspace, tmp_path, capsys):
    cluster = workspace.kit("site-1").cluster
    status, body = poc_json(capsys, "prepare", "-n", "2", "-o", "json", "-w", str(workspace.root))
    assert (status, body["error"]["code"]) == (1, "WORKSPACE_EXISTS")
    assert read_kit(workspace.root / "site-1").cluster == cluster
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    status, (_, err) = poc(capsys, "-n", "2", "-w", str(tmp_path / "mine"))
    assert status == 1
    assert err.startswith("error[WORKSPACE_EXISTS]: ")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_used(tmp_path, base_port):
    (tmp_path / "poc").mkdir()
    assert prepare(tmp_path / "poc", plan(1, 1, base_port)).kit("site-1").name == "site-1"


def test_a_taken_port_is_named_with_its_participant_before_anything_is_written(tmp_path, base_port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", base_port + 3))
        other.listen()
        with pytest.raises(PortTaken, match=rf"port {base_port + 3} of server2 is taken"):
            prepare(tmp_path / "poc", plan(1, 2, base_port))
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_done_stays(tmp_path, base_port, monkeypatch):
    def fail(transfer):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedhelm_lab.workspace.stage_examples", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "poc", plan(1, 1, base_port))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, base_port, capsys):
    (tmp_path / "file").write_text("")
    status, (_, err) = poc(capsys, "-n", "1", "--base-port", str(base_port), "-w", str(tmp_path / "file" / "poc"))
    assert (status, err) == (2, f"error[BAD_INPUT]: {tmp_path / 'file'} is not a folder\n")


@pytest.mark.parametrize(
    "options", [(0, 2, None), (2, 0, None), (2, 20, None), (1001, 2, None), (2, 2, 0), (2, 2, 65532)]
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(BadInput):
        plan(*options)
    plan(2, 2, 65531)


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("prepare", "-n", "two"),
        ("frobnicate",),
        ("start", "-n", "2"),
        ("stop", "--servers", "1"),
        ("--bogus",),
        ("start", "stop"),
    ],
)
def test_a_usage_error_has_the_envelope_too(argv, capsys):
    status, body = poc_json(capsys, *argv, "-o", "json")
    assert (status, body["status"], body["error"]["code"], body["data"]) == (2, "error", "USAGE", None)
    status, (out, err) = poc(capsys, *argv)
    assert (status, out) == (2, "")
    assert err.startswith("error[USAGE]: ")


def test_help_explains_every_action(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["-h"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for word in ("prepare", "start", "status", "stop", "clean", "-n", "--servers", "--base-port", "-w", "-o"):
        assert word in out


@pytest.mark.parametrize("action", ["start", "status", "stop"])
def test_no_workspace_is_one_clear_error(tmp_path, capsys, action):
    status, body = poc_json(capsys, action, "-w", str(tmp_path / "none"), "-o", "json")
    assert (status, body["error"]["code"]) == (1, "NOT_FOUND")


@pytest.mark.parametrize("action", ["start", "status", "stop", "clean"])
def test_a_foreign_folder_is_left_alone(tmp_path, capsys, action):
    (tmp_path / "precious.txt").write_text("x")
    for content in (
        None,
        "{}",
        '{"kind": "other", "participants": []}',
        '{"kind": "poc", "participants": [{"name": "../.."}]}',
    ):
        if content is not None:
            (tmp_path / MARKER).write_text(content)
        status, body = poc_json(capsys, action, "-w", str(tmp_path), "-o", "json")
        assert (status, body["error"]["code"]) == (2, "REFUSED")
    assert (tmp_path / "precious.txt").exists()


URL = "postgresql://fedhelm@db.example:5432/lease?passfile=pgpass&sslmode=verify-full"


def test_several_overseers_share_a_database_and_everybody_knows_them(tmp_path, base_port, capsys):
    words = ("--servers", "2", "--overseers", "3", "--lease-store", URL)
    status, body = poc_json(
        capsys, "-n", "1", *words, "--base-port", str(base_port), "-o", "json", "-w", str(tmp_path / "poc")
    )
    assert status == 0
    ports = {row["name"]: row["ports"] for row in body["data"]["participants"]}
    assert ports["overseer"] == [base_port]
    assert (ports["overseer2"], ports["overseer3"]) == ([base_port + 5], [base_port + 6])
    workspace = Workspace.open(tmp_path / "poc")
    kits = {home.name: open_kit(home.root) for home in workspace.homes}
    expected = [("overseer", base_port), ("overseer2", base_port + 5), ("overseer3", base_port + 6)]
    assert all([(one.name, one.port) for one in kit.overseers] == expected for kit in kits.values())
    leases = {name: kit.lease_store for name, kit in kits.items() if kit.lease_store}
    assert leases == {"overseer": URL, "overseer2": URL, "overseer3": URL}
    assert URL not in (kits["server1"].startup / "fed_server.json").read_text()
    _, body = poc_json(capsys, "status", "-o", "json", "-w", str(workspace.root))
    assert [row["name"] for row in body["data"]][:3] == ["overseer", "overseer2", "overseer3"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--overseers", "2"), "2 overseers share one lease, which they keep in PostgreSQL"),
        (("--overseers", "2", "--lease-store", "sqlite"), "2 overseers share one lease"),
        (("--overseers", "0"), "--overseers 0: 1 to 9 overseers"),
        (("--overseers", "10", "--lease-store", URL), "--overseers 10: 1 to 9 overseers"),
        (("--overseers", "4", "--servers", "19", "--base-port", "20000", "--lease-store", URL), "more than 40 ports"),
        (("--lease-store", "mysql://u@h/db"), "neither sqlite nor a PostgreSQL URL"),
        (("--lease-store", "postgresql://"), "neither sqlite nor a PostgreSQL URL"),
        (("--lease-store", "postgresql://u:hidden@h/db"), "lease_store carries a password"),
        (("--lease-store", "postgresql://u@h/db?password=hidden"), "lease_store carries a password"),
        (("--lease-store", "postgresql://u:hidden@[::1/db"), "lease_store is not a URL"),
    ],
)
def test_a_lease_store_that_cannot_be_shared_is_one_line_without_secrets(tmp_path, capsys, words, told):
    status, (out, err) = poc(capsys, "-n", "1", *words, "-w", str(tmp_path / "poc"))
    assert (status, out) == (2, "")
    assert told in err
    assert "hidden" not in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_base_port_overseers_are_a_thousand_apart():
    project = plan(1, 2, overseers=3, lease_store=URL)
    assert [one.port for one in project.overseers] == [8443, 9443, 10443]


# -- start, status, stop, clean


def test_before_the_start_everybody_is_down(workspace, capsys):
    status, body = poc_json(capsys, "status", "-o", "json", "-w", str(workspace.root))
    assert status == 0
    assert [row["name"] for row in body["data"]] == ["overseer", "server1", "server2", "site-1"]
    empty = {"child": [], "runner": [], "nanny": [], "job": []}
    for row in body["data"]:
        assert (row["pid"], row["alive"], row["ready"], row["children"]) == (None, False, False, empty)


@pytest.mark.processes
def test_start_starts_what_is_not_running_and_stop_leaves_nothing(workspace, capsys):
    assert start_all([workspace.kit("server1")], 30, FAKE) == ["server1"]
    first = ParticipantLock.holder(workspace.kit("server1").run)
    assert start_all(workspace.participants, 30, FAKE) == ["overseer", "server2", "site-1"]
    assert start_all(workspace.participants, 30, FAKE) == []
    _, body = poc_json(capsys, "status", "-o", "json", "-w", str(workspace.root))
    rows = {row["name"]: row for row in body["data"]}
    assert all(row["alive"] and row["ready"] and len(row["children"]["child"]) == 1 for row in rows.values())
    assert rows["server1"]["pid"] == first
    status, body = poc_json(capsys, "stop", "-o", "json", "-w", str(workspace.root))
    assert (status, body["data"]) == (0, {"stopped": ["overseer", "server1", "server2", "site-1"]})
    assert not any(marked_processes(home.root) for home in workspace.homes)
    status, body = poc_json(capsys, "stop", "-o", "json", "-w", str(workspace.root))
    assert (status, body["data"]) == (0, {"stopped": []})


@pytest.mark.processes
def test_a_second_start_of_one_participant_is_an_error_that_names_the_pid(workspace):
    kit = workspace.kit("site-1")
    start_all([kit], 30, FAKE)
    with pytest.raises(AlreadyRunning, match=f"pid {ParticipantLock.holder(kit.run)}"):
        spawn(kit, FAKE)


@pytest.mark.processes
def test_who_dies_at_start_is_reported_with_its_own_error(workspace):
    behave(workspace.kit("server2"), die="error[PORT_TAKEN]: server2 cannot listen on port 9 (hint: look)")
    with pytest.raises(PortTaken, match="server2 cannot listen on port 9") as caught:
        start_all(workspace.participants, 30, FAKE)
    assert caught.value.hint == "look"


@pytest.mark.processes
def test_who_dies_without_a_word_is_reported_by_its_last_line(workspace):
    behave(workspace.kit("site-1"), die="ImportError: no module")
    with pytest.raises(Exception, match="site-1 ended with status 1: ImportError: no module"):
        start_all([workspace.kit("site-1")], 30, FAKE)


@pytest.mark.processes
def test_who_is_late_is_named_with_the_end_of_its_log(workspace):
    behave(workspace.kit("site-1"), late=True)
    with pytest.raises(DeadlineExceeded, match=r"not ready after 2 s: site-1$") as caught:
        start_all([workspace.kit("overseer"), workspace.kit("site-1")], 2, FAKE)
    assert "client starts" in caught.value.hint


@pytest.mark.processes
def test_who_says_why_it_is_not_ready_is_not_waited_for(workspace):
    behave(workspace.kit("overseer"), reason="the lease store does not answer")
    with pytest.raises(DeadlineExceeded, match=r"^overseer is not ready: the lease store does not answer$"):
        start_all([quick(workspace.kit("overseer"))], 60, FAKE, patience=0.1)
    behave(workspace.kit("server1"), reason="corrupt", says="error[CORRUPT]: slot 7: the hash is wrong (hint: fsck)")
    with pytest.raises(Corrupt, match=r"^server1 is not ready: slot 7: the hash is wrong$") as caught:
        start_all([quick(workspace.kit("server1")), quick(workspace.kit("site-1"))], 60, FAKE, patience=0.1)
    assert caught.value.hint == "fsck"
    behave(workspace.kit("server2"), reason="it reads the log")
    with pytest.raises(DeadlineExceeded, match=r"^not ready after 2 s: server2$"):
        start_all([quick(workspace.kit("server2"))], 2, FAKE, patience=0.1)
    eventually_sync(lambda: is_ready(workspace.kit("site-1").run))


def quick(kit):
    return replace(kit, timing=replace(kit.timing, lease=0.01))


@pytest.mark.processes
def test_stop_ends_stopped_deaf_and_orphaned_processes(workspace):
    deaf, stopped, orphaned = (workspace.kit(name) for name in ("server1", "server2", "site-1"))
    behave(deaf, deaf=True)
    start_all([deaf, stopped, orphaned], 30, FAKE)
    for process in marked_processes(stopped.root):
        os.kill(process.pid, signal.SIGSTOP)
    os.kill(ParticipantLock.holder(orphaned.run), signal.SIGKILL)
    eventually_sync(lambda: ParticipantLock.holder(orphaned.run) is None)
    assert [process.mark for process in marked_processes(orphaned.root)] == ["child"]
    assert set(stop_all(workspace.participants, grace=1)) == {"server1", "server2", "site-1"}
    assert not any(marked_processes(home.root) for home in workspace.homes)


@pytest.mark.processes
def test_stop_passes_nobody_over_whose_role_changes_meanwhile(workspace):
    primary, standby, slow = (workspace.kit(name) for name in ("server1", "server2", "site-1"))
    behave(slow, deaf=True)  # so that the first turn lasts for the whole grace
    start_all([primary, standby, slow], 30, FAKE)
    state = primary.run / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "role": "ACTIVE"}))

    def fall_back():
        eventually_sync(lambda: ParticipantLock.holder(standby.run) is None, 20)
        state.write_text(json.dumps({**json.loads(state.read_text()), "role": "STANDBY"}))

    falling = threading.Thread(target=fall_back)
    falling.start()
    try:
        stop_all(workspace.participants, grace=2)
    finally:
        falling.join()
    assert json.loads(state.read_text())["role"] == "STANDBY", "it fell back while the first turn still ran"
    assert marked_processes(primary.root) == []


@pytest.mark.processes
def test_stop_touches_no_other_workspace(workspace, tmp_path):
    other = prepare(tmp_path / "other", plan(1, 1, free_range()))
    start_all([*workspace.participants, other.kit("site-1")], 30, FAKE)
    try:
        workspace.stop()
        assert ParticipantLock.holder(other.kit("site-1").run)
        assert len(marked_processes(other.kit("site-1").root)) == 2
    finally:
        other.clean()
    assert not other.root.exists()


@pytest.mark.processes
def test_clean_stops_and_removes_and_may_be_repeated(workspace, capsys):
    start_all(workspace.participants, 30, FAKE)
    status, body = poc_json(capsys, "clean", "-o", "json", "-w", str(workspace.root))
    assert (status, body["data"]) == (0, {"removed": str(workspace.root)})
    assert not workspace.root.exists()
    assert not any(marked_processes(home.root) for home in workspace.homes)
    status, body = poc_json(capsys, "clean", "-o", "json", "-w", str(workspace.root))
    assert (status, body["data"]) == (0, {"removed": None})


@pytest.mark.processes
def test_a_moved_workspace_works_from_its_new_place(workspace, tmp_path):
    shutil.move(workspace.root, tmp_path / "moved")
    moved = Workspace.open(tmp_path / "moved")
    try:
        start_all(moved.participants, 30, FAKE)
        assert moved.kit("server1").store == tmp_path / "moved" / "store"
    finally:
        moved.clean()


@pytest.mark.processes
def test_a_damaged_kit_can_still_be_stopped_and_cleaned(workspace, capsys):
    start_all(workspace.participants, 30, FAKE)
    (workspace.kit("site-1").startup / "fed_client.json").unlink()
    shutil.rmtree(workspace.kit("server1").startup)
    status, body = poc_json(capsys, "start", "-o", "json", "-w", str(workspace.root))
    assert (status, body["error"]["code"]) == (4, "BAD_KIT")
    _, body = poc_json(capsys, "status", "-o", "json", "-w", str(workspace.root))
    assert all(row["alive"] for row in body["data"])
    status, body = poc_json(capsys, "clean", "-o", "json", "-w", str(workspace.root))
    assert status == 0
    assert not any(live_processes(home) for home in workspace.homes)
    assert not workspace.root.exists()


# -- the scripts, with a real overseer


@pytest.mark.processes
def test_the_scripts_work_through_links_and_from_any_folder(workspace, tmp_path):
    startup = workspace.kit("overseer").startup
    (tmp_path / "bin").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "json.py").write_text("raise RuntimeError('imported from the working directory')\n")
    (tmp_path / "bin" / "up").symlink_to("../poc/overseer/startup/start.sh")
    environment = {**child_env(tmp_path, "test"), "FEDHELM_PYTHON": sys.executable}

    def run(*command):
        return subprocess.run(
            command,
            cwd=tmp_path / "elsewhere",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    up = run("../bin/up")
    pid = ParticipantLock.holder(workspace.kit("overseer").run)
    assert (up.returncode, up.stderr) == (0, "")
    log = workspace.kit("overseer").log_file
    assert up.stdout in {f"overseer {state}, pid {pid}, log {log}\n" for state in ("ready", "started")}
    again = run(str(startup / "start.sh"))
    assert again.returncode == 1
    assert again.stderr.startswith(f"error[ALREADY_RUNNING]: overseer is running already, pid {pid}")
    assert ParticipantLock.holder(workspace.kit("overseer").run) == pid
    down = run(str(startup / "stop_fl.sh"))
    assert (down.returncode, down.stdout) == (0, "overseer stopped\n")
    assert not live_processes(workspace.kit("overseer"))
    assert run(str(startup / "stop_fl.sh")).stdout == "overseer is not running\n"


@pytest.mark.processes
def test_start_reports_what_the_participant_died_of(workspace, base_port):
    startup = workspace.kit("overseer").startup
    environment = {**child_env(workspace.root, "test"), "FEDHELM_PYTHON": sys.executable}

    def start():
        return subprocess.run(
            [startup / "start.sh"], env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    with socket.socket() as other:
        other.bind(("127.0.0.1", base_port))
        other.listen()
        taken = start()
    assert taken.returncode == 1
    assert taken.stderr.startswith("error[PORT_TAKEN]: ")
    with (startup / "readme.txt").open("a") as file:
        file.write("mine\n")
    changed = start()
    assert changed.returncode == 4
    assert changed.stderr.startswith("error[BAD_KIT]: ")
    assert f"{startup / 'readme.txt'} was changed" in changed.stderr


@pytest.mark.processes
def test_foreground_stays_and_ends_at_sigterm(workspace):
    kit = workspace.kit("overseer")
    environment = {**child_env(workspace.root, "test"), "FEDHELM_PYTHON": sys.executable}
    with subprocess.Popen(
        [kit.startup / "start.sh", "--foreground"], env=environment, stdout=subprocess.DEVNULL
    ) as process:
        eventually_sync(lambda: is_ready(kit.run), 30)
        assert ParticipantLock.holder(kit.run) == process.pid
        process.terminate()
        assert process.wait(30) == 0
