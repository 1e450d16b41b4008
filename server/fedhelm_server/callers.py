"""What a server asks about whoever calls it: the policy, which certificates were revoked, and where it is all noted."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable

from fedhelm.config.kit import Kit
from fedhelm.errors import FedhelmError, KitError
from fedhelm.security.audit import AUDIT_FILE, AuditTrail
from fedhelm.security.audit_start import open_trail
from fedhelm.security.authorization import Policy, default_policy
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.own_policy import OwnPolicy
from fedhelm.security.reloading import LOOK_S
from fedhelm.wire.chain import ServiceHandlers

__all__ = ["CLOSE_S", "Callers"]

_log = logging.getLogger("fedhelm.server")

CLOSE_S = 2.0
"""How long a stop waits for the last lines of the audit file."""


@dataclasses.dataclass
class Callers:
    """One for all services of a server, made before it opens a port.

    Attributes:
        policy: who may do what.
        revocations: the certificates that count no longer; None: there are none.
        trail: the audit file, whose only writer the server's child is; None: nothing is noted.
        services: what answers callers; each asks about every call.
        on_kit: called with each kit that takes the place of the former one.
        own: where the policy comes from; None: it is the default one.
    """

    policy: Policy = dataclasses.field(default_factory=default_policy)
    revocations: KeptRevocations | None = None
    trail: AuditTrail | None = None
    services: list[ServiceHandlers] = dataclasses.field(default_factory=list)
    on_kit: list[Callable[[Kit], None]] = dataclasses.field(default_factory=list)
    own: OwnPolicy | None = None

    @classmethod
    def of(cls, kit: Kit) -> Callers:
        """Read what the kit and the participant's own folder say, and open the audit file.

        Raises:
            BadInput: a mistake in ``authorization.json`` or ``local/audit.json``, with file, line and column.
            KitError: a file of ``startup/`` is missing.
            FedhelmError: the audit file cannot be written, or another process writes it.
        """
        own = OwnPolicy(kit.root)
        revocations = KeptRevocations(kit)
        if revocations.problem is not None:
            _log.error("%s", revocations.problem)
        try:
            trail = open_trail(kit)
        except OSError as error:
            raise FedhelmError(f"{kit.root / AUDIT_FILE} cannot be written: {error.strerror or error}") from error
        return cls(own.policy, revocations, trail, own=own)

    def take(self, kit: Kit) -> None:
        """Go on with the policy, the certificate and the roots of a kit that took the place of the former one.

        Raises:
            BadInput: a mistake in a policy file; what that file said before stays in force.
            KitError: a file cannot be read.
        """
        if self.revocations is not None:
            self.revocations.trust(kit)
        for listener in self.on_kit:
            listener(kit)
        if self.own is None:
            self.own = OwnPolicy(kit.root)
        try:
            self.own.take()
        finally:
            self._decide_by(self.own.policy)

    def _decide_by(self, policy: Policy) -> None:
        self.policy = policy
        for service in self.services:
            service.policy = policy

    async def watch_own_policy(self, interval: float = LOOK_S) -> None:
        """Take ``local/authorization.json`` whenever it changes, for ever; a mistake leaves the former one in force."""
        while True:
            own = self.own
            policy = None if own is None else await asyncio.to_thread(own.look)
            if policy is not None:
                self._decide_by(policy)
            await asyncio.sleep(interval)

    def warnings(self) -> list[str]:
        """Return what an operator has to know: of the audit file, and of the policy in ``local/``."""
        problem = self.trail.figures.problem if self.trail is not None else None
        told = "commands are refused: their lines cannot be written to the audit file"
        warnings = [] if problem is None else [f"{told}: {problem}"]
        if self.own is not None and self.own.problem is not None:
            warnings.append(self.own.problem)
        return warnings

    def read_revocations(self) -> None:
        """Take the list of revoked certificates that the supervisor has put on disk, and end the calls of theirs."""
        if self.revocations is None:
            return
        try:
            added = self.revocations.read_again()
        except KitError as error:
            _log.error("the list of revoked certificates in force stays: %s", error)
            return
        ended = self.end_calls(added)
        _log.info("certificates revoked now: %s; %d calls ended", ", ".join(added) or "none", ended)

    def end_calls(self, serials: tuple[str, ...]) -> int:
        """End the calls that run with certificates which were just revoked; return how many there were."""
        return sum(service.end_calls(serials) for service in self.services)

    def close(self) -> None:
        """Write what is still to be noted, for at most :data:`CLOSE_S`; blocking."""
        if self.trail is not None:
            self.trail.close(CLOSE_S)
