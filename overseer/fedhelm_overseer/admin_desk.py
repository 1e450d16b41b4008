"""What admins ask an overseer for: a switchover, a pause of failover, the end of servers, and why things are so.

Who asks is the name in the caller's certificate. Each request carries an id; repeating it changes nothing.
"""

from __future__ import annotations

from fedhelm.errors import Conflict, NoPrimary, Refused
from fedhelm.wire.overseer_api import (
    ExplainView,
    Intent,
    OperateRequest,
    PromoteReply,
    PromoteRequest,
    SystemView,
)
from fedhelm_overseer.decide import unfit
from fedhelm_overseer.explain import Subject, explain
from fedhelm_overseer.lease import LeaseRow, OperationKind
from fedhelm_overseer.table import Table

__all__ = ["AdminDesk"]

_CAS_TRIES = 5


class AdminDesk:
    """The admins' operations, on the table that the servers' share. Any thread.

    Args:
        table: the overseer's state.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def promote(self, admin: str, request: PromoteRequest) -> PromoteReply:
        """Write the intent of a planned switchover into the row.

        Raises:
            NotFound: the project has no such server.
            NoPrimary: nobody leads, so there is nothing to switch over.
            Refused: the target leads already, is not fit, lags, or is held down.
            Conflict: another switchover is under way.
        """
        table = self._table
        table.roster.check(request.target)
        with table.turn:
            for _ in range(_CAS_TRIES):
                row = table.read()
                repeated = self._repeated(row, request)
                if repeated is not None:
                    return repeated
                primary = self._check_promotable(row, request.target)
                intent = Intent(target=request.target, request_id=request.request_id)
                new = table.store.set_intent(row, intent, by=admin)
                if new is not None:
                    break
            else:
                raise Conflict("the lease keeps changing", hint="try again")
            table.noted(new)
        table.told.asked(admin, primary, request)
        return PromoteReply(epoch=row.epoch, primary=primary, target=request.target, request_id=request.request_id)

    def pause(self, admin: str, request: OperateRequest) -> SystemView:
        """Grant nothing from now on but what an admin asks for.

        Raises:
            Conflict: the request id was used for something else.
        """
        return self._set_paused(admin, request, paused=True)

    def resume(self, admin: str, request: OperateRequest) -> SystemView:
        """Grant again, at once if nobody leads.

        Raises:
            Conflict: the request id was used for something else.
        """
        return self._set_paused(admin, request, paused=False)

    def shutdown(self, admin: str, request: OperateRequest) -> SystemView:
        """Ask all servers to end; this overseer stays.

        Raises:
            Conflict: the request id was used for something else.
        """
        table = self._table
        with table.turn:
            if not self._done(request, "shutdown"):
                stamp = table.stamp()
                row = table.store.set_shutdown(request.request_id, admin, at=stamp, reason=request.reason)
                table.noted(row)
                table.told.shut_down(admin, request.reason, request.request_id)
        return self.system()

    def remove(self, admin: str, name: str, request: OperateRequest) -> None:
        """Forget a server that is down. A kit that was signed before now does not bring it back.

        Raises:
            NotFound: the project has no such server.
            Refused: it lives or may live, holds the lease, or is the only one.
            Conflict: the request id was used for something else.
        """
        table = self._table
        with table.turn:
            row = table.read()
            if self._done(request, "remove", name):
                return
            table.roster.check(name)
            self._check_removable(row, name)
            table.store.remove(name, admin, request_id=request.request_id, at=table.stamp(), reason=request.reason)
            table.refresh()
            table.told.removed(name, admin, request.reason)
        table.changed.ring()

    def system(self) -> SystemView:
        """Return what admins decided of the whole system."""
        now = self._table.now()
        with self._table.lock:
            board = self._table.board
            row, seen = board.row, board.seen(now)
            heard = any(server.live for server in seen.servers.values())
            down = board.down_asked() and board.settled(now) and not heard
        return SystemView(
            paused=row.paused,
            paused_by=row.paused_by,
            reason=row.pause_reason or None,
            shutdown=row.shutdown,
            down=down,
        )

    def explain(self, name: str) -> ExplainView:
        """Say why ``name`` is or is not a candidate.

        Raises:
            NotFound: the project has no such server.
            Refused: it was removed.
        """
        table = self._table
        table.roster.check(name)
        now = table.now()
        with table.lock:
            board = table.board
            row, seen, sighting = board.row, board.seen(now), board.sighting(name)
            subject = Subject(
                name,
                seen.servers.get(name),
                age=board.age(name, now),
                note=sighting.note if sighting else None,
                behind=board.behind(name) if sighting else 0,
                log_versions=sighting.log_versions if sighting else (),
                hold_down_left=board.hold_down_left(name, now),
            )
            heard, all_read = board.holder_heard(now), board.log_version()
        return explain(subject, row, seen, table.kit.timing, now, heard=heard, all_read=all_read)

    def _set_paused(self, admin: str, request: OperateRequest, *, paused: bool) -> SystemView:
        table = self._table
        with table.turn:
            if not self._done(request, "pause" if paused else "resume"):
                for _ in range(_CAS_TRIES):
                    new = table.store.set_paused(
                        table.read(),
                        paused,
                        admin,
                        request_id=request.request_id,
                        at=table.stamp(),
                        reason=request.reason,
                    )
                    if new is not None:
                        break
                else:
                    raise Conflict("the lease keeps changing", hint="try again")
                table.noted(new)
                table.told.paused(admin, request.reason, paused=paused)
        table.wake()
        return self.system()

    def _done(self, request: OperateRequest, kind: OperationKind, target: str | None = None) -> bool:
        """Tell whether this request was done before."""
        known = next((one for one in self._table.store.operations() if one.request_id == request.request_id), None)
        if known is not None and (known.kind, known.target) != (kind, target):
            raise Conflict(
                f"the request id {request.request_id} was used for another {known.kind}", hint="use a new id"
            )
        return known is not None

    def _check_removable(self, row: LeaseRow, name: str) -> None:
        table, now = self._table, self._table.now()
        with table.lock:
            live, age, settled = table.board.live(name, now), table.board.age(name, now), table.board.settled(now)
        if row.holder is not None and row.holder.name == name and row.state in {"granted", "active"}:
            raise Refused(f"{name} holds the lease, epoch {row.epoch}", hint="promote_sp another one, then stop it")
        if live or not settled:
            heard = f"was heard {age:.1f} s ago" if age is not None else "may live: this overseer has only just started"
            raise Refused(f"{name} {heard}", hint="stop it first; it is down when nothing was heard of it for a term")
        if len(table.roster.names) == 1:
            raise Refused(f"{name} is the only server of the project")

    def _repeated(self, row: LeaseRow, request: PromoteRequest) -> PromoteReply | None:
        """Return the answer that this request id had, or None for a new one."""
        history = self._table.store.history()
        if row.intent is not None and row.intent.request_id == request.request_id:
            before = row.epoch
        else:
            terms = [term for term in history if term.request_id == request.request_id]
            if not terms:
                return None
            before = terms[0].epoch - 1
        primary = next((term.holder.name for term in history if term.epoch == before), "")
        return PromoteReply(epoch=before, primary=primary, target=request.target, request_id=request.request_id)

    def _check_promotable(self, row: LeaseRow, target: str) -> str:
        """Return the present primary's name if ``target`` may take over from it."""
        now, board = self._table.now(), self._table.board
        with self._table.lock:
            heard = board.holder_heard(now)
            server = board.seen(now).servers.get(target)
            why = "it has not registered" if server is None else unfit(server, row)
            why = why or board.hindered(target, now)
        if row.holder is None or row.state != "active" or not heard:
            raise NoPrimary("no server leads at the moment, so there is nothing to switch over")
        if row.holder.name == target:
            raise Refused(f"{target} leads already, epoch {row.epoch}")
        if row.intent is not None:
            raise Conflict(f"a switchover to {row.intent.target} is under way")
        if why is not None:
            raise Refused(f"{target} cannot take over: {why}", hint=f"`explain {target}` shows every condition")
        return row.holder.name
