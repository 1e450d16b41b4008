"""A kit that may be replaced while its participant runs: look at the manifest, verify, take the new one.

Nothing stops for it: connections that exist go on, new ones get the new certificate. What cannot be verified is not
used; the participant goes on with the kit it has and says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fedhelm.clock import Clock, SystemClock
from fedhelm.config.kit import ADMIN_ROLES, Kit
from fedhelm.errors import FedhelmError, KitError
from fedhelm.security.kit import open_kit, remember_version
from fedhelm.security.pki import load_certificate
from fedhelm.security.signing import SIGNATURE_FILE, parse_manifest
from fedhelm.security.trust import expiry_warnings

__all__ = ["LOOK_S", "KitMark", "ReloadingKit", "check_successor", "replaces", "watch_kit"]

LOOK_S: Final = 1.0
"""Seconds between two looks at the manifest."""

_log = logging.getLogger("fedhelm.kit")


@dataclasses.dataclass(frozen=True)
class KitMark:
    """What decides whether one kit may take another's place."""

    project: str
    cluster: str
    role: str
    name: str
    version: int
    digest: str

    @classmethod
    def of(cls, kit: Kit) -> KitMark:
        """Read the mark of a kit that lies on the disk.

        Raises:
            KitError: its manifest cannot be read.
        """
        path = kit.startup / SIGNATURE_FILE
        data = _read(path)
        version = parse_manifest(data, str(path)).version
        return cls(kit.project, kit.cluster, kit.role, kit.name, version, hashlib.sha256(data).hexdigest())


def replaces(new: KitMark, old: KitMark) -> bool:
    """Decide whether a verified kit takes the place of the one in use; False if it is the same one.

    Raises:
        KitError: it is of somebody else, or older.
    """
    if new.digest == old.digest:
        return False
    admins = new.role in ADMIN_ROLES and old.role in ADMIN_ROLES  # an administrator's role may change
    if (new.project, new.cluster, new.name) != (old.project, old.cluster, old.name) or not (
        new.role == old.role or admins
    ):
        raise KitError(
            f"the kit is of {new.role} {new.name} in {new.project}, cluster {new.cluster}, and does not replace that "
            f"of {old.role} {old.name} in {old.project}, cluster {old.cluster}"
        )
    if new.version < old.version:
        raise KitError(
            f"the kit of {new.name} has version {new.version}, and version {old.version} is in use",
            hint="take the newest kit",
        )
    return True


def check_successor(kit: Kit, roots: bytes) -> None:
    """Let a kit pass that a root signed which is trusted already; the root that it brings itself proves nothing.

    Args:
        kit: the new kit, verified against its own root.
        roots: content of the ``rootCA.pem`` in use.

    Raises:
        KitError: neither of these roots signed it.
    """
    path = kit.startup / SIGNATURE_FILE
    if not parse_manifest(_read(path), str(path)).signed_by(roots):
        raise KitError(
            f"{path} was not signed by the root that {kit.name} trusts now",
            hint="if the root was rotated, install the kits between first; if it was made anew, set the participant up "
            "anew",
        )


class ReloadingKit:
    """The kit of a running participant.

    Args:
        kit: the kit it started with, verified.
        clock: for the certificates' validity.

    Attributes:
        kit: The kit in use.
        problem: Why the kit that lies on the disk now is not the one in use; None while it is.
    """

    def __init__(self, kit: Kit, *, clock: Clock | None = None) -> None:
        self.kit = kit
        self.problem: FedhelmError | None = None
        self._clock = clock or SystemClock()
        self._mark = KitMark.of(kit)
        self._certificate = load_certificate(_read(kit.cert), str(kit.cert))
        self._roots = _read(kit.ca)
        self._seen = self._stamp()

    @property
    def version(self) -> int:
        """The version of the kit in use."""
        return self._mark.version

    def expiry(self) -> str | None:
        """Say what :func:`~fedhelm.security.trust.expiry_warnings` says of the certificate in use."""
        return expiry_warnings(self._certificate, self._clock.utcnow())

    def expired(self) -> str | None:
        """Say that the certificate in use has expired, and what to do; None while it counts."""
        expiry = self.expiry()
        if expiry is None or not expiry.startswith("expired"):
            return None
        return f"the certificate of {self.kit.name} {expiry}: install a new kit"

    def look(self) -> Kit | None:
        """Look whether another kit lies on the disk; take it if it is good.

        Costs one ``stat`` while nothing changed. Blocks for some milliseconds otherwise: call it in a thread.

        Returns:
            The new kit, if there is one; :attr:`kit` is it from now on.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        try:
            kit = open_kit(self.kit.root, clock=self._clock)
            mark, certificate, roots = KitMark.of(kit), load_certificate(_read(kit.cert), str(kit.cert)), _read(kit.ca)
            new = replaces(mark, self._mark)
            check_successor(kit, self._roots)
            remember_version(kit, mark.version)
        except FedhelmError as error:
            self.problem = error  # tried again at the next look: it may be on its way still
            return None
        except OSError as error:  # NFS: between two renames the folder is not there
            self.problem = KitError(f"{error.filename or self.kit.startup}: {error.strerror}")
            return None
        self.problem, self._seen = None, stamp
        if not new:
            return None
        self.kit, self._mark, self._certificate, self._roots = kit, mark, certificate, roots
        return kit

    def _stamp(self) -> tuple[int, int, int] | None:
        with contextlib.suppress(OSError):
            status = (self.kit.startup / SIGNATURE_FILE).stat()
            return status.st_mtime_ns, status.st_ino, status.st_size
        return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}") from error


async def watch_kit(reloading: ReloadingKit, taken: Callable[[Kit], None], *, interval: float = LOOK_S) -> None:
    """Look at the kit for ever; cancel to stop. A warning that a certificate expires is logged when it changes.

    Args:
        reloading: the kit.
        taken: called in the event loop with each new kit; what it raises of :class:`~fedhelm.errors.FedhelmError` is
            logged.
        interval: seconds between two looks.
    """
    warned = told = None
    while True:
        kit = await asyncio.to_thread(reloading.look)
        if kit is not None:
            try:
                taken(kit)
                _log.info("version %d of the kit of %s is in use now", reloading.version, kit.name)
            except FedhelmError as error:
                _log.error("the new kit of %s cannot be used: %s", kit.name, error)
        problem = None if reloading.problem is None else str(reloading.problem)
        if problem not in (None, told):
            _log.error("the kit that lies in %s is not used: %s", reloading.kit.root, problem)
        told = problem
        warning = reloading.expiry()
        if warning not in (None, warned):
            _log.warning("the certificate of %s %s", reloading.kit.name, warning)
        warned = warning
        await asyncio.sleep(interval)
