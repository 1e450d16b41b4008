"""What this overseer has seen, in memory, on its own boot-time clock: beats, renewals, how long the row stood still."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedhelm.config.timing import Timing
from fedhelm.wire.overseer_api import BeatRequest, RegisterRequest, RenewRequest
from fedhelm_overseer.decide import HOLD_DOWN, Seen, Server, unfit
from fedhelm_overseer.lease import Holder, LeaseRow, MemberRow

__all__ = ["Board", "Sighting"]


@dataclass(frozen=True, slots=True)
class Sighting:
    """The last word of a registered incarnation; ``beat_at`` is None before the first and after it left."""

    server: Server
    beat_at: float | None = None
    note: str | None = None


class Board:
    """Observations of one overseer. Not thread-safe: its owner holds a lock around every use.

    Args:
        names: the servers, in the order of the project.
        timing: the project's times.
        now: boot time at the start.
        members: registrations that the store kept.
    """

    def __init__(self, names: Iterable[str], timing: Timing, now: float, members: Iterable[MemberRow]) -> None:
        self._order = {name: order for order, name in enumerate(names)}
        self._timing = timing
        self._started = now
        self._observed_at = now
        self._row: LeaseRow | None = None
        self._unchanged_since = now
        self._version_since = now
        self._first_fit_since: float | None = None
        self._lost: dict[str, float] = {}
        self._sightings: dict[str, Sighting] = {}
        self._up: set[str] = set()
        self._alive_at: float | None = None
        self._served_at: float | None = None
        self._positions: deque[tuple[float, int]] = deque(maxlen=64)
        for member in members:
            if member.name in self._order:
                self._sightings[member.name] = Sighting(self._server(member, ready=False))

    @property
    def row(self) -> LeaseRow:
        """The row as it was last seen."""
        return self._row or LeaseRow()

    def saw_row(self, row: LeaseRow, now: float) -> None:
        """Take note of the row; changes are timed from here."""
        old, self._row = self._row, row
        if old is None:
            # Counted from the start at the earliest: who renewed before is not known.
            return
        if (row.epoch, row.renew_seq, row.state) != (old.epoch, old.renew_seq, old.state):
            self._unchanged_since = now
        if row.version != old.version:
            self._version_since = now
        if row.epoch != old.epoch:
            self._alive_at = None
            self._positions.clear()

    def observed(self, now: float) -> None:
        """Say that the row was read by the observer. After an interruption every wait begins again."""
        if now - self._observed_at > 2 * self._timing.observe + self._timing.request:
            self._unchanged_since = self._version_since = now
            for name in self._up:
                sighting = self._sightings[name]
                if sighting.beat_at is not None:
                    self._sightings[name] = replace(sighting, beat_at=now)
        self._observed_at = now

    def registered(self, member: MemberRow, request: RegisterRequest, now: float) -> None:
        """Take note of a registration, which is a beat too."""
        server = replace(
            self._server(member, ready=request.ready),
            role=request.role,
            store_ok=request.store_ok,
            unleased=request.unleased,
            log_epoch=request.log_epoch,
            log_seq=request.log_seq,
        )
        self._sightings[member.name] = Sighting(server, now, request.reason)

    def beat(self, name: str, beat: BeatRequest, now: float) -> None:
        """Take note of a beat of the registered incarnation."""
        old = self._sightings[name]
        server = replace(
            old.server,
            role=beat.role,
            ready=beat.ready,
            store_ok=beat.store_ok,
            unleased=beat.unleased,
            log_epoch=beat.log_epoch,
            log_seq=beat.log_seq,
        )
        self._sightings[name] = replace(old, server=server, beat_at=now, note=None if beat.ready else old.note)

    def renewed(self, name: str, renewal: RenewRequest, now: float) -> None:
        """Take note of a renewal of the lease by its holder."""
        self._alive_at = now
        if self.row.state == "active":
            self._served_at = now
        self._positions.append((now, renewal.log_seq))
        old = self._sightings[name]
        server = replace(old.server, role=renewal.role, log_epoch=renewal.log_epoch, log_seq=renewal.log_seq)
        self._sightings[name] = replace(old, server=server, beat_at=now)

    def activated(self, name: str, now: float) -> None:
        """Take note that the holder serves."""
        self._alive_at = self._served_at = now
        if name in self._sightings:
            old = self._sightings[name]
            self._sightings[name] = replace(old, server=replace(old.server, role="ACTIVE"), beat_at=now)

    def released(self, row: LeaseRow, name: str, now: float, *, refused: str | None, gone: bool) -> None:
        """Take note of a release that led to ``row``; ``gone``: the incarnation has ended."""
        if self.row.state == "active":
            self._served_at = now
        self.saw_row(row, now)
        if name in self._sightings:
            old = self._sightings[name]
            server = replace(old.server, refused=refused, spent=old.server.spent or refused is None)
            self._sightings[name] = replace(old, server=server, beat_at=None if gone else old.beat_at)

    def expired(self, holder: Holder, now: float) -> None:
        """Take note that ``holder`` let its lease run out."""
        self._lost[holder.name] = now
        self.spend(holder)

    def spend(self, holder: Holder) -> None:
        """Bar this incarnation from another grant."""
        sighting = self._sightings.get(holder.name)
        if sighting is not None and sighting.server.holder == holder:
            self._sightings[holder.name] = replace(sighting, server=replace(sighting.server, spent=True))

    def knows(self, holder: Holder) -> bool:
        """Tell whether this incarnation is the registered one."""
        sighting = self._sightings.get(holder.name)
        return sighting is not None and sighting.server.holder == holder

    def sighting(self, name: str) -> Sighting | None:
        """Return the last word of the server called ``name``, with ``live`` as of the last ``seen``."""
        return self._sightings.get(name)

    def live(self, name: str, now: float) -> bool:
        """Tell whether the registered incarnation of ``name`` may be alive: heard within T.

        Within T of this overseer's start the holder of the lease may be, too.
        """
        sighting = self._sightings.get(name)
        if sighting is None:
            return False
        if sighting.beat_at is not None:
            return now - sighting.beat_at < self._timing.lease
        holds = self.row.holder == sighting.server.holder and self.row.state in {"granted", "active"}
        return holds and now - self._started < self._timing.lease

    def age(self, name: str, now: float) -> float | None:
        """Return the age of the last beat."""
        sighting = self._sightings.get(name)
        return None if sighting is None or sighting.beat_at is None else max(0.0, now - sighting.beat_at)

    def holder_heard(self, now: float) -> bool:
        """Tell whether the row's holder renewed within T."""
        return self._alive_at is not None and now - self._alive_at < self._timing.lease

    def gap(self, now: float) -> float | None:
        """Return the time since an epoch that served last renewed or was released, if that was seen."""
        return None if self._served_at is None else max(0.0, now - self._served_at)

    def behind(self, name: str) -> int:
        """Return how many records ``name`` lacks of what the primary had when ``name`` last read the log."""
        sighting = self._sightings[name]
        if sighting.beat_at is None:
            return 0
        then = sighting.beat_at - self._timing.observe - self._timing.renew
        positions = [position for at, position in self._positions if at <= then]
        return max(0, positions[-1] - sighting.server.log_seq) if positions else 0

    def held_down(self, now: float) -> frozenset[str]:
        """Return who lost the lease by expiry within ``HOLD_DOWN``."""
        return frozenset(name for name, at in self._lost.items() if now - at < HOLD_DOWN)

    def seen(self, now: float) -> Seen:
        """Return the observations as the value that ``decide`` takes."""
        servers = {
            name: replace(sighting.server, live=sighting.beat_at is not None and self.live(name, now))
            for name, sighting in self._sightings.items()
        }
        if not any(unfit(server, self.row) is None for server in servers.values()):
            self._first_fit_since = None
        elif self._first_fit_since is None:
            self._first_fit_since = now
        return Seen(
            expected=len(self._order),
            servers=servers,
            unchanged_since=self._unchanged_since,
            version_since=self._version_since,
            first_fit_since=self._first_fit_since,
            held_down=self.held_down(now),
        )

    def movements(self, seen: Seen) -> tuple[list[str], list[str]]:
        """Return who came up and who went down since the last call."""
        up = {name for name, server in seen.servers.items() if server.live}
        came, went = sorted(up - self._up), sorted(self._up - up)
        self._up = up
        return came, went

    def _server(self, member: MemberRow, *, ready: bool) -> Server:
        return Server(
            member.name,
            member.incarnation,
            self._order[member.name],
            ready=ready,
            log_seq=-1,
            spent=member.spent,
            refused=member.refused,
        )
