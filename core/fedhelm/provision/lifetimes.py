"""What happens to certificates after the first kit: renewed, approved, revoked, and the root rotated.

Everything here ends in kits: a new ``prod_NN`` with those that changed, to be handed over and installed. Nothing that
is in use stops counting before its time, unless it is revoked.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from fedhelm.clock import Clock, SystemClock, iso
from fedhelm.config.kit import CERT_STEM
from fedhelm.errors import KitError, NotFound, Refused
from fedhelm.process import atomic_write
from fedhelm.provision.issued import IssuedCertificate, as_serial
from fedhelm.provision.kits import Identity, digest_of, write_kit
from fedhelm.provision.project import Participant, Project
from fedhelm.provision.project_file import ProjectFile, read_project_file
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.provision.provisioning import Secrets, provision
from fedhelm.provision.zips import write_zip
from fedhelm.security.pki import CertificateAuthority, key_to_pem, load_certificate, load_key, load_roots
from fedhelm.security.requests import CertificateRequest
from fedhelm.security.trust import issuer_of

__all__ = [
    "Reissued",
    "approve",
    "begin_rotation",
    "expiring",
    "finish_rotation",
    "renew",
    "revoke",
    "switch_root",
]

_NEXT: Final = ("rootCA.next.pem", "rootCA.next.key")


@dataclasses.dataclass(frozen=True)
class Reissued:
    """A kit to hand over. ``own_key``: it has no key, because only the participant has the one that belongs into it."""

    name: str
    role: str
    kit: Path
    zip: Path
    serial: str
    not_after: str
    own_key: bool


def _project_file(folder: ProjectFolder) -> ProjectFile:
    return read_project_file(folder.project_file)


def _project(folder: ProjectFolder) -> Project:
    return dataclasses.replace(_project_file(folder).project, cluster=folder.cluster)


def _participant(project: Project, name: str) -> Participant:
    for one in project.participants:
        if one.name == name:
            return one
    raise NotFound(
        f"project {project.name} has no participant called {name}", hint="add it to project.yml, then fedhelm provision"
    )


def expiring(folder: ProjectFolder, days: float, now: datetime) -> list[str]:
    """Return the participants whose newest certificate ends within so many days, or has ended.

    Raises:
        KitError: the state is damaged.
    """
    limit = now + timedelta(days=days)
    found = []
    for name in folder.kit_digests:
        mine = folder.current(name)
        if mine is not None and mine.expired(limit):
            found.append(name)
    return found


# -- new certificates


def renew(folder: ProjectFolder, names: Sequence[str], given: Secrets, *, clock: Clock | None = None) -> list[Reissued]:
    """Issue new certificates, and kits with them. The former ones count until they end.

    A participant whose key was made here gets a new one. One whose key is not here (it made it itself, or the folders
    of its former kits were taken away) gets a certificate for the key that it has.

    Raises:
        NotFound: a name that is not in the project.
        Refused: the only key that a participant has was revoked with its certificate.
        KitError: the root key's passphrase is missing or wrong, or the state is damaged.
    """
    clock = clock or SystemClock()
    with folder.locked():
        project, authority = _project(folder), folder.authority(given.passphrase, clock=clock)
        wanted = [_participant(project, name) for name in dict.fromkeys(names)]
        identities = [(one, _renewed(folder, one, authority)) for one in wanted]
        return _reissue(folder, project, authority, identities, given)


def _renewed(folder: ProjectFolder, participant: Participant, authority: CertificateAuthority) -> Identity:
    name, role = participant.name, participant.role
    current = folder.current(name)
    if current is not None and (current.role, current.org) != (role, participant.org):
        raise Refused(
            f"{name}: role or organisation were changed in the project file", hint="fedhelm provision -p FILE"
        )
    issued_before = any(one.name == name for one in folder.certificates())
    if _made_here(folder, participant) or not issued_before:
        issued = authority.issue(role, name, participant.org)
        return Identity(issued.cert, issued.key)
    if current is None:
        raise Refused(
            f"{name}: its certificate was revoked, and its key is not made here",
            hint="let it make a new key (fedhelm pki request), then fedhelm pki approve",
        )
    public = load_certificate(current.cert_pem.encode(), name).public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise KitError(f"{name}: its certificate has no ECDSA key")
    return Identity(authority.issue_for(public, role, name, participant.org), None)


def _made_here(folder: ProjectFolder, participant: Participant) -> bool:
    """Return whether the newest kit that is still here has a key, or a key was kept."""
    for prod in reversed(folder.prods):
        startup = prod / participant.name / "startup"
        if startup.is_dir():
            return (startup / f"{CERT_STEM[participant.role]}.key").is_file()
    return folder.kept_key(participant.name) is not None


def approve(
    folder: ProjectFolder, request: CertificateRequest, given: Secrets, *, clock: Clock | None = None
) -> Reissued:
    """Issue a certificate for a key that a participant made itself, and a kit without a key.

    Raises:
        NotFound: the project has no such participant.
        Refused: the request asks for another role or organisation than the project file gives, or for a key that was
            revoked.
        KitError: the root key's passphrase is missing or wrong, or the state is damaged.
    """
    clock = clock or SystemClock()
    with folder.locked():
        project = _project(folder)
        one = _participant(project, request.name)
        for what, asked, granted in (("role", request.role, one.role), ("organisation", request.org, one.org)):
            if asked != granted:
                raise Refused(f"{request.name} asks for the {what} {asked!r}, the project file says {granted!r}")
        for former in folder.certificates():
            key = load_certificate(former.cert_pem.encode(), former.name).public_key()
            if key == request.public_key and (former.revoked or former.name != request.name):
                why = "was revoked" if former.revoked else f"is that of {former.name}"
                raise Refused(
                    f"{request.name}: the key of this request {why}", hint="fedhelm pki request makes another"
                )
        authority = folder.authority(given.passphrase, clock=clock)
        cert = authority.issue_for(request.public_key, one.role, one.name, one.org)
        return _reissue(folder, project, authority, [(one, Identity(cert, None))], given)[0]


def _reissue(
    folder: ProjectFolder,
    project: Project,
    authority: CertificateAuthority,
    identities: Sequence[tuple[Participant, Identity]],
    given: Secrets,
) -> list[Reissued]:
    """Write the kits of these participants into the next ``prod_NN``: all of them, or none."""
    version, last = folder.take_kit_version(), folder.last_prod
    number = 0 if last is None else last + 1
    draft = folder.draft(number)
    issued: list[IssuedCertificate] = []
    digests: dict[str, str] = dict(folder.kit_digests)
    try:
        for one, identity in identities:
            root = write_kit(project, one, authority, draft, identity=identity, version=version)
            write_zip(root, draft / f"{one.name}.zip", given.password_of(one.name))
            if identity.key is not None and folder.kept_key(one.name) is not None:
                folder.keep_key(one.name, key_to_pem(load_key(identity.key, "key"), given.passphrase))
            issued.append(IssuedCertificate.of(identity.cert, project.name, version, number))
            digests[one.name] = digest_of(project, one, authority.cert_pem, identity.cert)
        prod = folder.publish(number, issued, digests)
    except BaseException:  # Ctrl-C too: nothing half done stays
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return [_reissued(prod, new, identity) for (_, identity), new in zip(identities, issued, strict=True)]


def _reissued(prod: Path, issued: IssuedCertificate, identity: Identity) -> Reissued:
    name = issued.name
    own = identity.key is None
    return Reissued(name, issued.role, prod / name, prod / f"{name}.zip", issued.serial, issued.not_after, own)


# -- certificates that count no longer


def revoke(
    folder: ProjectFolder,
    name: str,
    reason: str,
    given: Secrets,
    *,
    serial: str | None = None,
    clock: Clock | None = None,
) -> list[IssuedCertificate]:
    """Take back a participant's certificates, or one of them, and sign the list that says so.

    Args:
        folder: the project.
        name: the participant.
        reason: why; it is in the list, which everybody gets.
        given: the root key's passphrase.
        serial: only this one: hex, as it is written here or as openssl prints it.
        clock: for the time of revocation.

    Returns:
        What was revoked; also what an earlier run had revoked that broke off before it signed the list.

    Raises:
        NotFound: it has no certificate that still counts, or not this one.
        KitError: the root key's passphrase is missing or wrong, or the state is damaged.
    """
    clock = clock or SystemClock()
    serial = None if serial is None else as_serial(serial)
    with folder.locked():
        mine = [one for one in folder.certificates() if one.name == name and serial in (None, one.serial)]
        unlisted = {one.serial for one in folder.unlisted()}
        wanted = [one.serial for one in mine if not one.revoked or one.serial in unlisted]
        if not wanted:
            what = "has no certificate" if serial is None else f"has no certificate with the serial {serial}"
            raise NotFound(f"{name} {what} that still counts", hint="fedhelm pki list --all")
        listed = folder.revoke(wanted, reason, folder.authority(given.passphrase, clock=clock), clock=clock)
        return [one for one in listed if one.serial in wanted]


# -- the root


def _stage(folder: ProjectFolder) -> str:
    """Return ``none``, ``begun`` or ``switched``."""
    if (folder.state / _NEXT[0]).is_file():
        return "begun"
    return "switched" if len(load_roots(folder.trust.read_bytes(), str(folder.trust))) == 2 else "none"


def _write_all(folder: ProjectFolder, given: Secrets, clock: Clock) -> Path:
    """Write everybody's kit anew where the roots in it have changed."""
    file = _project_file(folder)
    provision(file.project, file.source, folder.root.parent, given, clock=clock)
    return ProjectFolder.open(folder.root).prods[-1]


def _check_place(folder: ProjectFolder) -> None:
    if folder.root.name != folder.project:
        raise Refused(f"{folder.root} is not called {folder.project}, as its project is", hint="rename it back")


def begin_rotation(folder: ProjectFolder, given: Secrets, *, clock: Clock | None = None) -> Path:
    """Make the next root and let everybody trust it as well; the present one goes on signing.

    Run again, it goes on where it was broken off.

    Returns:
        The ``prod_NN`` with everybody's kits. Once all are installed: :func:`switch_root`.

    Raises:
        Refused: the root was switched already.
        KitError: the root key's passphrase is missing or wrong, or the state is damaged.
    """
    clock = clock or SystemClock()
    _check_place(folder)
    with folder.locked():
        if _stage(folder) == "switched":
            raise Refused("the root was switched already", hint="fedhelm pki rotate finish")
        authority = folder.authority(given.passphrase, clock=clock)
        pem, key = (folder.state / name for name in _NEXT)
        if not pem.is_file():
            new = CertificateAuthority.create(folder.project, clock=clock)
            atomic_write(key, new.key_pem(given.passphrase))
            atomic_write(pem, new.signing_pem, mode=0o644)
        atomic_write(folder.trust, authority.trusting(pem.read_bytes()).cert_pem, mode=0o644)
    return _write_all(folder, given, clock)


def switch_root(folder: ProjectFolder, given: Secrets, *, clock: Clock | None = None) -> list[Reissued]:
    """Let the next root sign from now on, and issue everybody's certificate anew; the former one is trusted still.

    The former key is destroyed. A participant that has not installed the kit of :func:`begin_rotation` cannot take the
    next one in place: it is set up anew. Run again, this goes on where it was broken off.

    Returns:
        The kits. Once all are installed: :func:`finish_rotation`.

    Raises:
        Refused: no rotation was begun.
        KitError: the root key's passphrase is missing or wrong, or the state is damaged.
    """
    clock = clock or SystemClock()
    with folder.locked():
        stage = _stage(folder)
        if stage == "none":
            raise Refused("no rotation was begun", hint="fedhelm pki rotate begin")
        if stage == "begun":
            _take_next(folder, given, clock)
        names = _of_former_root(folder, folder.authority(given.passphrase, clock=clock), clock.utcnow())
        return renew(folder, names, given, clock=clock) if names else []


def _take_next(folder: ProjectFolder, given: Secrets, clock: Clock) -> None:
    """Make the next root the one that signs: its key first, since of two certificates the key's own one signs."""
    pem, key = (folder.state / name for name in _NEXT)
    new = key.read_bytes()
    load_key(new, str(key), given.passphrase)
    atomic_write(folder.state / "rootCA.key", new)
    authority = folder.authority(given.passphrase, clock=clock)
    atomic_write(folder.trust, authority.cert_pem, mode=0o644)
    if folder.revocations() is not None:
        listed = folder.revocation_list().with_revoked((), iso(clock.utcnow()))
        folder.write_revocations(listed.to_bytes(authority))
    pem.unlink()
    key.unlink()


def _of_former_root(folder: ProjectFolder, authority: CertificateAuthority, now: datetime) -> list[str]:
    """Return the participants of the project whose newest certificate is of another root than the signing one."""
    roots = (load_certificate(authority.signing_pem, "root certificate"),)
    found = []
    for one in _project(folder).participants:
        mine = folder.current(one.name)
        if mine is None or mine.expired(now):
            continue
        if issuer_of(load_certificate(mine.cert_pem.encode(), one.name), roots) is None:
            found.append(one.name)
    return found


def finish_rotation(folder: ProjectFolder, given: Secrets, *, clock: Clock | None = None) -> Path:
    """Let nobody trust the former root any more.

    Returns:
        The ``prod_NN`` with everybody's kits.

    Raises:
        Refused: the root was not switched, or somebody's certificate is of the former root.
        KitError: the root key's passphrase is missing or wrong, or the state is damaged.
    """
    clock = clock or SystemClock()
    _check_place(folder)
    with folder.locked():
        stage = _stage(folder)
        if stage == "begun":
            raise Refused("the root was not switched yet", hint="fedhelm pki rotate switch")
        if stage == "none":
            raise Refused("no rotation is on its way", hint="fedhelm pki rotate begin")
        authority = folder.authority(given.passphrase, clock=clock)
        if names := _of_former_root(folder, authority, clock.utcnow()):
            raise Refused(f"the former root issued the certificates of {', '.join(names)}", hint="fedhelm pki renew")
        atomic_write(folder.trust, authority.signing_pem, mode=0o644)
        (folder.state / _NEXT[1]).unlink(missing_ok=True)  # a switch that was broken off at its very end left it
    return _write_all(folder, given, clock)
