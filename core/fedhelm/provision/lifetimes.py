"""What happens to certificates after the first kit: renewed, approved, revoked.

Everything here ends in kits: a new ``prod_NN`` with those that changed, to be handed over and installed. Nothing that
is in use stops counting before its time, unless it is revoked.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from fedhelm.clock import Clock, SystemClock
from fedhelm.config.kit import CERT_STEM
from fedhelm.errors import NotFound, Refused
from fedhelm.provision.issued import IssuedCertificate, as_serial
from fedhelm.provision.kits import Identity, digest_of, write_kit
from fedhelm.provision.plan import REPLACED, own_key_of
from fedhelm.provision.project import Participant, Project
from fedhelm.provision.project_file import read_project_file
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.provision.provisioning import Secrets, key_of, public_key_of
from fedhelm.provision.zips import write_zip
from fedhelm.security.pki import (
    CertificateAuthority,
    as_fingerprint,
    key_to_pem,
    load_certificate,
    load_key,
    public_key_sha256,
)
from fedhelm.security.requests import CertificateRequest

__all__ = ["Reissued", "approve", "expiring", "renew", "revoke"]


@dataclasses.dataclass(frozen=True)
class Reissued:
    """A kit to hand over.

    ``own_key``: it has no key, because only the participant has the one that belongs into it. ``key_sha256`` is that of
    the public key, hex. ``revoked`` are the serials of certificates that it replaces at once.
    """

    name: str
    role: str
    kit: Path
    zip: Path
    serial: str
    not_after: str
    own_key: bool
    key_sha256: str
    revoked: tuple[str, ...] = ()


def _project(folder: ProjectFolder) -> Project:
    return folder.complete(read_project_file(folder.project_file).project)


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
        made = [_New(one, *_renewed(folder, one, authority, given.passphrase)) for one in wanted]
        return _reissue(folder, project, authority, made, given)


def _renewed(
    folder: ProjectFolder, participant: Participant, authority: CertificateAuthority, passphrase: bytes | None
) -> tuple[Identity, bool | None]:
    """Return the new identity, and whether its key is the participant's own."""
    name, role, org = participant.name, participant.role, participant.org
    current = folder.current(name)
    if current is not None and (current.role, current.org) != (role, org):
        raise Refused(
            f"{name}: role or organisation were changed in the project file", hint="fedhelm provision -p FILE"
        )
    if _key_is_made(folder, participant, passphrase):
        issued = authority.issue(role, name, org)
        return Identity(issued.cert, issued.key), False
    if current is None:
        why = "its certificate was revoked, and its key is not made here"
        if not any(one.name == name for one in folder.certificates()):
            why = "it makes its own key, and no request of it was approved yet"
        raise Refused(f"{name}: {why}", hint="let it make a new key (fedhelm pki request), then fedhelm pki approve")
    public = public_key_of(current.cert_pem.encode(), name)
    return Identity(authority.issue_for(public, role, name, org), None), own_key_of(folder, current)


def _key_is_made(folder: ProjectFolder, participant: Participant, passphrase: bytes | None) -> bool:
    """Decide whether a new certificate comes with a new key: not where only the participant has the present one."""
    issued = [one for one in folder.certificates() if one.name == participant.name]
    if participant.own_key or not issued:
        return not participant.own_key
    current = folder.current(participant.name)
    own = own_key_of(folder, current or issued[-1])
    if own is not None and current is None:
        return not own
    if current is None:
        return _made_here(folder, participant)
    return not own and key_of(folder, participant, current.cert_pem.encode(), passphrase) is not None


def _made_here(folder: ProjectFolder, participant: Participant) -> bool:
    """Return whether the newest kit that is still here has a key, or a key was kept."""
    for prod in reversed(folder.prods):
        startup = prod / participant.name / "startup"
        if startup.is_dir():
            return (startup / f"{CERT_STEM[participant.role]}.key").is_file()
    return folder.kept_key(participant.name) is not None


def approve(
    folder: ProjectFolder,
    request: CertificateRequest,
    given: Secrets,
    *,
    fingerprint: str | None = None,
    clock: Clock | None = None,
) -> Reissued:
    """Issue a certificate for a key that a participant made itself, and a kit without a key.

    From then on no key is made for it here. Certificates of it whose key was made here are revoked.

    Args:
        folder: the project.
        request: what the participant asks for.
        given: the root key's passphrase.
        fingerprint: the SHA-256 of its public key that the participant told in some other way; None: not compared.
        clock: for validity.

    Raises:
        NotFound: the project has no such participant.
        Refused: the request asks for another role or organisation than the project file gives, for a key that was
            revoked, or its key has another fingerprint.
        KitError: the root key's passphrase is missing or wrong, or the state is damaged.
    """
    clock = clock or SystemClock()
    with folder.locked():
        project = _project(folder)
        one = _participant(project, request.name)
        for what, asked, granted in (("role", request.role, one.role), ("organisation", request.org, one.org)):
            if asked != granted:
                raise Refused(f"{request.name} asks for the {what} {asked!r}, the project file says {granted!r}")
        if fingerprint is not None and as_fingerprint(fingerprint) != (found := public_key_sha256(request.public_key)):
            raise Refused(f"{request.name}: the key of this request has the SHA-256 {found}, not that one")
        _check_key(folder, request)
        authority = folder.authority(given.passphrase, clock=clock)
        cert = authority.issue_for(request.public_key, one.role, one.name, one.org)
        made = _reissue(folder, project, authority, [_New(one, Identity(cert, None), own_key=True)], given)[0]
        folder.forget_key(one.name)
        gone = [
            former.serial
            for former in folder.certificates()
            if former.name == one.name
            and not former.revoked
            and not former.expired(clock.utcnow())
            and own_key_of(folder, former) is False
        ]
        listed = folder.revoke(gone, REPLACED, authority, by="provision", clock=clock)
        return dataclasses.replace(made, revoked=tuple(old.serial for old in listed if old.serial in gone))


def _check_key(folder: ProjectFolder, request: CertificateRequest) -> None:
    """Refuse the key of somebody else, and one that was taken back by name: it may have been stolen."""
    for former in folder.certificates():
        taken_back = former.revoked and former.by != "provision"
        if former.name == request.name and not taken_back:
            continue
        if load_certificate(former.cert_pem.encode(), former.name).public_key() == request.public_key:
            why = "was revoked" if taken_back else f"is that of {former.name}"
            raise Refused(f"{request.name}: the key of this request {why}", hint="fedhelm pki request makes another")


@dataclasses.dataclass(frozen=True)
class _New:
    """Somebody's new certificate, and whether its key is the participant's own."""

    participant: Participant
    identity: Identity
    own_key: bool | None


def _reissue(
    folder: ProjectFolder,
    project: Project,
    authority: CertificateAuthority,
    new: Sequence[_New],
    given: Secrets,
) -> list[Reissued]:
    """Write the kits of these participants into the next ``prod_NN``: all of them, or none."""
    version, last = folder.take_kit_version(), folder.last_prod
    number = 0 if last is None else last + 1
    draft = folder.draft(number)
    issued: list[IssuedCertificate] = []
    digests: dict[str, str] = dict(folder.kit_digests)
    try:
        for made in new:
            one, identity = made.participant, made.identity
            root = write_kit(project, one, authority, draft, identity=identity, version=version)
            write_zip(root, draft / f"{one.name}.zip", given.password_of(one.name))
            line = IssuedCertificate.of(identity.cert, project.name, version, number, own_key=made.own_key)
            issued.append(line)
            digests[one.name] = digest_of(project, one, authority.cert_pem, identity.cert)
        prod = folder.publish(number, issued, digests)
    except BaseException:  # Ctrl-C too: nothing half done stays
        shutil.rmtree(draft, ignore_errors=True)
        raise
    for made in new:  # the former key counts until the new kit is there
        name, key = made.participant.name, made.identity.key
        if key is not None and folder.kept_key(name) is not None:
            folder.keep_key(name, key_to_pem(load_key(key, "key"), given.passphrase))
    return [_reissued(prod, line, made.identity) for made, line in zip(new, issued, strict=True)]


def _reissued(prod: Path, issued: IssuedCertificate, identity: Identity) -> Reissued:
    name = issued.name
    own = identity.key is None
    public = public_key_sha256(public_key_of(identity.cert, name))
    return Reissued(name, issued.role, prod / name, prod / f"{name}.zip", issued.serial, issued.not_after, own, public)


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
