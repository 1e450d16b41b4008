"""What this overseer has seen, in memory, on its own boot-time clock: beats, renewals, how long the row stood still."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedhelm.config.timing import Timing
from fedhelm.wire.overseer_api import BeatRequest, RegisterRequest, RenewRequest
from fedhelm_overseer.decide import EXPIRED, HOLD_DOWN, Seen, Server, unfit
from fedhelm_overseer.lease import Holder, LeaseRow, MemberRow

__all__ = ["Board", "Sighting"]

_SHUTDOWN_S = 60.0
"""Who beats so long after a shutdown was asked for was started after it."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """The last word of a registered incarnation; ``beat_at`` is None before the first and after it left.

    ``note`` says why it is not ready, or why its probe of the store fails. ``log_versions`` is empty until it registers
    with this overseer, or beats.
    """

    server: Server
    beat_at: float | None = None
    note: str | None = None
    store_token: str | None = None
    log_versions: tuple[int, ...] = ()
    software: str = ""


class Board:
    """Observations of one overseer. Not thread-safe: its owner holds a lock around every use.

    Args:
        names: the servers, in the order of the project.
        timing: the project's times.
        now: boot time at the start.
        members: registrations that the store kept.
    """

    def __init__(self, names: Iterable[str], timing: Timing, now: float, members: Iterable[MemberRow]) -> None:
        self._order: dict[str, int] = {}
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
        self._up_after: str | None = None
        self._shutdown_since = now
        self.unleased_s = 0.0
        """Seconds for which servers reported that they write without a lease."""
        self.fenced = 0
        """How often a server reported that a foreign fence ended its epoch."""
        self.sync(names, members, now)

    @property
    def row(self) -> LeaseRow:
        """The row as it was last seen."""
        return self._row or LeaseRow()

    def sync(self, names: Iterable[str], members: Iterable[MemberRow], now: float) -> None:
        """Take over what the store has of servers and registrations: other overseers change them too."""
        self._order = {name: order for order, name in enumerate(names)}
        self._sightings = {name: kept for name, kept in self._sightings.items() if name in self._order}
        for member in members:
            if member.name not in self._order:
                continue
            old = self._sightings.get(member.name)
            same = old is not None and old.server.incarnation == member.incarnation
            if old is None or (not same and not self.live(member.name, now)):
                # Registered elsewhere, or before this overseer's start: its beats will say how it is.
                self._sightings[member.name] = Sighting(self._server(member, ready=False))
            elif same:
                server = replace(old.server, spent=member.spent, refused=member.refused)
                self._sightings[member.name] = replace(old, server=server)

    def saw_row(self, row: LeaseRow, now: float) -> None:
        """Take note of the row; changes are timed from here."""
        old, self._row = self._row, row
        if old is None:
            # Counted from the start at the earliest: who renewed before is not known.
            return
        if row.version != old.version:
            self._version_since = now
        if row.epoch != old.epoch:
            self._alive_at = None
            self._positions.clear()
        if row.epoch == old.epoch + 1 and row.cause == EXPIRED and old.holder is not None:
            self._lost[old.holder.name] = now
        if row.shutdown != old.shutdown:
            self._shutdown_since = now
        if (row.epoch, row.renew_seq, row.state) != (old.epoch, old.renew_seq, old.state):
            self._unchanged_since = now
            if row.state == "active":
                # Whichever overseer it spoke to.
                self._alive_at = self._served_at = now

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
        self._count(member.name, server, now)
        self._up_after = self.row.shutdown
        self._sightings[member.name] = Sighting(
            server, now, request.reason, request.store_token, request.log_versions, request.software
        )

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
        self._count(name, server, now)
        well = beat.ready and beat.store_ok
        self._sightings[name] = replace(
            old,
            server=server,
            beat_at=None if beat.leaving else now,
            note=beat.reason or (None if well else old.note),
            store_token=beat.store_token or old.store_token,
            log_versions=beat.log_versions or old.log_versions,
            software=beat.software or old.software,
        )

    def renewed(self, name: str, renewal: RenewRequest, now: float) -> None:
        """Take note of a renewal of the lease by its holder."""
        self._alive_at = now
        self._positions.append((now, renewal.log_seq))
        old = self._sightings[name]
        server = replace(old.server, role=renewal.role, log_epoch=renewal.log_epoch, log_seq=renewal.log_seq)
        self._count(name, server, now)
        self._sightings[name] = replace(old, server=server, beat_at=now)

    def activated(self, name: str, now: float, epoch: int, log_seq: int) -> None:
        """Take note that the holder serves: its fence of ``epoch`` is in the log, at or before slot ``log_seq``."""
        self._alive_at = self._served_at = now
        if name in self._sightings:
            old = self._sightings[name]
            self._sightings[name] = replace(
                old, server=replace(old.server, role="ACTIVE", log_epoch=epoch, log_seq=log_seq), beat_at=now
            )

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

    def blind(self, now: float) -> bool:
        """Tell whether the store did not answer for T: what is known of the row is too old to be passed on."""
        return now - self._observed_at >= self._timing.lease

    def down_asked(self) -> bool:
        """Tell whether an admin shut the servers down and none was started since."""
        return self.row.shutdown is not None and self._up_after != self.row.shutdown

    def started_again(self) -> None:
        """Take note that servers were started since the shutdown in the row: an earlier run of this overseer saw it."""
        self._up_after = self.row.shutdown

    def since_renewal(self, now: float) -> float | None:
        """Return the seconds since the row's holder was last seen to renew or to begin; None if it was not seen."""
        return None if self._alive_at is None else max(0.0, now - self._alive_at)

    def log_version(self) -> int:
        """Return the highest version of the log that every registered server reads; 1 while one did not say."""
        readable = [max(sighting.log_versions, default=1) for sighting in self._sightings.values()]
        return min(readable, default=1)

    def store_tokens(self, now: float) -> dict[str, str]:
        """Return the names that live servers made in the store."""
        return {
            name: sighting.store_token
            for name, sighting in self._sightings.items()
            if sighting.store_token is not None and self.live(name, now)
        }

    def standby_store_ok(self, now: float) -> bool:
        """Tell whether a live standby can write to the store."""
        return any(
            sighting.server.store_ok and sighting.server.role == "STANDBY" and sighting.server.holder != self.row.holder
            for name, sighting in self._sightings.items()
            if sighting.beat_at is not None and self.live(name, now)
        )

    def settled(self, now: float) -> bool:
        """Tell whether this overseer looks for T, so that who was not heard does not live."""
        return now - self._started >= self._timing.lease

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
        return frozenset(name for name in self._lost if self.hold_down_left(name, now) > 0)

    def hold_down_left(self, name: str, now: float) -> float:
        """Return for how many seconds more ``name`` is held down; 0 if it is not."""
        at = self._lost.get(name)
        return 0.0 if at is None else max(0.0, HOLD_DOWN - (now - at))

    def hindered(self, name: str, now: float) -> str | None:
        """Return why the candidate ``name`` may not take over by a planned switchover, though it may by a failover."""
        age = self.age(name, now)
        if age is not None and age > 2 * self._timing.renew:
            return f"it was last heard {age:.1f} s ago"
        if behind := self.behind(name):
            return f"it is {behind} records behind"
        if (left := self.hold_down_left(name, now)) > 0:
            return f"it lost the lease by expiry, and is held down for {math.ceil(left)} s more"
        return None

    def seen(self, now: float) -> Seen:
        """Return the observations as the value that ``decide`` takes."""
        servers = {
            name: replace(
                sighting.server, order=self._order[name], live=sighting.beat_at is not None and self.live(name, now)
            )
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

    def _count(self, name: str, new: Server, now: float) -> None:
        if now - self._shutdown_since > _SHUTDOWN_S:
            self._up_after = self.row.shutdown
        old = self._sightings.get(name)
        if old is None or old.server.holder != new.holder:
            return
        if old.server.unleased and old.beat_at is not None:
            self.unleased_s += max(0.0, now - old.beat_at)
        if new.role == "FENCED" and old.server.role != "FENCED":
            self.fenced += 1

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
