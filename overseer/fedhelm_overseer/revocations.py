"""The list of revoked certificates at one overseer: in force here, and kept in the lease store for the others.

Each overseer verifies every list itself and keeps the newest on its own disk. So a lease store that was emptied,
restored or changed by somebody takes nobody back: an overseer that knows better writes its own list there again.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fedhelm.config.kit import Kit
from fedhelm.errors import BadInput, FedhelmError, KitError
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.revocation import RevocationList
from fedhelm_overseer.lease import LeaseRow, LeaseStore

__all__ = ["Revocations"]

_log = logging.getLogger("fedhelm.overseer")


class Revocations:
    """The list in force at this overseer, and how it and the store's come together.

    Args:
        kit: the overseer's.
        store: the lease store.
        kept: what this overseer keeps on its own disk; None: it takes no list, and none is in force.
    """

    def __init__(self, kit: Kit, store: LeaseStore, kept: KeptRevocations | None) -> None:
        self._project, self._cluster, self._ca = kit.project, kit.cluster, kit.ca
        self._store = store
        self._kept = kept
        self._none = RevocationList(kit.project, kit.cluster)
        self._unusable = 0
        if kept is not None and kept.problem is not None:
            _log.error("%s; the lease store or a server may have the list still", kept.problem)

    @property
    def current(self) -> RevocationList:
        """The list in force; of version 0 where there is none."""
        return self._none if self._kept is None else self._kept.current

    @property
    def signed(self) -> bytes:
        """The list in force as the root signed it; empty where there is none."""
        return b"" if self._kept is None else self._kept.signed

    def check(self, serial: str) -> None:
        """Let a certificate pass that counts.

        Raises:
            BadCertificate: it was revoked.
        """
        if self._kept is not None:
            self._kept.check(serial)

    def counts(self, serial: str) -> bool:
        """Tell whether a certificate was not revoked."""
        return self.current.revoked(serial) is None

    def trust(self, kit: Kit) -> None:
        """Verify with the roots of a kit that took the former one's place."""
        if self._kept is not None:
            self._kept.trust(kit)

    def parse(self, data: bytes) -> RevocationList:
        """Return a list that somebody handed over; takes some time where it is long.

        Raises:
            BadInput: it is not one that this project's root signed.
        """
        try:
            return RevocationList.parse(data, _roots(self._ca), self._project, self._cluster)
        except KitError as error:
            raise BadInput(error.message, hint=error.hint) from error

    def offer(self, data: bytes) -> tuple[str, ...]:
        """Put a list in force if it is newer; return the serials that it adds.

        Raises:
            KitError: it cannot be verified.
        """
        if self._kept is None:
            return ()
        before = self._kept.current
        try:
            return self._kept.offer(data)
        except KitError:
            raise
        except FedhelmError as error:
            _log.error("%s; the list is in force until this overseer ends", error)
            now = self._kept.current
            return tuple(one.serial for one in now.entries if before.revoked(one.serial) is None)

    def synchronise(self) -> tuple[tuple[str, ...] | None, LeaseRow | None]:
        """Take the store's list if it is newer, write this overseer's there if that one is.

        Returns:
            The serials that were added by a list from the store, None if none came; and the row if it was written.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        mine = self.current.version
        version, data = self._store.revocations(above=mine)
        if version > mine and self._kept is not None:
            return self._take(version, data), None
        if version < mine:
            return None, self._store.revoke(mine, self.signed, over=version)
        return None, None

    def _take(self, version: int, data: bytes) -> tuple[str, ...] | None:
        before = self.current.version
        try:
            added = self.offer(data)
        except KitError as error:
            # It may be signed by a root that this overseer has no kit for yet: it stays for those who have.
            if version != self._unusable:
                _log.error(
                    "the list of revoked certificates in the lease store, version %d, is not used: %s", version, error
                )
            self._unusable = version
            return None
        return added if self.current.version != before else None


def _roots(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}") from error
