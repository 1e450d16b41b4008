"""Commands about servers, sites and who leads."""

from __future__ import annotations

from typing import Annotated, Any

from fedhelm.admin.models import Primary, Site, Status
from fedhelm.errors import NotFound, Refused, UsageError
from fedhelm_console import render
from fedhelm_console.context import Console
from fedhelm_console.registry import Arg, Command, Result

__all__ = ["SYSTEM_COMMANDS"]

TIMEOUT = 60.0
SHOWN = 20
MOST = 1000


def _server(status: Status) -> dict[str, Any]:
    return {
        "name": status.server,
        "role": status.role,
        "epoch": status.epoch,
        "log_seq": status.log_seq,
        "jobs_running": status.jobs_running,
        "jobs_waiting": status.jobs_waiting,
    }


def _site(site: Site) -> dict[str, Any]:
    return {"name": site.name, "connected": site.connected, "jobs": list(site.jobs)}


def check_status(
    console: Console,
    part: Annotated[
        str | None,
        Arg("part", "server or client; both if not given", metavar="server|client", choices=("server", "client")),
    ] = None,
    name: Annotated[str | None, Arg("text", "one site")] = None,
) -> Result:
    """Show the primary and the sites."""
    status = console.session.check_status(timeout=console.limit(TIMEOUT))
    sites = [site for site in status.sites if name is None or site.name == name]
    if name is not None and part == "client" and not sites:
        raise NotFound(f"no site {name}", hint="check_status client")
    if part == "client":
        return Result([_site(site) for site in sites], lambda: render.sites(sites, console.style))
    if part == "server":
        return Result(_server(status), lambda: render.status(status, console.style))
    return Result(
        {"server": _server(status), "sites": [_site(site) for site in status.sites]},
        lambda: f"{render.status(status, console.style)}\n\n{render.sites(status.sites, console.style)}",
    )


def list_sp(console: Console) -> Result:
    """Show the servers as the overseer sees them."""
    found = console.session.servers(timeout=console.timeout)
    data = [{"name": server.name, "state": server.state, "epoch": server.epoch} for server in found]
    return Result(data, lambda: render.servers(found, console.style))


def get_active_sp(console: Console) -> Result:
    """Show who leads, as the overseer knows it."""
    found = console.session.primary(timeout=console.timeout)
    data = {
        "name": found.name,
        "epoch": found.epoch,
        "fed_learn_port": found.fed_learn_port,
        "admin_port": found.admin_port,
    }
    return Result(data, f"{found.name}:{found.fed_learn_port}:{found.admin_port} epoch {found.epoch}")


def _check_promotable(console: Console, server: str) -> Primary:
    """Return who leads now, if ``server`` may take over as far as can be told without asking for it.

    Raises:
        NotFound: no such server.
        NoPrimary: nobody leads, so there is nothing to switch over.
        Refused: it leads already, or does not stand by.
    """
    limit = console.timeout
    servers = {one.name: one for one in console.session.servers(timeout=limit)}
    if server not in servers:
        raise NotFound(f"no server {server}; there are {', '.join(servers)}", hint="list_sp")
    now = console.session.primary(timeout=limit)
    if now.name == server:
        raise Refused(f"{server} leads already, epoch {now.epoch}", hint="list_sp")
    found = servers[server]
    if found.state != "STANDBY":
        why = f": {found.note}" if found.note else ""
        raise Refused(f"{server} cannot take over: it is {found.state}{why}", hint="list_sp")
    return now


def promote_sp(console: Console, server: Annotated[str, Arg("server", "who shall lead")]) -> Result:
    """Make another server lead: a planned switchover."""
    now = _check_promotable(console, server)
    arrow = console.style.plain("→")
    console.confirm(f"Primary: {now.name}, epoch {now.epoch} {arrow} {server}", name=server)
    leads = console.session.promote(server, timeout=console.limit(TIMEOUT))
    data = {
        "name": leads.name,
        "epoch": leads.epoch,
        "fed_learn_port": leads.fed_learn_port,
        "admin_port": leads.admin_port,
    }
    return Result(data, f"{leads.name} leads, epoch {leads.epoch}")


def history(console: Console) -> Result:
    """Show every epoch: who led, why it began, the gap before it."""
    found = console.session.history(timeout=console.timeout)
    data = [
        {"epoch": one.epoch, "name": one.name, "cause": one.cause, "time": one.time, "gap_s": one.gap_s}
        for one in found
    ]
    return Result(data, lambda: render.failovers(found, console.style))


def events(
    console: Console,
    limit: Annotated[int, Arg("number", f"how many (default {SHOWN}, at most {MOST})", metavar="N")] = SHOWN,
) -> Result:
    """Show the last events of the overseer, oldest first: who came, went, was granted the lease, leads."""
    if limit > MOST:
        raise UsageError(f"the overseer keeps the last {MOST} events, not {limit}", hint=f"events {MOST}")
    found = console.session.recent_events(limit, timeout=console.timeout)
    data = [
        {"id": one.id, "time": one.time, "kind": one.kind, "text": one.text, "data": dict(one.data)} for one in found
    ]
    return Result(data, lambda: render.events(found, console.style))


SYSTEM_COMMANDS = (
    Command(
        "check_status",
        check_status,
        "the primary and the sites",
        ("check_status", "check_status client site-1"),
        aliases=("status",),
        errors=("NOT_FOUND",),
    ),
    Command(
        "list_sp",
        list_sp,
        "the servers as the overseer sees them",
        ("list_sp", "list_sp -o json"),
        errors=("UNREACHABLE",),
    ),
    Command(
        "get_active_sp",
        get_active_sp,
        "who leads, as the overseer knows it",
        ("get_active_sp", "get_active_sp -o json"),
        errors=("NO_PRIMARY", "UNREACHABLE"),
    ),
    Command(
        "promote_sp",
        promote_sp,
        "make another server lead: a planned switchover",
        ("promote_sp server2", "promote_sp server2 --yes"),
        grade=2,
        errors=("NOT_FOUND", "REFUSED", "TIMEOUT"),
    ),
    Command(
        "history",
        history,
        "every epoch: who led, why it began, the gap before it",
        ("history", "history -o json"),
        errors=("UNREACHABLE",),
    ),
    Command(
        "events",
        events,
        "the last events of the overseer, with ids and times",
        ("events", "events 50 -o json"),
        errors=("UNREACHABLE",),
    ),
)
