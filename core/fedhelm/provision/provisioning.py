"""From a project to kits: what has to change (a plan, without writing), and the run that makes it so."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature

from fedhelm.clock import Clock, SystemClock
from fedhelm.config.kit import CERT_STEM
from fedhelm.errors import FedhelmError, KitError, WorkspaceExists
from fedhelm.process import atomic_write, fsync_dir
from fedhelm.provision.containers import project_files
from fedhelm.provision.issued import IssuedCertificate
from fedhelm.provision.kits import Identity, digest_of, write_kit
from fedhelm.provision.project import Participant, Project
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.provision.zips import write_zip
from fedhelm.security.pki import CertificateAuthority, key_to_pem, load_certificate, load_key, load_roots

__all__ = ["Change", "Happens", "Plan", "Secrets", "make_plan", "provision"]

SOON: Final = timedelta(days=30)
"""A certificate that expires within this time is named."""

_REMOVED: Final = "removed from the project"
_CHANGED: Final = "role or organisation changed"


class Happens(enum.StrEnum):
    """What a run does for one participant."""

    NEW = "new"
    """Its first kit."""
    CERTIFICATE = "new certificate"
    """A kit with a new key and certificate."""
    KIT = "new kit"
    """The same key and certificate, and something else in the kit that changed."""
    SAME = "same"
    """The kit says what it said; the old one goes on as well."""
    REMOVED = "removed"
    """It is in the project no more."""
    REVOKED = "revoked"
    """No kit: somebody revoked it by name. Others' kits may name it still."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One participant's part of a plan. ``cert`` is the certificate that it keeps; PEM."""

    name: str
    role: str
    happens: Happens
    why: str = ""
    cert: str | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        number: that of its ``prod_NN``.
        changes: what happens to each participant.
        revoke: certificates that it takes back, and why.
        unlisted: certificates that were taken back by a run that broke off before it signed the list.
    """

    number: int
    changes: tuple[Change, ...]
    revoke: tuple[tuple[IssuedCertificate, str], ...] = ()
    unlisted: tuple[IssuedCertificate, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is no new ``prod_NN``."""
        return not self.revoke and all(one.happens in (Happens.SAME, Happens.REVOKED) for one in self.changes)

    @property
    def signs(self) -> bool:
        """Whether the root key is needed: for kits, or for the list of revoked certificates alone."""
        return not self.empty or bool(self.unlisted)


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


def make_plan(project: Project, folder: ProjectFolder | None, now: datetime) -> Plan:
    """Compare the project with what was made of it before; nothing is written, and no root key is needed.

    Args:
        project: as the file says it now.
        folder: what was made before; None before the first run.
        now: for certificates that expired.

    Raises:
        KitError: the state is damaged.
        BadInput: a value that no container can be told.
    """
    if folder is None:
        return Plan(0, tuple(Change(one.name, one.role, Happens.NEW) for one in project.participants))
    basis = _Basis(dataclasses.replace(project, cluster=folder.cluster), folder.trust.read_bytes(), now)
    issued, digests = folder.certificates(), folder.kit_digests
    changes = [_change(basis, one, issued, digests.get(one.name)) for one in project.participants]
    here = {one.name: one for one in project.participants}
    revoke: list[tuple[IssuedCertificate, str]] = []
    for certificate in issued:
        mine = here.get(certificate.name)
        if certificate.revoked or certificate.expired(now):
            continue
        if mine is not None and (mine.role, mine.org) != (certificate.role, certificate.org):
            revoke.append((certificate, _CHANGED))
        elif mine is None:
            revoke.append((certificate, _REMOVED))
    gone = [name for name in dict.fromkeys((*digests, *(one.name for one, _ in revoke))) if name not in here]
    roles = {one.name: one.role for one in issued}
    changes += [Change(name, roles.get(name, ""), Happens.REMOVED, "its certificate is revoked") for name in gone]
    last = folder.last_prod
    return Plan(0 if last is None else last + 1, tuple(changes), tuple(revoke), tuple(folder.unlisted()))


@dataclasses.dataclass(frozen=True)
class _Basis:
    """What every participant's part of the plan depends on."""

    project: Project
    roots: bytes
    now: datetime


def _change(basis: _Basis, participant: Participant, issued: Iterable[IssuedCertificate], digest: str | None) -> Change:
    name, role = participant.name, participant.role
    mine = [one for one in issued if one.name == name]
    valid = [one for one in mine if not one.revoked]
    if not mine:
        return Change(name, role, Happens.NEW)
    if not valid:
        return _after_revocation(mine[-1], role)
    newest = valid[-1]
    if why := _outdated(newest, basis, participant):
        return Change(name, role, Happens.CERTIFICATE, why)
    same = digest == digest_of(basis.project, participant, basis.roots, newest.cert_pem.encode())
    happens = Happens.SAME if same else Happens.KIT
    soon = newest.expired(basis.now + SOON)
    why = f"its certificate expires on {newest.not_after[:10]}" if soon else ""
    return Change(name, role, happens, why, newest.cert_pem)


def _after_revocation(last: IssuedCertificate, role: str) -> Change:
    # Whose line does not say who it was is of before that was written: its reason has to tell.
    if last.by == "provision" or (last.by is None and last.reason in (_REMOVED, _CHANGED)):
        return Change(last.name, role, Happens.CERTIFICATE, "the former one was revoked")
    # By name, by somebody: it does not come back because it is in the file still.
    why = f"on {(last.revoked_at or '')[:10]}: {last.reason}; fedhelm pki renew gives it a new certificate"
    return Change(last.name, role, Happens.REVOKED, why)


def _outdated(newest: IssuedCertificate, basis: _Basis, participant: Participant) -> str | None:
    """Return why a participant needs another certificate than its newest one; None: it keeps that."""
    told = (("role", newest.role, participant.role), ("organisation", newest.org, participant.org))
    for what, before, after in told:
        if before != after:
            return f"{what} was {before}, is {after}"
    if newest.expired(basis.now):
        return f"the former one expired on {newest.not_after[:10]}"
    if not _issued_by(newest.cert_pem.encode(), basis.roots):
        return "the former one is of a root that is trusted no more"
    return None


def _issued_by(cert: bytes, roots: bytes) -> bool:
    certificate = load_certificate(cert, "certificate")
    for root in load_roots(roots, "rootCA.pem"):
        with contextlib.suppress(ValueError, TypeError, InvalidSignature):
            certificate.verify_directly_issued_by(root)
            return True
    return False


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
        if (place / "state" / "project.json").is_file():
            folder = ProjectFolder.open(place)
            with folder.locked():
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
    draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
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
    return ProjectFolder.open(place), plan


def _run(project: Project, source: bytes, folder: ProjectFolder, given: Secrets, clock: Clock) -> Plan:
    project = dataclasses.replace(project, cluster=folder.cluster)
    plan = make_plan(project, folder, clock.utcnow())
    resources = {"project.yml": source} | {name: text.encode() for name, text in project_files(project).items()}
    if not plan.empty:
        authority = folder.authority(given.passphrase, clock=clock)
        version = folder.take_kit_version()
        draft = folder.draft(plan.number)
        try:
            task = _Task(project, plan, folder, authority, given)
            issued, digests = _fill(task, draft, version)
            _revoke(folder, plan, authority, clock)
            folder.publish(plan.number, issued, digests)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
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


def _fill(task: _Task, draft: Path, version: int) -> tuple[list[IssuedCertificate], dict[str, str]]:
    """Write every kit and its zip into the draft; return what was issued, and the kits' digests."""
    project, plan, folder, authority, given = task.project, task.plan, task.folder, task.authority, task.given
    kept = {one.name: one.cert for one in plan.changes if one.cert is not None}
    issued: list[IssuedCertificate] = []
    digests: dict[str, str] = {}
    left_out = {one.name for one in plan.changes if one.happens is Happens.REVOKED}
    for one in project.participants:
        if one.name in left_out:
            continue
        if one.name in kept:
            cert = kept[one.name].encode()
            identity = Identity(cert, _key_of(folder, one, cert, given.passphrase))
        else:
            new = authority.issue(one.role, one.name, one.org)
            identity = Identity(new.cert, new.key)
            issued.append(IssuedCertificate.of(new.cert, project.name, version, plan.number))
        if given.keep_keys and identity.key is not None:
            folder.keep_key(one.name, key_to_pem(load_key(identity.key, "key"), given.passphrase))
        root = write_kit(project, one, authority, draft, identity=identity, version=version)
        write_zip(root, draft / f"{one.name}.zip", given.password_of(one.name))
        _to_disk(root / "startup" / f"{CERT_STEM[one.role]}.key")
        digests[one.name] = digest_of(project, one, authority.cert_pem, identity.cert)
    fsync_dir(draft)
    return issued, digests


def _to_disk(path: Path) -> None:
    """Keep a key from being lost with the power: everything else can be made again, and the zip has it."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        os.fsync(file.fileno())


def _key_of(folder: ProjectFolder, participant: Participant, cert: bytes, passphrase: bytes | None) -> bytes | None:
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
