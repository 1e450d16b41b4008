"""A POC workspace: a whole federation on this machine, a folder for each participant."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedhelm.config.kit import SQLITE, Kit, read_kit
from fedhelm.errors import BadInput, FedhelmError, NotFound, PortTaken, Refused, WorkspaceExists
from fedhelm.plain_json import parse_plain
from fedhelm.process import ParticipantLock, marked_processes
from fedhelm.provision.kits import write_kits
from fedhelm.provision.launch import is_ready, obstacle, start_all
from fedhelm.provision.project import Participant, Project
from fedhelm.provision.stop import Home, stop_all
from fedhelm.security.pki import CertificateAuthority
from fedhelm_lab.example_jobs import stage_examples

__all__ = ["ADMIN", "MARKER", "READY_TIMEOUT", "Workspace", "check_ports", "plan", "prepare"]

ADMIN = "admin@nvidia.com"
MARKER = ".fedhelm-workspace.json"  # only a folder that holds it is ever stopped or removed
READY_TIMEOUT = 60.0

_HOST = "127.0.0.1"
_ORG = "nvidia"
_PROJECT = "poc"
_MAX_SERVERS = 19
_MAX_OVERSEERS = 9
_RANGE = 40  # with --base-port P nothing lies outside P..P+39
_MAX_SITES = 1000
_CHILD_MARKS = ("child", "runner", "nanny", "job")


def plan(
    sites: int, servers: int = 2, base_port: int | None = None, *, overseers: int = 1, lease_store: str = SQLITE
) -> Project:
    """Return the project of a POC.

    Args:
        sites: how many sites, ``site-1`` and so on.
        servers: how many servers; one has no standby.
        base_port: P: overseer P, server k P+2k-1 and P+2k, then the other overseers. Without it: 8443, 9443 and so on;
            8002/8003, 9002/9003 and so on.
        overseers: how many overseers: ``overseer``, ``overseer2`` and so on.
        lease_store: see :class:`fedhelm.provision.project.Project`; several overseers need a URL.

    Raises:
        BadInput: a number out of its range.
    """
    if not 1 <= sites <= _MAX_SITES:
        raise BadInput(f"-n {sites}: 1 to {_MAX_SITES} sites")
    if not 1 <= servers <= _MAX_SERVERS:
        raise BadInput(f"--servers {servers}: 1 to {_MAX_SERVERS} servers")
    if not 1 <= overseers <= _MAX_OVERSEERS:
        raise BadInput(f"--overseers {overseers}: 1 to {_MAX_OVERSEERS} overseers")
    ports_used = overseers + 2 * servers
    if base_port is not None and ports_used > _RANGE:
        raise BadInput(f"--base-port: {overseers} overseers and {servers} servers need more than {_RANGE} ports")
    if base_port is not None and not 1 <= base_port <= 65536 - ports_used:
        raise BadInput(f"--base-port {base_port}: 1 to {65536 - ports_used} with {servers} servers")

    def ports(k: int) -> tuple[int, int]:
        first = 8002 + 1000 * (k - 1) if base_port is None else base_port + 2 * k - 1
        return first, first + 1

    def overseer(k: int) -> Participant:
        beyond = 0 if k == 1 else 2 * servers + k - 1
        port = 8443 + 1000 * (k - 1) if base_port is None else base_port + beyond
        return Participant("overseer" if k == 1 else f"overseer{k}", "overseer", _ORG, _HOST, (port,))

    return Project(
        name=_PROJECT,
        participants=(
            *(overseer(k) for k in range(1, overseers + 1)),
            *(Participant(f"server{k}", "server", _ORG, _HOST, ports(k)) for k in range(1, servers + 1)),
            *(Participant(f"site-{k}", "site", _ORG, enable_byoc=True) for k in range(1, sites + 1)),
            Participant(ADMIN, "project_admin", _ORG),
        ),
        store="../store",
        lease_store=lease_store,
    )


def check_ports(participants: Iterable[Participant]) -> None:
    """Raise PortTaken, naming every port that is in use and whose it would have been."""
    taken = []
    for participant in participants:
        for port in participant.ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is not taken
                try:
                    probe.bind((_HOST, port))
                except OSError as error:
                    if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                        raise
                    why = "is taken" if error.errno == errno.EADDRINUSE else "may not be opened by this user"
                    taken.append(f"port {port} of {participant.name} {why}")
    if taken:
        raise PortTaken("; ".join(taken), hint="stop what uses it, or choose others with --base-port")


def _write(project: Project, folder: Path) -> None:
    from fedhelm.persist import init_store

    authority = CertificateAuthority.create(project.name)
    kits = write_kits(project, authority, folder)
    state = folder / "state"
    state.mkdir(mode=0o700)
    (state / "rootCA.pem").write_bytes(authority.cert_pem)
    descriptor = os.open(state / "rootCA.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(authority.key_pem())
    init_store(folder / "store", project.cluster, project.name)
    stage_examples(kits[ADMIN] / "transfer")
    rows = [{"name": one.name, "role": one.role} for one in project.participants]
    body = {"schema_version": 1, "kind": "poc", "project": project.name, "participants": rows}
    (folder / MARKER).write_text(json.dumps(body, indent=2) + "\n")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an operating system's error about the workspace into one line."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise FedhelmError(f"{where}: {error.strerror or error}", hint="nothing was left half done") from error


def prepare(path: Path, project: Project) -> Workspace:
    """Write a workspace: all of it, or nothing.

    Args:
        path: the folder to make; it may exist if it is empty.
        project: see :func:`plan`.

    Raises:
        WorkspaceExists: the folder exists and is not empty.
        PortTaken: a port is in use; names port and participant.
        FedhelmError: the operating system refuses (no space, no right to write).
    """
    path = path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        ours = (path / MARKER).is_file()
        hint = f"`fedhelm poc clean -w {path}` removes it, or choose another with -w" if ours else "choose another, -w"
        raise WorkspaceExists(f"{path} exists and is not empty", hint=hint)
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise BadInput(f"{parent} is not a folder")
    check_ports(project.participants)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        draft.mkdir(mode=0o700)
        try:
            _write(project, draft)
            _put_in_place(draft, path)
        except BaseException:  # Ctrl-C too: no half workspace stays
            shutil.rmtree(draft, ignore_errors=True)
            raise
    return Workspace.open(path)


def _put_in_place(draft: Path, path: Path) -> None:
    try:
        draft.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise WorkspaceExists(f"{path} exists and is not empty") from error
        raise


@dataclasses.dataclass(frozen=True)
class Workspace:
    """A prepared workspace. ``homes`` are the participants' folders in project order, admins included."""

    root: Path
    homes: tuple[Home, ...]

    @classmethod
    def open(cls, path: Path) -> Workspace:
        """Find the workspace at ``path``.

        Raises:
            NotFound: there is nothing.
            Refused: the folder was not made by ``fedhelm poc prepare``.
        """
        root = path.resolve()
        if not root.is_dir():
            raise NotFound(f"{path}: no workspace", hint=f"fedhelm poc prepare -n 2 -w {path}")
        try:
            body = parse_plain((root / MARKER).read_bytes())
            homes = tuple(Home(root / row["name"], str(row["role"]), row["name"]) for row in body["participants"])
            ours = body["kind"] == "poc" and all(home.root.parent == root for home in homes)
        except (OSError, ValueError, KeyError, TypeError):
            ours, homes = False, ()
        if not ours or any(home.name in {"", ".", ".."} for home in homes):
            raise Refused(f"{path} was not made by `fedhelm poc prepare`; it is left alone")
        return cls(root, homes)

    @property
    def running_homes(self) -> tuple[Home, ...]:
        """The folders of those that have a process: all but the admins'."""
        return tuple(home for home in self.homes if home.role != "project_admin")

    @property
    def kits(self) -> tuple[Kit, ...]:
        """Every kit, read now, in project order, admins included.

        Raises:
            KitError: a kit's configuration is missing or cannot be read.
        """
        return tuple(read_kit(home.root) for home in self.homes)

    @property
    def participants(self) -> tuple[Kit, ...]:
        """The kits that have a process: all but the admins'.

        Raises:
            KitError: a kit's configuration is missing or cannot be read.
        """
        return tuple(read_kit(home.root) for home in self.running_homes)

    def kit(self, name: str) -> Kit:
        """Return the kit of one participant.

        Raises:
            NotFound: no participant has this name.
            KitError: its configuration is missing or cannot be read.
        """
        for home in self.homes:
            if home.name == name:
                return read_kit(home.root)
        raise NotFound(f"{self.root}: no participant is called {name}")

    def start(self, timeout: float = READY_TIMEOUT) -> list[str]:
        """Start what is not running and wait until all are ready; return who was started.

        Raises:
            FedhelmError: as :func:`fedhelm.provision.launch.start_all`.
        """
        return start_all(self.participants, timeout)

    def status(self) -> list[dict[str, Any]]:
        """Return a row for each participant, as ``fedhelm poc status -o json`` prints it."""
        return [_status(home) for home in self.running_homes]

    def stop(self) -> list[str]:
        """Stop everything and verify that nothing is left; return who was alive."""
        return stop_all(self.running_homes)

    def clean(self) -> None:
        """Stop everything and remove the folder; the marker goes last, so that it can be called again.

        Raises:
            FedhelmError: the operating system refuses.
        """
        self.stop()
        try:
            for entry in self.root.iterdir():
                if entry.name == MARKER:
                    continue
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            (self.root / MARKER).unlink()
            self.root.rmdir()
        except OSError as error:
            raise FedhelmError(f"{error.filename or self.root}: {error.strerror}") from error


def _status(home: Home) -> dict[str, Any]:
    pid = ParticipantLock.holder(home.run)
    children: dict[str, list[int]] = {mark: [] for mark in _CHILD_MARKS}
    for process in marked_processes(home.root):
        if process.mark in children:
            children[process.mark].append(process.pid)
    return {
        "name": home.name,
        "role": home.role,
        "pid": pid,
        "alive": pid is not None,
        "ready": is_ready(home.run),
        "children": {mark: sorted(pids) for mark, pids in children.items()},
        "reason": obstacle(home.run),
    }
