"""From the overseer's values to those of its API."""

from __future__ import annotations

from dataclasses import replace

from fedhelm.config.kit import ServerAddress
from fedhelm.wire.overseer_api import HistoryEntry, PrimaryView, ServerState, ServerView
from fedhelm_overseer.board import Board
from fedhelm_overseer.decide import Server, unfit
from fedhelm_overseer.lease import LeaseRow, Term

__all__ = ["history_entry", "primary_view", "server_view"]


def primary_view(project: str, address: ServerAddress, row: LeaseRow) -> PrimaryView:
    """Return the server at ``address`` as the primary of the row's epoch."""
    return PrimaryView(
        name=address.name,
        epoch=row.epoch,
        host=address.host,
        fed_learn_port=address.fed_learn_port,
        admin_port=address.admin_port,
        ssid=f"{project}:{row.epoch}",
    )


def history_entry(term: Term) -> HistoryEntry:
    """Return one epoch of the history."""
    return HistoryEntry(
        epoch=term.epoch,
        holder=term.holder.name,
        incarnation=term.holder.incarnation,
        cause=term.cause,
        granted_at=term.granted_at,
        active_at=term.active_at,
        gap_s=term.gap_s,
        previous=term.previous,
        by=term.by,
        jobs=term.jobs,
    )


def server_view(address: ServerAddress, board: Board, now: float) -> ServerView:
    """Return one server as the board saw it last."""
    sighting, row = board.sighting(address.name), board.row
    view = ServerView(
        name=address.name,
        state="DOWN",
        host=address.host,
        fed_learn_port=address.fed_learn_port,
        admin_port=address.admin_port,
    )
    if sighting is None:
        return view
    live = sighting.beat_at is not None and board.live(address.name, now)
    server = replace(sighting.server, live=live)
    holds = row.holder == server.holder and row.state in {"granted", "active"}
    state: ServerState = server.role if live else "DOWN"
    if state == "ACTIVE" and not (holds and row.state == "active"):
        # It has not heard yet: a fence that waits for its confirmation, or somebody else's epoch.
        state = "PROMOTING" if holds else "FENCED"
    return view.model_copy(
        update={
            "state": state,
            "candidate": unfit(server, row) is None,
            "lag": board.behind(address.name) if live else None,
            "log_versions": sighting.log_versions,
            "software": sighting.software,
            "epoch": row.epoch if holds and live else None,
            "incarnation": server.incarnation,
            "log_epoch": server.log_epoch,
            "log_seq": server.log_seq,
            "beat_age_s": board.age(address.name, now),
            "note": _note(server, sighting.note, row, board, now),
        }
    )


def _note(server: Server, reason: str | None, row: LeaseRow, board: Board, now: float) -> str | None:
    """Say what keeps a server that looks well from being granted the lease, or from being promoted."""
    if server.refused:
        return f"refused: {server.refused}"
    if not server.live or server.role != "STANDBY" or server.holder == row.holder:
        return reason
    if (why := unfit(server, row)) is not None:
        return f"not a candidate: {why}{f' ({reason})' if reason else ''}"
    if (hindered := board.hindered(server.name, now)) is not None:
        return f"promote_sp would be refused: {hindered}"
    return reason
