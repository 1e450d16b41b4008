"""Processes: parents, locks, marks, files that are replaced whole; and the small modules round them."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedhelm import cli
from fedhelm import log as log_module
from fedhelm.clock import SystemClock, iso
from fedhelm.errors import AlreadyRunning
from fedhelm.process import (
    KIT_MARK,
    ROLE_MARK,
    MarkedProcess,
    ParticipantLock,
    atomic_write,
    child_env,
    marked_processes,
    read_state,
    write_state,
)
from fedhelm.tasks import cancel, spawn
from tests.support.waiting import eventually, eventually_sync


@contextmanager
def python(program, *arguments, env=None):
    """Run a program that prints a line when it is ready; it is gone at the end."""
    environment = {**(env or os.environ), "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    try:
        process.first = process.stdout.readline().strip()
        yield process
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


SLEEP = "import signal; print('ready', flush=True); signal.pause()"
LOCK = (
    "import sys, signal; from pathlib import Path; from fedhelm.process import ParticipantLock; "
    "lock = ParticipantLock(Path(sys.argv[1])); lock.acquire(); print('ready', flush=True); signal.pause()"
)


# -- the lock -----------------------------------------------------------------------------------------------------------


def test_one_process_runs_a_kit_and_the_next_is_told_which(tmp_path):
    run = tmp_path / "site-1" / "run"
    with python(LOCK, run) as process:
        assert process.first == "ready"
        assert ParticipantLock.holder(run) == process.pid
        with pytest.raises(AlreadyRunning, match=f"site-1 is running already, pid {process.pid}") as caught:
            ParticipantLock(run).acquire()
        assert "stop_fl.sh" in caught.value.hint
        process.kill()
        process.wait(10)
        assert ParticipantLock.holder(run) is None  # the kernel let go, whatever the file still says
        lock = ParticipantLock(run)
        lock.acquire()
        assert ParticipantLock.holder(run) == os.getpid()
        lock.release()
        lock.release()
    assert ParticipantLock.holder(run) is None


def test_nobody_holds_what_is_not_there(tmp_path):
    assert ParticipantLock.holder(tmp_path / "nothing") is None


def test_a_stale_pid_of_a_live_process_is_no_owner(tmp_path):
    (tmp_path / "pid").write_text(f"{os.getppid()}\n")
    lock = ParticipantLock(tmp_path)
    lock.acquire()
    assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
    lock.release()


def test_an_observer_is_waited_for(tmp_path):
    (tmp_path / "pid").touch()
    fd = os.open(tmp_path / "pid", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    taken = threading.Event()
    lock = ParticipantLock(tmp_path)

    def acquire():
        lock.acquire()
        taken.set()

    thread = threading.Thread(target=acquire)
    thread.start()
    assert not taken.wait(0.1)
    assert ParticipantLock.holder(tmp_path) is None  # two observers do not take each other for the owner
    os.close(fd)
    assert taken.wait(10)
    thread.join()
    lock.release()


def test_a_child_does_not_inherit_the_lock(tmp_path):
    lock = ParticipantLock(tmp_path)
    lock.acquire()
    with python(SLEEP):
        lock.release()
        assert ParticipantLock.holder(tmp_path) is None
        again = ParticipantLock(tmp_path)
        again.acquire()
        again.release()


# -- parents and marks --------------------------------------------------------------------------------------------------

CHILD = (
    "import os, signal, sys; from fedhelm.process import die_with_parent; die_with_parent(int(sys.argv[1])); "
    "print('child', os.getpid(), flush=True); signal.pause()"
)
PARENT = (
    "import os, subprocess, sys, signal; "
    f"subprocess.Popen([sys.executable, '-c', {CHILD!r}, str(os.getpid())]); signal.pause()"
)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_child_dies_with_its_parent_however_that_dies():
    with python(PARENT) as parent:
        word, pid = parent.first.split()
        assert word == "child"
        assert alive(int(pid))
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
        eventually_sync(lambda: not alive(int(pid)))


def test_a_child_whose_parent_is_gone_already_does_not_start():
    with python(CHILD, 1) as child:
        assert child.wait(10) == 1
        assert child.first == ""


def test_marked_processes_are_found_and_others_are_not(tmp_path):
    kit, other = tmp_path / "kit", tmp_path / "kit2"
    kit.mkdir()
    other.mkdir()
    assert marked_processes(kit) == []
    with (
        python(SLEEP, env=child_env(kit, "agent")) as one,
        python(SLEEP, env=child_env(kit, "job")) as two,
        python(SLEEP, env=child_env(other, "agent")),
        python(SLEEP),
    ):
        (tmp_path / "link").symlink_to(kit)
        for root in (kit, tmp_path / "link"):
            found = {(process.pid, process.mark, process.ppid) for process in marked_processes(root)}
            assert found == {(one.pid, "agent", os.getpid()), (two.pid, "job", os.getpid())}
        one.kill()
        one.wait(10)
        assert marked_processes(kit) == [MarkedProcess(two.pid, "job", os.getpid())]


def test_a_process_allows_itself_the_open_files_that_the_machine_lets_it_have():
    code = """
import resource, subprocess, sys
from fedhelm.process import OPEN_FILES, raise_open_files
hard = min(OPEN_FILES, int(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
assert raise_open_files() == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
assert raise_open_files() == hard
print(subprocess.check_output(["sh", "-c", "ulimit -n"], text=True).strip())
"""
    for hard in ("300", "500"):
        told = subprocess.run(
            [sys.executable, "-c", code, hard], capture_output=True, text=True, timeout=60, check=True
        )
        assert told.stdout.strip() == hard, "a child has it too"


def test_a_zombie_is_not_alive(tmp_path):
    with python("pass", env=child_env(tmp_path, "job")) as process:
        eventually_sync(lambda: not alive(process.pid))  # it has ended, and nobody has reaped it
        assert marked_processes(tmp_path) == []


def test_the_environment_of_a_child_is_marked_and_finds_the_same_code(tmp_path):
    env = child_env(tmp_path, "runner", {"PATH": "/bin"})
    assert (env[KIT_MARK], env[ROLE_MARK], env["PATH"]) == (str(tmp_path.resolve()), "runner", "/bin")
    with python("import fedhelm; print(fedhelm.__file__, flush=True)", env=env) as process:
        import fedhelm

        assert process.first == fedhelm.__file__


# -- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced_whole_with_its_mode(tmp_path, sync):
    path = tmp_path / "state"
    atomic_write(path, b"one", sync=sync)
    atomic_write(path, b"two", 0o640, sync=sync)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "state"
    atomic_write(path, b"one")
    with pytest.raises(TypeError):
        atomic_write(path, "text")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="No such file"):
        atomic_write(tmp_path / "nowhere" / "state", b"x")


def test_readers_never_see_half_a_file(tmp_path):
    path, seen, stop = tmp_path / "state", [], threading.Event()
    atomic_write(path, b"a" * 5000)

    def read():
        while not stop.is_set():
            seen.append(path.read_bytes())

    thread = threading.Thread(target=read)
    thread.start()
    for letter in b"bcdefgh" * 20:
        atomic_write(path, bytes([letter]) * 5000, sync=False)
    stop.set()
    thread.join()
    assert seen
    assert all(len(one) == 5000 and len(set(one)) == 1 for one in seen)


def test_the_state_says_who_wrote_it(tmp_path):
    assert read_state(tmp_path) is None
    write_state(tmp_path, ready=True, role="ACTIVE")
    assert read_state(tmp_path) == {"pid": os.getpid(), "ready": True, "role": "ACTIVE"}
    for nonsense in (b"", b"{", b"[]", b"\xff", b'"x"'):
        (tmp_path / "state.json").write_bytes(nonsense)
        assert read_state(tmp_path) is None


# -- tasks, clock, log, command -----------------------------------------------------------------------------------------


async def test_a_background_task_that_fails_is_heard_of(caplog):
    async def fail():
        raise ZeroDivisionError("a bug")

    async def wait():
        await asyncio.Event().wait()

    with caplog.at_level(logging.ERROR, logger="fedhelm.tasks"):
        spawn(fail(), "the failing one")
        await eventually(lambda: "the failing one" in caplog.text)
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()
    waiting = spawn(wait(), "the waiting one")
    await asyncio.sleep(0)
    await cancel(waiting, None)
    assert waiting.cancelled()
    assert caplog.text == ""


def test_the_clock_counts_from_boot_and_stamps_in_utc():
    clock = SystemClock()
    first = clock.boottime()
    assert 0 < first <= clock.boottime()
    stamp = iso(clock.utcnow())
    assert stamp.endswith("Z")
    assert len(stamp) == len("2026-11-22T15:04:05.123Z")


@pytest.fixture
def root_logger():
    root, ours = logging.getLogger(), logging.getLogger("fedhelm")
    before = root.handlers[:], root.level, ours.level
    yield root
    for handler in [one for one in root.handlers if one not in before[0]]:
        root.removeHandler(handler)
        handler.close()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def flush(logger):
    for handler in logger.handlers:
        handler.flush()


def test_a_disk_that_hangs_holds_nobody_who_writes_a_line(tmp_path, root_logger, monkeypatch):
    monkeypatch.setattr(log_module, "WAITING", 3)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log_module.setup("site-1", path, stdout=False)
    big = "x" * (1 << 20)  # more than a pipe takes: the thread that writes it waits
    logging.getLogger("fedhelm.x").info("0 %s", big)
    assert select.select([reader], [], [], 30)[0]
    for number in range(1, 8):
        logging.getLogger("fedhelm.x").info("%d", number)
    os.set_blocking(reader, True)
    with os.fdopen(reader) as file:
        assert file.readline().endswith(big + "\n")
        told = [file.readline().split(" INFO ")[1].strip() for _ in range(3)]
        logging.getLogger("fedhelm.x").info("after")
        told += [file.readline().split(" INFO ")[1].strip() for _ in range(2)]
    assert told == ["1", "2", "3", "4 lines were lost: the disk is slow", "after"]


def test_the_last_lines_of_a_process_are_written(tmp_path):
    program = (
        "import logging, sys; from pathlib import Path; from fedhelm.log import setup; "
        "setup('site-1', Path(sys.argv[1]), stdout=False)\n"
        "for number in range(500): logging.getLogger('fedhelm.x').info('line %d', number)\n"
        "raise SystemExit(3)"
    )
    path = tmp_path / "log.txt"
    done = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60, check=False)
    assert done.returncode == 3
    assert [line.rsplit(" ", 1)[1] for line in path.read_text().splitlines()] == [str(number) for number in range(500)]


def test_logs_go_to_the_file_with_name_and_utc_stamp(tmp_path, root_logger, capsys):
    path = tmp_path / "new" / "log.txt"
    log_module.setup("site-1", path, stdout=False)
    logging.getLogger("fedhelm.x").info("what happened")
    logging.getLogger("library").info("chatter")
    logging.getLogger("library").warning("careful")
    flush(root_logger)
    first, second = path.read_text().splitlines()
    assert first.endswith("Z site-1 INFO what happened")
    assert first[10] == "T"
    assert second.endswith("site-1 WARNING careful")
    assert capsys.readouterr().out == ""
    log_module.setup("site-1")  # again, elsewhere: nothing is doubled
    logging.getLogger("fedhelm.x").info("once")
    flush(root_logger)
    assert capsys.readouterr().out.count("once") == 1
    assert "once" not in path.read_text()


def test_the_command_explains_itself_and_refuses_what_it_does_not_know(capsys):
    assert cli.main(["-h"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("poc", "console", "overseer", "server", "client"))
    assert cli.main([]) == 2
    capsys.readouterr()
    assert cli.main(["consol"]) == 2
    assert "error[UNKNOWN_COMMAND]: no command 'consol' (hint: did you mean console" in capsys.readouterr().err
    assert cli.main(["zzz"]) == 2
    assert "fedhelm -h" in capsys.readouterr().err
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fedhelm ")


def test_the_command_loads_only_the_subcommand_that_is_used():
    program = (
        "import sys; from fedhelm.cli import main; main(['-h']); "
        "heavy = {'grpc', 'fastapi', 'rich', 'numpy', 'torch', 'cryptography'} & set(sys.modules); assert not heavy, heavy"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    subprocess.run([sys.executable, "-c", program], env=env, check=True, timeout=60, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(("command", "mask"), [("server", 0o077), ("console", 0o077), ("provision", 0o022)])
def test_what_a_participant_writes_is_for_its_user_alone(command, mask):
    program = (
        "import os, sys; from fedhelm.cli import run\n"
        "try: run()\nexcept SystemExit: sys.stdout.write(f'\\n{os.umask(0):03o}')"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, "-c", program, command, "-h"],
        env=env, check=True, timeout=60, capture_output=True, text=True, umask=0o022,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"{mask:03o}"
