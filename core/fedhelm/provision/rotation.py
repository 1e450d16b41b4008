"""The root of a project is rotated, in three steps, with nothing stopped: begin, switch, finish.

A root that was rotated away is kept in kits for what was signed before (:mod:`fedhelm.security.retired`), unless
somebody says that it is not to be trusted at all.

Each ends in kits: a new ``prod_NN``, to be handed over and installed by all before the next step.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization

from fedhelm.clock import Clock, SystemClock, iso
from fedhelm.errors import Refused
from fedhelm.process import atomic_write
from fedhelm.provision.lifetimes import Reissued, renew
from fedhelm.provision.plan import Happens, make_plan
from fedhelm.provision.project_file import read_project_file
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.provision.provisioning import Secrets, provision
from fedhelm.security.pki import CertificateAuthority, load_certificate, load_key, load_roots
from fedhelm.security.retired import MAX_RETIRED, load_retired
from fedhelm.security.trust import issuer_of

__all__ = ["begin_rotation", "finish_rotation", "switch_root"]

_NEXT: Final = ("rootCA.next.pem", "rootCA.next.key")


def _stage(folder: ProjectFolder) -> str:
    """Return ``none``, ``begun`` or ``switched``."""
    if (folder.state / _NEXT[0]).is_file():
        return "begun"
    return "switched" if len(load_roots(folder.trust.read_bytes(), str(folder.trust))) == 2 else "none"


def _write_all(folder: ProjectFolder, given: Secrets, clock: Clock) -> Path | None:
    """Write everybody's kit anew where the roots in it have changed; return the ``prod_NN`` that has them, if any."""
    file = read_project_file(folder.project_file)
    provision(file.project, file.source, folder.root.parent, given, clock=clock)
    last = ProjectFolder.open(folder.root).last_prod
    return folder.prod(last) if last is not None and folder.prod(last).is_dir() else None


def _check_place(folder: ProjectFolder) -> None:
    if folder.root.name != folder.project:
        raise Refused(f"{folder.root} is not called {folder.project}, as its project is", hint="rename it back")


def begin_rotation(folder: ProjectFolder, given: Secrets, *, clock: Clock | None = None) -> Path | None:
    """Make the next root and let everybody trust it as well; the present one goes on signing.

    Run again, it goes on where it was broken off.

    Returns:
        The last ``prod_NN``, which has everybody's kits unless it was run again; None where that is not here any more.
        Once all are installed: :func:`switch_root`.

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
    folder.revocation_list()  # one that is damaged is told before the key is gone that may sign it anew
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
    for one in read_project_file(folder.project_file).project.participants:
        mine = folder.current(one.name)
        if mine is None or mine.expired(now):
            continue
        if issuer_of(load_certificate(mine.cert_pem.encode(), one.name), roots) is None:
            found.append(one.name)
    return found


def finish_rotation(
    folder: ProjectFolder, given: Secrets, *, distrust: bool = False, clock: Clock | None = None
) -> Path | None:
    """Let nobody trust the former root any more, but for what was signed before.

    Run again, this goes on where it was broken off.

    Args:
        folder: the project.
        given: the root key's passphrase.
        distrust: not even for that: no root that was ever rotated away counts for anything. Also after the rotation.
        clock: for the time.

    Returns:
        The last ``prod_NN``, which has everybody's kits unless it was run again; None where that is not here any more.

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
        if stage == "none" and not _left_over(folder, distrust, clock.utcnow()):
            raise Refused("no rotation is on its way", hint="fedhelm pki rotate begin")
        authority = folder.authority(given.passphrase, clock=clock)
        if names := _of_former_root(folder, authority, clock.utcnow()):
            raise Refused(f"the former root issued the certificates of {', '.join(names)}", hint="fedhelm pki renew")
        folder.write_retired_roots(b"" if distrust else _retired(folder, authority))
        atomic_write(folder.trust, authority.signing_pem, mode=0o644)
        (folder.state / _NEXT[1]).unlink(missing_ok=True)  # a switch that was broken off at its very end left it
    return _write_all(folder, given, clock)


def _left_over(folder: ProjectFolder, distrust: bool, now: datetime) -> bool:
    """Tell whether a rotation that is over still has something to do: kits that were not written, roots to drop."""
    if distrust and folder.retired_roots:
        return True
    plan = make_plan(read_project_file(folder.project_file).project, folder, now)
    return not plan.empty and all(one.happens is not Happens.SAME for one in plan.changes)


def _retired(folder: ProjectFolder, authority: CertificateAuthority) -> bytes:
    """Return the roots that are retired once ``authority`` signs alone."""
    signing = load_certificate(authority.signing_pem, "root certificate")
    found = [*load_retired(folder.retired_roots), *load_roots(authority.cert_pem, str(folder.trust))]
    kept = [one for one in dict.fromkeys(found) if one != signing][-MAX_RETIRED:]
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in kept)
