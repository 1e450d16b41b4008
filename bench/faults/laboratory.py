"""A federation to be broken: made from kits, over wires that can fail, kept over many trials."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from bench.faults.history import Watch
from bench.faults.probe import Ack, read_acks
from bench.faults.stalls import Stalls
from bench.federation import now, until
from fedhelm.admin.session import Session, connect
from fedhelm.config.kit import SQLITE, Kit, read_kit
from fedhelm.errors import FedhelmError
from fedhelm.persist import init_store
from fedhelm.process import MarkedProcess, ParticipantLock, marked_processes
from fedhelm.provision.kits import write_kit
from fedhelm.provision.launch import Launched, is_ready, spawn
from fedhelm.provision.project import Participant, Project
from fedhelm.provision.stop import Home, stop_all
from fedhelm.security.pki import CertificateAuthority
from fedhelm_lab.demo_acts import free_base_port
from fedhelm_lab.whole_log import ARCHIVE
from tests.support.postgres import Postgres, why_not
from tests.support.proxy import Wires

__all__ = ["ADMIN", "CLOCK_NOTICED", "PROBE", "VARIANTS", "Laboratory", "NotPossibleError", "Variant", "laboratory"]

ADMIN = "admin@nvidia.com"
PROBE = "probe"
_HOST = "127.0.0.1"
_WHOLE_SECONDS = 60.0
_HOLD_DOWN_SECONDS = 35.0
CLOCK_NOTICED = 1
"""Seconds until a step of a faked clock is noticed."""
_FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")  # Debian's package libfaketime
_TMPFS_BYTES = 96 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a federation is made.

    Attributes:
        name: in the results.
        servers: how many.
        sites: how many train; the probe is one more.
        wired: a proxy between servers and overseers, and between sites and servers.
        mounted: each server reaches the store through a mount of its own (needs root).
        small_disk: the store is a small tmpfs (needs root).
        overseers: how many; two need PostgreSQL.
        faked_clocks: servers and overseers run under libfaketime, so that their wall clocks can be set.
    """

    name: str
    servers: int = 2
    sites: int = 2
    wired: bool = False
    mounted: bool = False
    small_disk: bool = False
    overseers: int = 1
    faked_clocks: bool = False


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        one.name: one
        for one in (
            Variant("plain"),
            Variant("three", servers=3),
            Variant("wired", wired=True),
            Variant("mounted", mounted=True),
            Variant("small-disk", small_disk=True),
            Variant("pair", overseers=2, wired=True),
            Variant("clocks", faked_clocks=True),
        )
    }
)


class NotPossibleError(Exception):
    """This machine cannot do it; the message says why."""


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], check=False, capture_output=True, text=True, timeout=10)
    if done.returncode:
        raise NotPossibleError(f"mounting needs root: {done.stderr.strip()}")


def _unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True, timeout=10)


class Laboratory:
    """One federation with its probe, its watch of the log, and an admin's session.

    Args:
        folder: is made its own; everything is below it.
        variant: how it is made.
    """

    def __init__(self, folder: Path, variant: Variant) -> None:
        self.folder = folder
        self.variant = variant
        self.root = folder / "poc"
        self.root.mkdir(parents=True)
        self.store = self.root / "store"
        self.servers = tuple(f"server{k}" for k in range(1, variant.servers + 1))
        self.sites = tuple(f"site-{k}" for k in range(1, variant.sites + 1))
        self.trials = 0
        self.jobs = 0
        self.broken = False
        self.wires: Wires | None = None
        self.overseers = ("overseer", *(f"overseer{k}" for k in range(2, variant.overseers + 1)))
        self._ports = free_base_port(40)
        self.postgres: Postgres | None = None
        self._mounts: list[Path] = []
        self._wire_ports: dict[str, tuple[int, int]] = {}
        self._session: Session | None = None
        self._probe: subprocess.Popen[bytes] | None = None
        self._watch: Watch | None = None
        self._launched: list[Launched] = []
        self.stalls = Stalls(folder / "stalls")
        self.probe_job = ""
        self.names: tuple[str, ...] = ()

    # -- making it ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Write all kits and the store.

        Raises:
            NotPossibleError: this machine lacks what the variant needs.
        """
        project = Project(
            name="laboratory",
            participants=(
                *(
                    Participant(name, "overseer", "nvidia", _HOST, (self._ports + 11 * k,))
                    for k, name in enumerate(self.overseers)
                ),
                *(
                    Participant(name, "server", "nvidia", _HOST, (self._ports + 2 * k + 1, self._ports + 2 * k + 2))
                    for k, name in enumerate(self.servers)
                ),
                *(Participant(name, "site", "nvidia", enable_byoc=True) for name in (*self.sites, PROBE)),
                Participant(ADMIN, "project_admin", "nvidia"),
            ),
            store="../store",
            lease_store=self._lease_store(),
        )
        authority = self._authority = CertificateAuthority.create(project.name)
        self._project = project
        if self.variant.small_disk:
            self.store.mkdir()
            _mount("-t", "tmpfs", "-o", f"size={_TMPFS_BYTES},mode=0700", "tmpfs", str(self.store))
            self._mounts.append(self.store)
        init_store(self.store, project.cluster, project.name)
        (self.store / ARCHIVE).mkdir()
        for participant in project.participants:
            write_kit(self._view(project, participant), participant, authority, self.root)
        for name in self.servers if self.variant.mounted else ():
            self.mount(name)
        self.names = tuple(one.name for one in project.participants if one.name not in (PROBE, ADMIN))
        if self._wire_ports:
            self.wires = Wires(self._wire_ports)
            self.heal_wires()

    def second_kit(self, server: str) -> Path:
        """Write another kit of a server's name, whose ports are free, and return its folder."""
        folder = self.root / f"second-{self.trials}"
        folder.mkdir()
        ports = (self._ports + 38, self._ports + 39)
        participants = tuple(
            dataclasses.replace(one, ports=ports) if one.name == server else one for one in self._project.participants
        )
        project = dataclasses.replace(self._project, participants=participants, store=str(self.store))
        mine = next(one for one in participants if one.name == server)
        return write_kit(project, mine, self._authority, folder)

    def _lease_store(self) -> str:
        if self.variant.faked_clocks and not _FAKETIME.exists():
            raise NotPossibleError(f"libfaketime is not installed ({_FAKETIME})")
        if self.variant.overseers == 1:
            return SQLITE
        if (reason := why_not()) is not None:  # type: ignore[no-untyped-call]
            raise NotPossibleError(reason)
        self.postgres = Postgres()  # type: ignore[no-untyped-call]
        return str(self.postgres.url(self.postgres.database()))  # type: ignore[no-untyped-call]

    def _view(self, project: Project, who: Participant) -> Project:
        """Return the project as one participant's kit says it: others are dialled through its own wires."""
        store = str(self.root / "mounts" / who.name) if self.variant.mounted else project.store
        if not self.variant.wired or who.role not in ("server", "site"):
            return dataclasses.replace(project, store=store)
        others = tuple(
            dataclasses.replace(one, ports=(self._wire(who, one), *one.ports[1:]))
            if (one.role == "overseer" or (one.role == "server" and who.role == "site"))
            else one
            for one in project.participants
        )
        return dataclasses.replace(project, participants=others, store=store)

    def _wire(self, who: Participant, to: Participant) -> int:
        port = self._ports + 12 + len(self._wire_ports)
        self._wire_ports[f"{who.name}>{to.name}"] = (port, to.ports[0])
        return port

    def mount(self, server: str) -> None:
        """Let a server reach the store (``mounted`` only)."""
        path = self.root / "mounts" / server
        path.mkdir(parents=True, exist_ok=True)
        _mount("--bind", str(self.store), str(path))
        self._mounts.append(path)

    def unmount(self, server: str) -> None:
        """Take the store away from one server: its path is an empty directory then."""
        _unmount(self.root / "mounts" / server)

    # -- running it ---------------------------------------------------------------------------------------------------

    def kit(self, name: str) -> Kit:
        """Read a participant's kit."""
        return read_kit(self.root / name)

    def start(self) -> None:
        """Start everything, the probe too, and wait until the probe is acknowledged."""
        for name in self.names:
            self.restart(name)
        self.wait_ready(*self.names)
        self._watch = Watch(self.store).start()
        self.stalls.start()
        self.probe_job = self.session.submit(self._probe_job()).job_id
        arguments = [sys.executable, "-m", "bench.faults.probe", str(os.getpid())]
        arguments += [str(self.root / PROBE), self.probe_job, str(self._acks)]
        with (self.folder / "probe.log").open("ab") as log:
            self._probe = subprocess.Popen(arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.wait_whole()

    def _probe_job(self) -> Path:
        # It never contributes: its job's first round stays open for as long as the federation lives.
        root = self.folder / "probe-job"
        (root / "app").mkdir(parents=True)
        (root / "app" / "train.py").write_text("")
        (root / "job.yaml").write_text(
            f"name: probe\ndeploy: {{app: [{PROBE}]}}\nworkflow: [{{type: fedavg, rounds: 1}}]\n"
        )
        return root

    @property
    def _acks(self) -> Path:
        return self.folder / "acks.txt"

    def acks(self) -> list[Ack]:
        """Return what the probe saw so far."""
        return read_acks(self._acks)

    @property
    def watch(self) -> Watch:
        """The watch of the log."""
        assert self._watch is not None
        return self._watch

    @property
    def session(self) -> Session:
        """An open session of the admin; it dials without a proxy."""
        if self._session is None:
            self._session = connect(self.root / ADMIN)
        return self._session

    @property
    def low_water(self) -> int:
        """The first slot of the log that still counts."""
        marks = sorted(path for path in (self.store / "marks").glob("*") if path.name.isdigit())
        return int(json.loads(marks[-1].read_bytes())["low_water"]) if marks else 0

    @property
    def compactions(self) -> int:
        """How often the log was shortened."""
        return sum(path.name.isdigit() for path in (self.store / "marks").glob("*"))

    def primary(self) -> str:
        """Name of the server whose fence is the last one in the log."""
        return next(one.record.by.name for one in reversed(self.watch.seen) if one.record.kind == "fence")

    @property
    def is_rested(self) -> bool:
        """Whether no lease has expired lately: an expired one bars its loser from being chosen for 30 s."""
        recent = (one for one in self.watch.seen if now() - one.at < _HOLD_DOWN_SECONDS)
        return not any(one.record.kind == "fence" and one.record.body["cause"] == "lease expired" for one in recent)

    def wait_whole(self) -> None:
        """Wait until one server leads, all others stand by, all sites are connected, and the probe is acknowledged.

        Raises:
            TimeoutError: it is not, in a minute.
        """
        until(lambda: True if self._is_whole() else None, _WHOLE_SECONDS, "the federation is whole")
        mark = now()
        until(lambda: True if any(a.at > mark for a in self.acks()[-3:]) else None, _WHOLE_SECONDS, "the probe")

    def wait_candidates(self) -> None:
        """Wait until every standby could lead.

        Raises:
            TimeoutError: one could not, in a minute.
        """

        def look() -> bool | None:
            try:
                servers = self.session.servers(timeout=2.0)
            except FedhelmError:
                return None
            return all(one.candidate for one in servers if one.state == "STANDBY") or None

        until(look, _WHOLE_SECONDS, "every standby could lead")

    def _is_whole(self) -> bool:
        try:
            states = sorted(one.state for one in self.session.servers(timeout=2.0))
            if states != sorted(["ACTIVE", *["STANDBY"] * (len(self.servers) - 1)]):
                return False
            status = self.session.check_status(timeout=2.0)
        except FedhelmError:
            return False
        return all(site.connected for site in status.sites) and len(status.sites) == len(self.sites) + 1

    # -- processes ----------------------------------------------------------------------------------------------------

    def processes(self, name: str, *marks: str) -> list[MarkedProcess]:
        """Return the live processes of a participant, those with these marks only if any are given."""
        found = marked_processes(self.root / name)
        return [one for one in found if not marks or one.mark in marks]

    def pid(self, name: str, mark: str) -> int:
        """Return the id of the one process with this mark; waits for it.

        Raises:
            TimeoutError: there is none.
        """

        def look() -> int | None:
            return next((one.pid for one in self.processes(name, mark)), None)

        return until(look, 20, f"a {mark} of {name}")

    def restart(self, name: str) -> Launched | None:
        """Start a participant that does not run; None if it does."""
        kit = self.kit(name)
        # What was killed may keep its files open while its last thread dies: it holds the lock, and runs no more.
        until(
            lambda: ParticipantLock.holder(kit.run) is None or bool(self.processes(name)) or None, 10, f"end of {name}"
        )
        if ParticipantLock.holder(kit.run) is not None:
            return None
        with self._environment(name):
            self._launched.append(spawn(kit))
        return self._launched[-1]

    @contextlib.contextmanager
    def _environment(self, name: str) -> Iterator[None]:
        """Have processes that are started now believe the clock that `set_clock` set."""
        if not self.variant.faked_clocks or self._role(name) == "site":
            yield
            return
        if not self._clock(name).exists():
            self.set_clock(name, 0)
        faked = {
            "LD_PRELOAD": str(_FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock(name)),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": str(CLOCK_NOTICED),  # to look at each call costs too much
            # Its mend for waits under a faked monotonic clock, which ours is not, has threads spin for Python's lock.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }
        os.environ.update(faked)
        try:
            yield
        finally:
            for variable in faked:
                del os.environ[variable]

    def _clock(self, name: str) -> Path:
        return self.folder / f"clock-{name}"

    def set_clock(self, name: str, seconds: int) -> None:
        """Set the wall clock of a participant so many seconds ahead of the machine's (``faked_clocks`` only).

        It is noticed within :data:`CLOCK_NOTICED` seconds.
        """
        draft = self._clock(name).with_suffix(".draft")
        draft.write_text(f"{seconds:+d}")
        draft.replace(self._clock(name))

    def wait_ready(self, *names: str) -> None:
        """Wait until these say that they are ready."""
        until(lambda: True if all(is_ready(self.kit(n).run) for n in names) else None, 60, f"{names} are ready")

    def log(self, name: str) -> str:
        """Return a participant's log."""
        try:
            return (self.root / name / "log.txt").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def heal(self) -> None:
        """Undo every kind of fault that a trial may have left: wires, stopped processes, dead participants."""
        self.heal_wires()
        for name in self.names:
            for one in self.processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGCONT)
        for name in self.names:
            self.restart(name)

    def heal_wires(self) -> None:
        """Let all wires pass but those from sites to overseers, where sites would learn the servers' own addresses."""
        if self.wires is not None:
            keep = [name for name in self.wires.names if name.startswith("server") or ">server" in name]
            self.wires.set(keep, "pass")
            self.wires.set([name for name in self.wires.names if name not in keep], "reject")

    def close(self) -> None:
        """End everything; no process and no mount is left."""
        if self._watch is not None:
            self._watch.close()
            self.stalls.close()
        if self._session is not None:
            self._session.close()
        if self._probe is not None:
            with self._probe as probe:
                probe.kill()
        if self.wires is not None:
            with contextlib.suppress(OSError, ValueError):
                self.heal_wires()
        try:
            stop_all([Home(self.root / name, self._role(name), name) for name in self.names])
        finally:
            for one in self._launched:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    one.process.wait(5)
            if self.wires is not None:
                self.wires.close()
            for path in reversed(self._mounts):
                _unmount(path)
            if self.postgres is not None:
                self.postgres.close()  # type: ignore[no-untyped-call]

    @staticmethod
    def _role(name: str) -> str:
        return "overseer" if name.startswith("overseer") else "server" if name.startswith("server") else "site"


@contextlib.contextmanager
def laboratory(variant: Variant, keep: Path | None = None) -> Iterator[Laboratory]:
    """Make a federation and start it; when it is left, no process, mount or file of it is there.

    Args:
        variant: how it is made.
        keep: where to move its folder instead of removing it, when it is ``broken``.
    """
    folder = Path(tempfile.mkdtemp(prefix="fedhelm-faults-")).resolve()
    made = Laboratory(folder, variant)
    try:
        made.prepare()
        made.start()
        yield made
    finally:
        made.close()
        if keep is not None and made.broken and not made.variant.small_disk:
            keep.mkdir(parents=True, exist_ok=True)
            shutil.move(str(folder), keep / f"{time.strftime('%m%d-%H%M%S')}-{variant.name}")
        _remove(folder)


def _remove(folder: Path) -> None:
    if any(str(folder) in line for line in Path("/proc/mounts").read_text().splitlines()):
        raise RuntimeError(f"{folder} still holds a mount: it is left alone")
    shutil.rmtree(folder, ignore_errors=True)
