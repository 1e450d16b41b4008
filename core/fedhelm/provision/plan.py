"""What has to change from one run of ``fedhelm provision`` to the next: a plan, made without writing anything."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from cryptography.exceptions import InvalidSignature

from fedhelm.config.kit import CERT_STEM
from fedhelm.provision.issued import IssuedCertificate
from fedhelm.provision.kits import digest_of
from fedhelm.provision.project import Participant, Project
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.security.pki import load_certificate, load_roots

__all__ = ["REPLACED", "Change", "Happens", "Plan", "make_plan", "own_key_of"]

SOON: Final = timedelta(days=30)
"""A certificate that expires within this time is named."""

_REMOVED: Final = "removed from the project"
_CHANGED: Final = "role or organisation changed"
REPLACED: Final = "it has a key of its own now"
_WAITS: Final = "it makes its own key: fedhelm pki request there, then fedhelm pki approve"


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
    WAITS = "waits"
    """No kit: it makes its own key, and no request of it was approved yet."""
    REVOKED = "revoked"
    """No kit: somebody revoked it by name. Others' kits may name it still."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One participant's part of a plan.

    Attributes:
        name: the participant.
        role: its role.
        happens: what.
        why: in a few words; may be empty.
        cert: the certificate that it keeps, PEM.
        own_key: its kit has no key: only the participant has the one that belongs into it.
        again: the certificate for whose key it gets a new one, PEM; None: a key is made.
    """

    name: str
    role: str
    happens: Happens
    why: str = ""
    cert: str | None = None
    own_key: bool = False
    again: str | None = None


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
        nothing = (Happens.SAME, Happens.REVOKED, Happens.WAITS)
        return not self.revoke and all(one.happens in nothing for one in self.changes)

    @property
    def signs(self) -> bool:
        """Whether the root key is needed: for kits, or for the list of revoked certificates alone."""
        return not self.empty or bool(self.unlisted)


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
        return Plan(0, tuple(_first(one) for one in project.participants))
    basis = _Basis(folder.complete(project), folder.trust.read_bytes(), now, folder)
    issued, digests = folder.certificates(), folder.kit_digests
    changes = [_change(basis, one, issued, digests.get(one.name)) for one in project.participants]
    here = {one.name: one for one in project.participants}
    newest = {one.name: one for one in issued if not one.revoked}  # oldest first, so the newest stays
    own = {name for name, one in newest.items() if one.own_key}
    revoke: list[tuple[IssuedCertificate, str]] = []
    for certificate in issued:
        mine = here.get(certificate.name)
        if certificate.revoked or certificate.expired(now):
            continue
        if mine is not None and (mine.role, mine.org) != (certificate.role, certificate.org):
            revoke.append((certificate, _CHANGED))
        elif certificate.name in own and certificate.own_key is False:
            revoke.append((certificate, REPLACED))
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
    folder: ProjectFolder


def own_key_of(folder: ProjectFolder, certificate: IssuedCertificate) -> bool | None:
    """Tell whether a participant made the key of this certificate itself.

    Lines of before that was written down: the first kit that held it tells, if it is still there; None if it is not.
    """
    if certificate.own_key is not None or certificate.prod is None:
        return certificate.own_key
    startup = folder.prod(certificate.prod) / certificate.name / "startup"
    return not (startup / f"{CERT_STEM[certificate.role]}.key").is_file() if startup.is_dir() else None


def _first(participant: Participant) -> Change:
    if participant.own_key:
        return Change(participant.name, participant.role, Happens.WAITS, _WAITS, own_key=True)
    return Change(participant.name, participant.role, Happens.NEW)


def _change(basis: _Basis, participant: Participant, issued: Iterable[IssuedCertificate], digest: str | None) -> Change:
    name, role = participant.name, participant.role
    mine = [one for one in issued if one.name == name]
    valid = [one for one in mine if not one.revoked]
    if not mine:
        return _first(participant)
    if not valid:
        return _after_revocation(basis, mine[-1], participant)
    newest = valid[-1]
    if why := _outdated(newest, basis, participant):
        return _certified_anew(basis, newest, participant, why)
    own = participant.own_key or own_key_of(basis.folder, newest) is True
    same = digest == digest_of(basis.project, participant, basis.roots, newest.cert_pem.encode())
    happens = Happens.SAME if same else Happens.KIT
    soon = newest.expired(basis.now + SOON)
    whys = [
        f"its certificate expires on {newest.not_after[:10]}" if soon else "",
        f"{_WAITS}; the one that was made here counts until then" if own and newest.own_key is False else "",
    ]
    return Change(name, role, happens, "; ".join(filter(None, whys)), newest.cert_pem, own_key=own)


def _after_revocation(basis: _Basis, last: IssuedCertificate, participant: Participant) -> Change:
    # Whose line does not say who it was is of before that was written: its reason has to tell.
    if last.by == "provision" or (last.by is None and last.reason in (_REMOVED, _CHANGED)):
        return _certified_anew(basis, last, participant, "the former one was revoked")
    # By name, by somebody: it does not come back because it is in the file still.
    how = "fedhelm pki renew gives it a new certificate"
    if participant.own_key or own_key_of(basis.folder, last):
        how = "fedhelm pki request there, then fedhelm pki approve, gives it another"
    why = f"on {(last.revoked_at or '')[:10]}: {last.reason}; {how}"
    return Change(last.name, participant.role, Happens.REVOKED, why)


def _certified_anew(basis: _Basis, last: IssuedCertificate, participant: Participant, why: str) -> Change:
    """Return a new certificate: for a new key, or for the participant's own one, where it has one."""
    name, role = participant.name, participant.role
    if own_key_of(basis.folder, last):
        return Change(name, role, Happens.CERTIFICATE, why, own_key=True, again=last.cert_pem)
    if participant.own_key:
        return Change(name, role, Happens.WAITS, f"{why}; {_WAITS}", own_key=True)
    return Change(name, role, Happens.CERTIFICATE, why)


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
