"""From the overseer's values to those of its API."""

from __future__ import annotations

from fedhelm.config.kit import Kit, ServerAddress
from fedhelm.wire.overseer_api import HistoryEntry, PrimaryView, ServerState, ServerView
from fedhelm_overseer.board import Board
from fedhelm_overseer.lease import Holder, LeaseRow, Term

__all__ = ["history_entry", "primary_view", "server_view"]


def primary_view(kit: Kit, row: LeaseRow, holder: Holder) -> PrimaryView:
    """Return ``holder`` as the primary of the row's epoch."""
    server = kit.server(holder.name)
    return PrimaryView(
        name=server.name,
        epoch=row.epoch,
        host=server.host,
        fed_learn_port=server.fed_learn_port,
        admin_port=server.admin_port,
        ssid=f"{kit.project}:{row.epoch}",
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
    )


def server_view(address: ServerAddress, board: Board, now: float) -> ServerView:
    """Return one server as the board saw it last."""
    sighting, row = board.sighting(address.name), board.row
    if sighting is None:
        return ServerView(
            name=address.name, state="DOWN", fed_learn_port=address.fed_learn_port, admin_port=address.admin_port
        )
    server = sighting.server
    holds = row.holder == server.holder and row.state in {"granted", "active"}
    state: ServerState = server.role
    if sighting.beat_at is None or not board.live(address.name, now):
        state = "DOWN"
    elif state == "ACTIVE" and not (holds and row.state == "active"):
        # It has not heard yet: a fence that waits for its confirmation, or somebody else's epoch.
        state = "PROMOTING" if holds else "FENCED"
    return ServerView(
        name=address.name,
        state=state,
        epoch=row.epoch if holds and state != "DOWN" else None,
        incarnation=server.incarnation,
        log_epoch=server.log_epoch,
        log_seq=server.log_seq,
        fed_learn_port=address.fed_learn_port,
        admin_port=address.admin_port,
        beat_age_s=board.age(address.name, now),
        note=f"refused: {server.refused}" if server.refused else sighting.note,
    )
