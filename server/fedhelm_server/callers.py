"""What a server asks about whoever calls it: the policy, which certificates were revoked, and where it is all noted."""

from __future__ import annotations

import dataclasses
import logging

from fedhelm.config.kit import Kit
from fedhelm.errors import FedhelmError
from fedhelm.security.audit import AUDIT_FILE, AuditTrail
from fedhelm.security.audit_start import open_trail
from fedhelm.security.authorization import Policy, default_policy
from fedhelm.security.gates import read_policy
from fedhelm.security.kept_revocations import KeptRevocations
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
    """

    policy: Policy = dataclasses.field(default_factory=default_policy)
    revocations: KeptRevocations | None = None
    trail: AuditTrail | None = None
    services: list[ServiceHandlers] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, kit: Kit) -> Callers:
        """Read what the kit and the participant's own folder say, and open the audit file.

        Raises:
            BadInput: a mistake in ``authorization.json`` or ``local/audit.json``, with file, line and column.
            KitError: a file of ``startup/`` is missing.
            FedhelmError: the audit file cannot be written, or another process writes it.
        """
        policy = read_policy(kit.root)
        revocations = KeptRevocations(kit)
        if revocations.problem is not None:
            _log.error("%s", revocations.problem)
        try:
            trail = open_trail(kit)
        except OSError as error:
            raise FedhelmError(f"{kit.root / AUDIT_FILE} cannot be written: {error.strerror or error}") from error
        return cls(policy, revocations, trail)

    def take(self, kit: Kit) -> None:
        """Go on with the policy and the roots of a kit that took the place of the former one.

        Raises:
            BadInput: a mistake in a policy file; the policy in force stays.
            KitError: a file cannot be read.
        """
        policy = read_policy(kit.root)
        if self.revocations is not None:
            self.revocations.trust(kit)
        self.policy = policy
        for service in self.services:
            service.policy = policy

    def end_calls(self, serials: tuple[str, ...]) -> int:
        """End the calls that run with certificates which were just revoked; return how many there were."""
        return sum(service.end_calls(serials) for service in self.services)

    def close(self) -> None:
        """Write what is still to be noted, for at most :data:`CLOSE_S`; blocking."""
        if self.trail is not None:
            self.trail.close(CLOSE_S)
