"""A site's audit file: jobs taken in or refused, privacy filters applied, orders obeyed. The agent alone writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedhelm.config.kit import Kit
from fedhelm.errors import FedhelmError
from fedhelm.security.audit import AUDIT_FILE, AuditTrail
from fedhelm.security.audit_commands import write_before
from fedhelm.security.audit_start import entry_of, open_trail
from fedhelm.security.identity import Principal
from fedhelm_client.outbox import ContributionId

__all__ = ["SiteTrail"]

_CLOSE_S: Final = 2.0


class SiteTrail:
    """One site's.

    Args:
        kit: the site's.
        trail: the file; None: nothing is noted.
    """

    def __init__(self, kit: Kit, trail: AuditTrail | None = None) -> None:
        self._site = kit.name
        self._trail = trail

    @classmethod
    def open(cls, kit: Kit) -> SiteTrail:
        """Open the site's audit file.

        Raises:
            AlreadyRunning: another process writes it.
            BadInput: a mistake in ``local/audit.json``.
            FedhelmError: it cannot be written.
        """
        try:
            return cls(kit, open_trail(kit))
        except OSError as error:
            raise FedhelmError(f"{kit.root / AUDIT_FILE} cannot be written: {error.strerror or error}") from error

    async def taken(self, job: str, submitter: Principal) -> None:
        """Have it written that a job is taken in; nothing of a job runs here that the audit file does not have.

        Args:
            job: its id.
            submitter: who signed it.

        Raises:
            AuditUnavailable: it is not on the disk.
        """
        if self._trail is not None:
            entry = entry_of("site.job", submitter, {"job": job, "site": self._site})
            await write_before(self._trail, entry, f"not run at {self._site}")

    def job(self, job: str, submitter: Principal | None, error: FedhelmError) -> None:
        """Note why a job is not taken in, or not taken as the server says it now.

        Args:
            job: its id.
            submitter: who signed it; None where that is not proved.
            error: why.
        """
        self._note("site.job", submitter, {"job": job, "site": self._site}, error)

    def result(self, job: str, task: ContributionId, filters: Sequence[str], error: FedhelmError | None = None) -> None:
        """Note which privacy filters a result passed before it was kept for sending, or why nothing of it leaves.

        Args:
            job: its id.
            task: whose result it is.
            filters: as others may know them; without any, and without an error, nothing is noted.
            error: why it does not leave.
        """
        if filters or error is not None:
            told: dict[str, object] = {"job": job, "site": self._site, "task": task.key, "filters": ", ".join(filters)}
            self._note("site.result", None, told, error)

    def order(
        self,
        action: str,
        identifier: str,
        server: str | None,
        *,
        admin: Principal | None = None,
        reason: str = "",
        error: FedhelmError | None = None,
    ) -> None:
        """Note that an order to this agent is obeyed, or why it is not.

        Args:
            action: what was ordered.
            identifier: the order's id, which the server's audit file has, too.
            server: the primary that passed it on.
            admin: who signed it; None where that is not proved.
            reason: the admin's.
            error: why it is not obeyed.
        """
        told: dict[str, object] = {"order": identifier[:64], "reason": reason or None, "server": server}
        self._note(f"site.{action}", admin, told, error)

    def _note(
        self, action: str, by: Principal | None, object_: dict[str, object], error: FedhelmError | None = None
    ) -> None:
        if self._trail is not None:
            self._trail.note(entry_of(action, by, object_, error))

    def close(self) -> None:
        """Write what is still to be noted, for at most two seconds; blocking."""
        if self._trail is not None:
            self._trail.close(_CLOSE_S)
