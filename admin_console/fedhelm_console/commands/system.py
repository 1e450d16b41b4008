"""Commands about servers, sites and who leads."""

from __future__ import annotations

from typing import Annotated, Any

from fedhelm.admin.models import Site, Status, System
from fedhelm.errors import FedhelmError, NotFound, UsageError
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
        "low_water": status.low_water,
        "checkpoint": status.checkpoint or None,
        "log_version": status.log_version,
        "store_free": status.store_free or None,
        "warnings": list(status.warnings),
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
    standing = _standing(console)
    data = [
        {
            "name": server.name,
            "state": server.state,
            "epoch": server.epoch,
            "candidate": server.candidate,
            "lag": server.lag,
            "beat_age_s": server.beat_age_s,
            "note": server.note,
            "software": server.software,
        }
        for server in found
    ]
    return Result(data, lambda: "\n".join([render.servers(found, console.style), *render.standing(found, standing)]))


def _standing(console: Console) -> System:
    """Return what admins decided; nothing special where no overseer says so."""
    try:
        return console.session.system(timeout=console.timeout)
    except FedhelmError:  # one of the version before does not know the question
        return System()


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


def history(console: Console) -> Result:
    """Show every epoch: who led, why it began, who asked for it, the gap before it, the jobs that went on."""
    found = console.session.history(timeout=console.timeout)
    data = [
        {
            "epoch": one.epoch,
            "name": one.name,
            "cause": one.cause,
            "by": one.by,
            "time": one.time,
            "gap_s": one.gap_s,
            "jobs": one.jobs,
        }
        for one in found
    ]
    return Result(data, lambda: render.failovers(found, console.style))


def explain(console: Console, server: Annotated[str, Arg("server", "a server")]) -> Result:
    """Show why a server is or is not a candidate, and who would lead if the primary died now."""
    found = console.session.explain(server, timeout=console.timeout)
    data = {
        "name": found.name,
        "candidate": found.candidate,
        "verdict": found.verdict,
        "checks": [{"name": one.name, "ok": one.ok, "text": one.text} for one in found.checks],
        "next": found.next,
    }
    return Result(data, lambda: render.explanation(found, console.style))


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
        "explain",
        explain,
        "why a server is or is not a candidate, and who would be next",
        ("explain server2", "explain server2 -o json"),
        errors=("NOT_FOUND", "UNREACHABLE"),
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
