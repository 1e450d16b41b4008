"""From a project to kits: the run that makes a plan so."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fedhelm.clock import Clock, SystemClock
from fedhelm.config.kit import CERT_STEM
from fedhelm.errors import FedhelmError, KitError, WorkspaceExists
from fedhelm.process import atomic_write, fsync_dir
from fedhelm.provision.containers import project_files
from fedhelm.provision.issued import IssuedCertificate
from fedhelm.provision.kits import Identity, digest_of, write_kit
from fedhelm.provision.plan import Change, Happens, Plan, make_plan
from fedhelm.provision.project import Participant, Project
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.provision.zips import write_zip
from fedhelm.security.pki import CertificateAuthority, key_to_pem, load_certificate, load_key

__all__ = ["Secrets", "key_of", "provision", "public_key_of"]


@dataclasses.dataclass(frozen=True, repr=False)
class Secrets:
    """What a run may need: the root key's passphrase, the zips' passwords. None is ever shown.

    Attributes:
        passphrase: the root key's.
        zip_password: that of every zip.
        zip_passwords: gives that of a participant's zip by its name, in place of ``zip_password``.
        keep_keys: whether participants' private keys are kept in the state.
    """

    passphrase: bytes | None = None
    zip_password: bytes | None = None
    keep_keys: bool = False
    zip_passwords: Callable[[str], bytes] | None = None

    def password_of(self, name: str) -> bytes | None:
        """Return the password of one participant's zip; None: it opens without one."""
        return self.zip_password if self.zip_passwords is None else self.zip_passwords(name)


def provision(
    project: Project, source: bytes, workspace: Path, given: Secrets, *, clock: Clock | None = None
) -> tuple[ProjectFolder, Plan]:
    """Write what the project needs below ``workspace/<project>``: all of it, or nothing.

    Args:
        project: as the file says it; its cluster id counts only at the first run.
        source: the file itself, for ``resources/``.
        workspace: made if it is not there.
        given: passphrase and password.
        clock: for validity.

    Returns:
        The project's folder, and what was done.

    Raises:
        KitError: the root key's passphrase is missing or wrong, or the state is damaged.
        WorkspaceExists: the folder holds something else.
        FedhelmError: the operating system refuses.
    """
    clock = clock or SystemClock()
    place = workspace / project.name
    with _naming(place):
        _sweep(place)
        if (place / "state" / "project.json").is_file():
            folder = ProjectFolder.open(place)
            with folder.locked():
                folder.sweep()
                return folder, _run(project, source, folder, given, clock)
        return _first_run(project, source, place, given, clock)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an operating system's error into one line."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise FedhelmError(f"{where}: {error.strerror or error}", hint="nothing was left half done") from error


def _first_run(
    project: Project, source: bytes, place: Path, given: Secrets, clock: Clock
) -> tuple[ProjectFolder, Plan]:
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise WorkspaceExists(
            f"{place} exists, and no project was provisioned there: it has no state/project.json",
            hint="restore its state from a backup, or choose another workspace with -w",
        )
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft, lock = _draft(place)
    try:
        folder = ProjectFolder.create(
            draft, project.name, cluster=project.cluster, passphrase=given.passphrase, clock=clock
        )
        plan = _run(project, source, folder, given, clock)
        draft.rename(place)
        fsync_dir(place.parent)
    except BaseException:  # Ctrl-C too: nothing half done stays
        shutil.rmtree(draft, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    return ProjectFolder.open(place), plan


def _draft(place: Path) -> tuple[Path, int]:
    """Make the folder that a first run fills, and lock it for as long as that run lives."""
    while True:
        draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
        draft.mkdir(mode=0o700)
        lock = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if draft.is_dir():  # no other run swept it away before it was locked
            return draft, lock
        os.close(lock)


def _sweep(place: Path) -> None:
    """Remove what first runs left that were killed: a root key that is in no use."""
    for path in place.parent.glob(f".{place.name}.????????.tmp"):
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            except BlockingIOError:  # that run lives
                continue
            finally:
                os.close(lock)


def _run(project: Project, source: bytes, folder: ProjectFolder, given: Secrets, clock: Clock) -> Plan:
    project = folder.complete(project)
    plan = make_plan(project, folder, clock.utcnow())
    resources = {"project.yml": source} | {name: text.encode() for name, text in project_files(project).items()}
    if not plan.empty:
        authority = folder.authority(given.passphrase, clock=clock)
        version = folder.take_kit_version()
        draft = folder.draft(plan.number)
        try:
            task = _Task(project, plan, folder, authority, given)
            issued, digests, keys = _fill(task, draft, version)
            _revoke(folder, plan, authority, clock)
            folder.publish(plan.number, issued, digests)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        for name, pem in keys.items():  # the former one counts until the new kit is there
            folder.keep_key(name, key_to_pem(load_key(pem, "key"), given.passphrase))
    elif plan.unlisted:
        folder.revoke((), "", folder.authority(given.passphrase, clock=clock), by="provision", clock=clock)
    _write_resources(folder, resources)
    return plan


def _revoke(folder: ProjectFolder, plan: Plan, authority: CertificateAuthority, clock: Clock) -> None:
    """Take back what the plan says, and sign what a former run left unsigned."""
    for reason in sorted({reason for _, reason in plan.revoke} or ({""} if plan.unlisted else ())):
        serials = [one.serial for one, why in plan.revoke if why == reason]
        folder.revoke(serials, reason, authority, by="provision", clock=clock)


@dataclasses.dataclass(frozen=True, repr=False)
class _Task:
    """What one run works with."""

    project: Project
    plan: Plan
    folder: ProjectFolder
    authority: CertificateAuthority
    given: Secrets


def _fill(task: _Task, draft: Path, version: int) -> tuple[list[IssuedCertificate], dict[str, str], dict[str, bytes]]:
    """Write every kit and its zip into the draft; return what was issued, the kits' digests, and the keys to keep."""
    project, plan, authority, given = task.project, task.plan, task.authority, task.given
    changes = {one.name: one for one in plan.changes}
    issued: list[IssuedCertificate] = []
    digests: dict[str, str] = {}
    keys: dict[str, bytes] = {}
    for one in project.participants:
        change = changes[one.name]
        if change.happens in (Happens.REVOKED, Happens.WAITS):
            continue
        identity = _identity(task, one, change)
        if change.cert is None:
            own = change.again is not None
            issued.append(IssuedCertificate.of(identity.cert, project.name, version, plan.number, own_key=own))
        if given.keep_keys and identity.key is not None:
            keys[one.name] = identity.key
        root = write_kit(project, one, authority, draft, identity=identity, version=version)
        write_zip(root, draft / f"{one.name}.zip", given.password_of(one.name))
        _to_disk(root / "startup" / f"{CERT_STEM[one.role]}.key")
        digests[one.name] = digest_of(project, one, authority.cert_pem, identity.cert)
    fsync_dir(draft)
    return issued, digests, keys


def _identity(task: _Task, participant: Participant, change: Change) -> Identity:
    role, name, org = participant.role, participant.name, participant.org
    if change.cert is not None:
        cert = change.cert.encode()
        key = None if change.own_key else key_of(task.folder, participant, cert, task.given.passphrase)
        return Identity(cert, key)
    if change.again is not None:
        return Identity(task.authority.issue_for(public_key_of(change.again.encode(), name), role, name, org), None)
    new = task.authority.issue(role, name, org)
    return Identity(new.cert, new.key)


def public_key_of(cert: bytes, name: str) -> ec.EllipticCurvePublicKey:
    """Return the key of a participant's certificate (PEM).

    Raises:
        KitError: it has another kind of key than this project uses.
    """
    public = load_certificate(cert, name).public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise KitError(f"{name}: its certificate has no ECDSA key")
    return public


def _to_disk(path: Path) -> None:
    """Keep a key from being lost with the power: everything else can be made again, and the zip has it."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        os.fsync(file.fileno())


def key_of(folder: ProjectFolder, participant: Participant, cert: bytes, passphrase: bytes | None) -> bytes | None:
    """Return the key of this certificate from where it still is: a former ``prod_NN``, or what was kept."""
    public = load_certificate(cert, "certificate").public_key()
    name = f"{CERT_STEM[participant.role]}.key"
    found = [prod / participant.name / "startup" / name for prod in reversed(folder.prods)]
    for path in found:
        with contextlib.suppress(FileNotFoundError, KitError):
            pem = path.read_bytes()
            if load_key(pem, str(path)).public_key() == public:
                return pem
    kept = folder.kept_key(participant.name)
    with contextlib.suppress(KitError):  # encrypted under another passphrase: the participant has it, nobody else
        if kept is not None and (key := load_key(kept, name, passphrase)).public_key() == public:
            return key_to_pem(key)
    return None


def _write_resources(folder: ProjectFolder, resources: Mapping[str, bytes]) -> None:
    folder.resources.mkdir(mode=0o755, exist_ok=True)
    for name, data in resources.items():
        path = folder.resources / name
        if not path.is_file() or path.read_bytes() != data:
            atomic_write(path, data, mode=0o644, sync=False)
