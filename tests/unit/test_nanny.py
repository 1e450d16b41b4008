import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from fedhelm.errors import BadInput
from fedhelm.process import marked_processes, set_subreaper
from fedhelm_client.job_process import JobPlan, JobProcess, failure_of
from fedhelm_client.nanny import LineCutter
from fedhelm_client.tree import below
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes


class Job:
    """A job process below a nanny below this process."""

    def __init__(self, root):
        self.root = root
        self.lines = []
        self.ended = []
        self.process = JobProcess(root, "a23456723456", self.lines.extend, self.ended.append)
        for name in ("app", "work"):
            (root / name).mkdir(exist_ok=True)

    async def start(self, script, **env):
        (self.root / "app" / "train.py").write_text(script)
        plan = JobPlan(
            self.root / "app" / "train.py",
            self.root / "app",
            self.root / "work",
            protect=(self.root / "secret",),
            read=(),
            write=(),
        )
        await self.process.start(plan, self.root / "plan.json", self.root / "log.txt", env)

    async def end(self):
        await asyncio.wait_for(self.process.wait(), 20)
        return self.ended[0]

    def pid_in(self, name):
        path = self.root / "work" / name
        return int(path.read_text()) if path.exists() and path.read_text().strip() else None


@pytest.fixture
async def job(tmp_path):
    job = Job(tmp_path)
    yield job
    await job.process.stop(0)
    await eventually(lambda: marked_processes(tmp_path) == [], what="no process is left")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def environment_of(pid):
    return Path(f"/proc/{pid}/environ").read_bytes()


async def test_a_script_runs_as_main_in_its_work_folder_with_its_app_on_the_path(job):
    (job.root / "app").mkdir(exist_ok=True)
    (job.root / "app" / "model.py").write_text("NAME = 'net'")
    (job.root / "secret").mkdir()
    await job.start(
        "import os, sys, model\n"
        "assert __name__ == '__main__'\n"
        "print(model.NAME, os.getcwd(), os.environ['EXTRA'], os.environ['FEDHELM_PROCESS'], sys.argv)",
        EXTRA="x",
    )
    ended = await job.end()
    assert (ended.status, ended.signal) == (0, None)
    expected = f"net {job.root}/work x job ['{job.root}/app/train.py']"
    assert job.lines == [expected]
    assert (job.root / "log.txt").read_text() == expected + "\n"


async def test_of_the_agent_s_environment_a_script_gets_what_it_needs_and_what_the_site_names(job, monkeypatch):
    monkeypatch.setenv("SITE_DB_PASSWORD", "hunter2")
    monkeypatch.setenv("DATA_ROOT", "/data")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (job.root / "local").mkdir()
    (job.root / "local" / "site.json").write_text('{"environment": ["DATA_ROOT"]}')
    await job.start(
        "import os\n"
        "assert 'hunter2' not in str(os.environ)\n"
        "print(*map(os.environ.get, ('DATA_ROOT', 'OMP_NUM_THREADS', 'SITE_DB_PASSWORD', 'FEDHELM_JOB', 'FEDHELM_KIT')))"
    )
    assert b"hunter2" not in environment_of(job.process.pid)
    ended = await job.end()
    assert (ended.status, ended.traceback) == (0, "")
    assert job.lines == [f"/data 1 None a23456723456 {job.root}"]


async def test_a_mistake_in_the_site_s_settings_starts_nothing(job):
    (job.root / "local").mkdir()
    (job.root / "local" / "site.json").write_text('{"environment": 7}')
    with pytest.raises(BadInput, match=r"site.json:1:2: environment: a list of names is needed"):
        await job.start("pass")
    assert job.process.pid is None


async def test_an_exception_is_reported_with_the_script_s_own_frames(job):
    await job.start("def f():\n    raise ValueError('boom')\n\nf()\n")
    ended = await job.end()
    assert failure_of(ended)[0] == "ValueError: boom"
    assert ended.traceback.startswith("Traceback (most recent call last):\n  File")
    assert 'train.py", line 4, in <module>' in ended.traceback
    assert "runpy" not in ended.traceback
    assert "raise ValueError('boom')" in (job.root / "log.txt").read_text()


@pytest.mark.parametrize(
    ("script", "status", "reason", "text"),
    [
        ("import sys; print('bye'); sys.exit(3)", 3, "the script exited with status 3", "bye"),
        ("import sys; sys.exit('no data here')", 1, "the script exited with status 1", "no data here"),
        ("def f(:\n", 1, "SyntaxError", "def f(:"),
        ("raise KeyboardInterrupt", 1, "KeyboardInterrupt", "KeyboardInterrupt"),
        ("pass", 0, "the script returned before the job ended", ""),
    ],
)
async def test_other_ends(job, script, status, reason, text):
    await job.start(script)
    ended = await job.end()
    assert ended.status == status
    assert failure_of(ended)[0].startswith(reason)
    assert text in failure_of(ended)[1]


@pytest.mark.parametrize("report", [b"[1]", b"7", b"{", b"[" * 20_000])
async def test_what_a_script_writes_to_the_report_is_only_a_report(job, report):
    await job.start(
        f"import os, sys\nos.write(int(sys.orig_argv[sys.orig_argv.index('--report-fd') + 1]), {report!r})\nos._exit(3)"
    )
    ended = await job.end()
    assert (ended.status, failure_of(ended)[0]) == (3, "the script exited with status 3")


async def test_a_crash_names_the_signal(job):
    await job.start("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    ended = await job.end()
    assert failure_of(ended)[0] == "the script was killed by SIGSEGV"
    assert "Fatal Python error" in failure_of(ended)[1]


async def test_a_long_traceback_is_cut_at_its_beginning(job):
    await job.start("raise ValueError('x' * 100_000 + 'end')")
    ended = await job.end()
    assert len(ended.traceback.encode()) <= 16 * 1024
    assert ended.traceback.rstrip().endswith("end")


GRANDCHILDREN = """
import os, signal, subprocess, sys, time
def note(name):
    with open(name + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(name + ".new", name)
if os.fork() == 0:                     # an ordinary child, stopped
    note("stopped")
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)
if os.fork() == 0:                     # a daemon: own session, two forks, no environment
    os.setsid()
    if os.fork() == 0:
        note("before")
        os.execve(sys.executable, [sys.executable, "-c",
            "import os,signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
            "open('daemon.new','w').write(str(os.getpid())); os.rename('daemon.new','daemon'); time.sleep(600)"], {})
    os._exit(0)
note("script")
"""


async def grandchildren(job):
    pids = {}
    for name in ("stopped", "daemon", "script"):
        pids[name] = await eventually(lambda name=name: job.pid_in(name), what=name)
    return pids


async def test_descendants_end_with_the_script(job):
    await job.start(GRANDCHILDREN + "while not os.path.exists('go'): time.sleep(0.01)\n")
    pids = await grandchildren(job)
    assert all(alive(pid) for pid in pids.values())
    (job.root / "work" / "go").touch()
    ended = await job.end()
    assert ended.status == 0
    assert [name for name, pid in pids.items() if alive(pid)] == []


async def test_stop_asks_then_kills_the_whole_tree(job):
    await job.start(
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: open('asked', 'w').close())\n"
        + GRANDCHILDREN
        + "while True: time.sleep(600)\n"
    )
    pids = await grandchildren(job)
    await asyncio.wait_for(job.process.stop(grace=0.3), 10)
    assert (job.root / "work" / "asked").exists()
    assert [name for name, pid in pids.items() if alive(pid)] == []


async def test_a_script_that_obeys_is_not_waited_for(job):
    await job.start("import time\nopen('up', 'w').close()\ntime.sleep(600)\n")
    await eventually((job.root / "work" / "up").exists)
    began = time.monotonic()
    await job.process.stop(grace=60)
    assert time.monotonic() - began < 30
    assert job.ended[0].signal == signal.SIGTERM


async def test_a_stopped_script_is_ended_too(job):
    await job.start("import os, signal\nopen('up', 'w').close()\nos.kill(os.getpid(), signal.SIGSTOP)\n")
    await eventually((job.root / "work" / "up").exists)
    await asyncio.wait_for(job.process.stop(grace=0.3), 10)
    assert len(job.ended) == 1


async def test_the_life_line_ends_everything(job):
    await job.start(GRANDCHILDREN + "while True: time.sleep(600)\n")
    pids = await grandchildren(job)
    nanny = job.process.pid
    job.process._channel.close()  # what the kernel does when the agent is killed
    await eventually(lambda: not any(alive(pid) for pid in [nanny, *pids.values()]))


async def test_a_killed_nanny_is_reported_and_its_orphans_can_be_ended(job):
    from fedhelm_client.job_process import end_strays

    set_subreaper()
    await job.start(GRANDCHILDREN + "while True: time.sleep(600)\n")
    pids = await grandchildren(job)
    os.kill(job.process.pid, signal.SIGKILL)
    ended = await job.end()
    assert failure_of(ended)[0] == "the nanny of the job was killed"
    await end_strays(set())
    assert [name for name, pid in pids.items() if alive(pid)] == []


async def test_output_without_end_does_not_stop_the_nanny(job):
    await job.start("import os\nfor n in range(20_000): print('line', n)\nprint('x' * 10_000)\nprint('last', end='')\n")
    ended = await job.end()
    assert ended.status == 0
    assert job.lines[0] == "line 0"
    assert job.lines[-1] == "last"
    log = (job.root / "log.txt").read_text().splitlines()
    assert len(log) == 20_002
    assert ended.tail.endswith("last")


def test_lines_are_cut_wherever_the_bytes_were():
    cutter = LineCutter()
    assert cutter.feed(b"a\nb") == ["a"]
    assert cutter.feed(b"c\r\n\n") == ["bc", ""]
    assert cutter.feed(b"\xff\xc3") == []
    assert cutter.feed(b"\xbc") == []
    assert cutter.end() == ["�ü"]
    assert cutter.end() == []
    assert cutter.feed(b"x" * 5000) == ["x" * 4096]
    assert cutter.feed(b"y\n") == ["y"]


def test_a_tree_is_found_from_parents():
    assert sorted(below(1, {1: 0, 2: 1, 3: 2, 4: 3, 5: 0, 6: 5})) == [2, 3, 4]
    assert below(9, {1: 0}) == []
