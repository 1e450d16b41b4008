"""A real federation for scenarios: processes, ports, files; commanded as a user would, through the commands."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from fedhelm.persist.chain import Tip
from fedhelm.persist.record import decode
from fedhelm.persist.store import open_store
from fedhelm.process import marked_processes
from fedhelm.security.kit import open_kit
from tests.support.waiting import eventually_sync

FEDHELM = [sys.executable, "-m", "fedhelm.cli"]
PORTS = 40


def _free(port):
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_base_port(used=PORTS):
    """A range of free ports below those that the kernel gives to outgoing connections."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:] or 0)
    for _ in range(200):
        base = 12_000 + 8_000 * (worker % 2) + PORTS * random.randrange(200)
        if all(_free(port) for port in range(base, base + used)):
            return base
    raise AssertionError("no free range of ports")


class Answer:
    def __init__(self, completed):
        self.rc = completed.returncode
        self.out = completed.stdout
        self.err = completed.stderr
        lines = completed.stdout.splitlines()
        self.objects = [json.loads(line) for line in lines] if lines and lines[0].startswith("{") else []
        self.json = self.objects[0] if len(self.objects) == 1 else None

    def _status(self):
        return None if self.json is None else self.json["status"]

    @property
    def data(self):
        assert self._status() == "ok", (self.rc, self.out, self.err)
        return self.json["data"]

    @property
    def error(self):
        assert self._status() == "error", (self.rc, self.out, self.err)
        return self.json["error"]


class Federation:
    """One workspace. ``steps`` remembers what was done, for the message of a failed test."""

    def __init__(self, folder: Path, sites=2, servers=2, *, overseers=1, lease_store=None, env=None):
        """``env`` is the environment of the commands; None for this process's own."""
        self.folder = folder
        self.env = env
        folder.mkdir(parents=True, exist_ok=True)
        self.root = folder / "poc"
        self.sites = [f"site-{k}" for k in range(1, sites + 1)]
        self.servers = [f"server{k}" for k in range(1, servers + 1)]
        self.overseers = ["overseer", *(f"overseer{k}" for k in range(2, overseers + 1))]
        self.base_port = free_base_port(2 * servers + overseers)
        self.steps = []
        self.begun = []
        shared = ["--overseers", str(overseers), "--lease-store", lease_store] if lease_store else []
        numbers = ["-n", str(sites), "--servers", str(servers), "--base-port", str(self.base_port)]
        self.poc("prepare", *numbers, *shared).data  # noqa: B018
        (self.store / "archive").mkdir()  # what the log and the blobs lose stays readable for the checks at the end

    # -- commands -------------------------------------------------------------------------------------------------

    def run(self, *words, timeout=90, check=False, cwd=None, stdin=None):
        self.steps.append(" ".join(words))
        completed = subprocess.run(
            [*FEDHELM, *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd or self.folder,
            input=stdin,
            env=self.env,
        )
        assert not check or completed.returncode == 0, (words, completed.stdout, completed.stderr)
        return Answer(completed)

    def begin(self, *words):
        """Start a command and leave it running; what is still there at the end is killed."""
        self.steps.append(" ".join(words) + " &")
        # Tests that run in the background of a shell ignore Ctrl-C, and their children would inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = subprocess.Popen(
                [*FEDHELM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder
            )
        finally:
            signal.signal(signal.SIGINT, before)
        self.begun.append(process)
        return process

    def script(self, name, which):
        """Run one of a participant's own scripts, such as ``start.sh``."""
        self.steps.append(f"{name}: {which}")
        completed = subprocess.run(
            [str(self.kit(name) / "startup" / which)],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=self.env,
        )
        return Answer(completed)

    def start_one(self, name):
        answer = self.script(name, "start.sh")
        assert answer.rc == 0, (answer.out, answer.err, self.tails())

    def stop_one(self, name):
        answer = self.script(name, "stop_fl.sh")
        assert answer.rc == 0, (answer.out, answer.err)

    def poc(self, action, *words):
        return self.run("poc", action, *words, "-w", str(self.root), "-o", "json")

    def start(self):
        answer = self.poc("start")
        assert answer.rc == 0, (answer.out, answer.err, self.tails())
        return self

    def stop(self):
        answer = self.poc("stop")
        assert answer.rc == 0, (answer.out, answer.err)
        assert self.processes() == []

    @property
    def admin_kit(self):
        return self.root / "admin@nvidia.com"

    def console(self, command, *options, timeout=90):
        return self.run("console", str(self.admin_kit), "-o", "json", *options, "-c", command, timeout=timeout)

    def submit(self, job_folder):
        return self.console(f"submit_job {job_folder}").data["job_id"]

    def wait(self, job, timeout=60):
        return self.console(f"wait {job}", "--timeout", str(timeout)).data["status"]

    def show(self, job):
        return self.console(f"show_job {job}").data

    def download(self, job):
        return Path(self.console(f"download_job {job}", "--timeout", "60").data["path"])

    def primary(self):
        return self.console("get_active_sp").data

    def leader(self, above=0, timeout=20):
        """The primary's name, once one with an epoch above ``above`` leads."""

        def look():
            answer = self.console("get_active_sp")
            data = answer.json["data"]
            return data if answer.rc == 0 and data["epoch"] > above else None

        return eventually_sync(look, timeout, f"a primary above epoch {above}: {self.tails()}")

    # -- processes ------------------------------------------------------------------------------------------------

    def kit(self, name):
        return self.root / name

    def status(self, name=None):
        rows = self.poc("status").data
        return rows if name is None else next(row for row in rows if row["name"] == name)

    def pids(self, name, kind):
        """Process ids of one participant by kind: child, runner, nanny, job, or supervisor, agent, overseer."""
        return [one.pid for one in marked_processes(self.kit(name)) if one.mark == kind]

    def processes(self):
        names = [path for path in self.root.iterdir() if (path / "startup").is_dir()] if self.root.exists() else []
        return [(path.name, one.mark, one.pid) for path in names for one in marked_processes(path)]

    def kill(self, name, kind="child", sig=signal.SIGKILL):
        """Send a signal to one process of a participant, by pid."""
        pids = self.pids(name, kind)
        assert pids, f"{name} has no {kind}: {self.processes()}"
        self.steps.append(f"signal {sig.name} to {kind} of {name}: {pids}")
        for pid in pids:
            os.kill(pid, sig)
        return pids

    def kill_all(self, name):
        """What a power cut does to one participant."""
        for one in marked_processes(self.kit(name)):
            os.kill(one.pid, signal.SIGSTOP)
        for one in marked_processes(self.kit(name)):
            os.kill(one.pid, signal.SIGKILL)

    # -- the shared log -------------------------------------------------------------------------------------------

    @property
    def store(self):
        return open_kit(self.kit(self.servers[0])).store

    def records(self):
        """Every record of the log, its chain verified; also those that were deleted, where `archive` was made."""
        kit = open_kit(self.kit(self.servers[0]))
        batch = open_store(kit.store, kit.cluster).log.read_new()
        return (self._archived(kit.store, batch.base.covered) if batch.base else []) + batch.records

    @staticmethod
    def _archived(store, last):
        records, tip = [], Tip()
        for seq in range(last + 1):
            # The archive first: in the log, the number of an archived slot may be a ghost's, whom nobody reads.
            path = store / "archive" / "log" / f"{seq:016d}"
            path = path if path.exists() else store / "log" / path.name
            record = decode(path.read_bytes(), seq)
            assert (tip.broken_link(record), tip.overstepping(record)) == (None, None), f"slot {seq}"
            tip = tip.after(record)
            records.append(record)
        return records

    def check_log(self):
        """The invariants of the protocol that the log itself can show (I1, I3, I4, I8, I9)."""
        records = self.records()
        epochs = [one.epoch for one in records]
        assert epochs == sorted(epochs), "epochs never decrease"
        fences = [one for one in records if one.kind == "fence"]
        assert len({one.epoch for one in fences}) == len(fences), "one fence per epoch"
        writers = {one.epoch: one.by for one in records if one.kind in ("fence", "epoch_repair")}
        assert all(one.by == writers[one.epoch] for one in records if one.epoch), "one writer per epoch"
        given, closed, ephemeral = {}, set(), set()
        for record in records:
            if record.kind == "job_submitted" and record.body["config"].get("durability") == "ephemeral":
                ephemeral.add(record.body["job"])
            for item in record.body.get("items", (record.body,)):
                if record.kind == "contribution":
                    key = tuple(item[name] for name in ("job", "attempt", "step", "round", "kind"))
                    assert key not in closed, f"{item['site']} contributed to a closed round: slot {record.seq}"
                    sites = given.setdefault(key, [])
                    assert item["site"] not in sites, f"{item['site']} contributed twice: slot {record.seq}"
                    sites.append(item["site"])
                elif record.kind == "round_close":
                    key = tuple(item[name] for name in ("job", "attempt", "step", "round", "kind"))
                    assert key not in closed, f"a round was closed twice: slot {record.seq}"
                    closed.add(key)
                    if item["job"] not in ephemeral:
                        assert item["members"] == sorted(given[key]), f"not those who contributed: slot {record.seq}"

    def log(self, name):
        path = self.kit(name) / "log.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def tails(self):
        names = [*self.overseers, *self.servers, *self.sites]
        return "\n".join([*self.steps, *(f"--- {name}\n" + self.log(name)[-1500:] for name in names)])

    def close(self):
        for process in self.begun:
            with process:  # closes its pipes, and waits for it
                process.kill()
        self.run("poc", "stop", "-w", str(self.root))
        if self.root.exists():
            self._check_left()

    def _check_left(self):
        left = self.processes()
        for path in self.root.iterdir():
            if (path / "startup").is_dir():
                for one in marked_processes(path):
                    os.kill(one.pid, signal.SIGKILL)
        assert left == [], f"processes were left behind: {left}"
        self.check_log()
