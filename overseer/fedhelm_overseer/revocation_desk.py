"""Where the list of revoked certificates is handed over: verified, in force at once, and told to everybody."""

from __future__ import annotations

from fedhelm.errors import Refused, StoreUnavailable
from fedhelm.security.revocation import RevocationList
from fedhelm.wire.overseer_api import RevocationsView
from fedhelm_overseer.lease import StoreAway
from fedhelm_overseer.table import Table

__all__ = ["RevocationDesk"]


class RevocationDesk:
    """What is asked of an overseer about the list. Any thread.

    Args:
        table: the overseer's state.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._revocations = table.revocations

    def view(self, *, taken: bool = False) -> RevocationsView:
        """Return what is in force, in figures."""
        now = self._revocations.current
        return RevocationsView(version=now.version, certificates=len(now.entries), issued=now.issued, taken=taken)

    def hand_over(self, by: str, data: bytes) -> RevocationsView:
        """Put a newer list in force; the one that is in force already is none, and is no mistake.

        Args:
            by: who hands it over, for events and the log.
            data: the list as it was signed.

        Raises:
            BadInput: it is not one that this project's root signed.
            Refused: a newer one is in force, or another one of the same version.
            StoreUnavailable: it is in force at this overseer, but the others on the same store do not know of it.
        """
        new = self._revocations.parse(data)
        with self._table.turn:
            self._look()
        now = self._revocations.current
        _check(new, now)
        # Not in the turn: verifying a long list takes a while, and renewals must not wait for it.
        added = self._revocations.offer(data) if new.newer_than(now) else ()
        taken = new.newer_than(now) and self._revocations.current.version == new.version
        with self._table.turn:
            if taken:
                self._table.told.revoked(new, added, by)
            try:
                self._table.synchronise()
            except StoreUnavailable as error:
                told = error.public if isinstance(error, StoreAway) else error.message
                raise StoreUnavailable(
                    f"version {new.version} is in force at this overseer, and cannot be kept for the others: {told}",
                    hint="hand it over again",
                ) from error
            finally:
                self._table.changed.ring()
                self._table.wake()  # who holds the lease may be among them
        return self.view(taken=taken)

    def _look(self) -> None:
        """Another overseer may have a newer one already; where that cannot be known, this one decides alone."""
        try:
            self._table.synchronise()
        except StoreUnavailable:
            return


def _check(new: RevocationList, now: RevocationList) -> None:
    """Let a list pass that is newer than the one in force, or the same.

    Raises:
        Refused: it is neither.
    """
    if new.version < now.version:
        raise Refused(
            f"version {now.version} of the list of revoked certificates is in force, this is version {new.version}",
            hint="take state/revoked.json of the newest project folder",
        )
    if new.version == now.version and new.entries != now.entries:
        raise Refused(
            f"another list of revoked certificates of version {now.version} is in force",
            hint="fedhelm pki revoke in the project's one folder makes a newer one",
        )
