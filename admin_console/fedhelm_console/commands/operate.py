"""Commands that change who leads, and what runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fedhelm.admin.models import Operated, Primary, Server
from fedhelm.errors import ExitStatus, FedhelmError, NoPrimary, NotFound, Refused, UsageError
from fedhelm_console import render
from fedhelm_console.context import Console
from fedhelm_console.registry import Arg, Command, Result

__all__ = ["OPERATE_COMMANDS"]

TIMEOUT = 60.0
_TALLY = 5.0

_EVERYBODY = "@ALL"


def _topology(leads: Primary | None, servers: list[Server], jobs: int | None) -> dict[str, Any]:
    return {
        "primary": None if leads is None else leads.name,
        "epoch": None if leads is None else leads.epoch,
        "servers": [{"name": one.name, "state": one.state} for one in servers],
        "jobs": jobs,
    }


def _jobs_running(console: Console) -> int | None:
    try:
        return console.session.check_status(timeout=_TALLY).jobs_running
    except FedhelmError:
        return None


def _check_promotable(servers: list[Server], now: Primary, server: str) -> None:
    """Do nothing if ``server`` may take over as far as can be told without asking for it.

    Raises:
        NotFound: no such server.
        Refused: it leads already, or does not stand by.
    """
    named = {one.name: one for one in servers}
    if server not in named:
        raise NotFound(f"no server {server}; there are {', '.join(named)}", hint="list_sp")
    if now.name == server:
        raise Refused(f"{server} leads already, epoch {now.epoch}", hint="list_sp")
    found = named[server]
    if found.state != "STANDBY":
        why = f": {found.note}" if found.note else ""
        raise Refused(f"{server} cannot take over: it is {found.state}{why}", hint=f"explain {server}")


def promote_sp(console: Console, server: Annotated[str, Arg("server", "who shall lead")]) -> Result:
    """Make another server lead: a planned switchover; the jobs go on there."""
    servers = console.session.servers(timeout=console.timeout)
    now = console.session.primary(timeout=console.timeout)
    _check_promotable(servers, now, server)
    jobs = _jobs_running(console)
    before = render.topology("before", now, servers, jobs, console.style)
    console.confirm(f"{before}\nSwitch over to {server}?", name=server)
    leads = console.session.promote(server, timeout=console.limit(TIMEOUT))
    after = console.session.servers(timeout=console.timeout)
    went_on = _jobs_running(console)
    data = {
        "name": leads.name,
        "epoch": leads.epoch,
        "fed_learn_port": leads.fed_learn_port,
        "admin_port": leads.admin_port,
        "before": _topology(now, servers, jobs),
        "after": _topology(leads, after, went_on),
    }
    text = f"{before}\n{render.topology('after', leads, after, went_on, console.style)}"
    return Result(data, text)


def pause_failover(
    console: Console,
    *,
    reason: Annotated[str, Arg("text", "stands in events and explain", ("--reason",), "TEXT")] = "",
) -> Result:
    """Have no server take over by itself, during maintenance say; promote_sp still works."""
    system = console.session.system(timeout=console.timeout)
    if system.paused:
        by = f" by {system.paused_by}" if system.paused_by else ""
        raise Refused(f"failover is paused already{by}", hint="resume_failover")
    project = console.session.kit.project
    console.confirm("Pause failover: a primary that dies is not replaced until resume_failover.", name=project)
    console.session.pause_failover(reason, timeout=console.limit(TIMEOUT))
    return Result({"paused": True}, "failover is paused; resume_failover ends that")


def resume_failover(console: Console) -> Result:
    """End a pause; a primary that died meanwhile is replaced now."""
    if not console.session.system(timeout=console.timeout).paused:
        raise Refused("failover is not paused", hint="list_sp")
    console.confirm("Resume failover?", name=console.session.kit.project)
    console.session.resume_failover(timeout=console.limit(TIMEOUT))
    return Result({"paused": False}, "failover is on again")


def restart(
    console: Console,
    part: Annotated[str, Arg("part", "what NAME is", metavar="server|client", choices=("server", "client"))],
    *names: Annotated[str, Arg("member", "at least one name; client @ALL is every site", metavar="NAME")],
    reason: Annotated[str, Arg("text", "stands in the logs", ("--reason",), "TEXT")] = "",
) -> Result:
    """Restart the primary, or sites: jobs go on, an open task of a restarted site runs again."""
    if part == "client":
        return _restart_sites(console, names, reason)
    if len(names) != 1 or names[0] == _EVERYBODY:
        raise UsageError("restart: one server at a time", hint="restart server NAME")
    name, servers = names[0], {one.name: one for one in console.session.servers(timeout=console.timeout)}
    if name not in servers:
        raise NotFound(f"no server {name}; there are {', '.join(servers)}", hint="list_sp")
    now = console.session.primary(timeout=console.timeout)
    if now.name != name:
        state = servers[name].state
        raise Refused(
            f"{name} is {state}: only the primary can be told from here",
            hint="promote_sp first, or stop_fl.sh and start.sh on its machine",
        )
    if console.session.system(timeout=console.timeout).paused:
        raise Refused(
            f"failover is paused: nobody would take over from {name}", hint="promote_sp first, or resume_failover"
        )
    standbys = [one.name for one in servers.values() if one.candidate and one.name != name]
    whither = f"{' or '.join(standbys)} takes over" if standbys else "nobody can take over meanwhile"
    console.confirm(f"Restart {name}, primary of epoch {now.epoch}: {whither}.")
    leads = console.session.restart_primary(reason=reason, timeout=console.limit(TIMEOUT))
    return Result(
        {"name": leads.name, "epoch": leads.epoch}, f"{name} restarts; {leads.name} leads, epoch {leads.epoch}"
    )


def _restart_sites(console: Console, names: tuple[str, ...], reason: str) -> Result:
    known = {site.name: site for site in console.session.check_status(timeout=console.limit(TIMEOUT)).sites}
    if unknown := [name for name in names if name not in known and name != _EVERYBODY]:
        raise NotFound(f"no site {unknown[0]}; there are {', '.join(known)}", hint="check_status client")
    chosen = tuple(known) if _EVERYBODY in names else names
    busy = [name for name in chosen if known[name].jobs]
    tail = f"; {len(busy)} of them in a job, whose open task runs again" if busy else ""
    console.confirm(f"Restart {', '.join(chosen)}{tail}?")
    told = console.session.operate_sites("restart", chosen, reason=reason, timeout=console.limit(TIMEOUT))
    return Result(asdict(told), _told(told), ExitStatus.FAILED if told.missed or told.refused else ExitStatus.OK)


def _told(told: Operated) -> str:
    lines = [f"told to restart: {', '.join(told.told) or 'nobody'}"]
    if told.missed:
        lines.append(f"not connected, so not told: {', '.join(told.missed)}")
    lines += [_refusal(site, why) for site, why in told.refused.items()]
    return "\n".join(lines)


def _refusal(site: str, why: str) -> str:
    return f"refused: {why if why.startswith(f'site {site}') else f'{site}: {why}'}"


def remove_sp(
    console: Console,
    server: Annotated[str, Arg("server", "a server that is down")],
    *,
    reason: Annotated[str, Arg("text", "stands in events", ("--reason",), "TEXT")] = "",
) -> Result:
    """Forget a server that is down; it can come back only with a newer kit."""
    found = {one.name: one for one in console.session.servers(timeout=console.timeout)}
    if server not in found:
        raise NotFound(f"no server {server}; there are {', '.join(found)}", hint="list_sp")
    if found[server].state != "DOWN":
        raise Refused(f"{server} is {found[server].state}: only a server that is down is removed", hint="list_sp")
    console.confirm(f"Remove {server} from the project: sites do not dial it any more.", name=server)
    console.session.remove_server(server, reason=reason, timeout=console.limit(TIMEOUT))
    return Result({"removed": server}, f"{server} is removed")


def shutdown_system(
    console: Console,
    *,
    reason: Annotated[str, Arg("text", "stands in events and logs", ("--reason",), "TEXT")] = "",
) -> Result:
    """Shut down all sites and servers; overseers stay, and jobs go on after the next start."""
    servers = [one.name for one in console.session.servers(timeout=console.timeout) if one.state != "DOWN"]
    sites, jobs = _sites_up(console)
    count = len(servers) + len(sites)
    question = f"Shut down {', '.join([*servers, *sites]) or 'whoever comes up meanwhile'}."
    if jobs:
        question += f" {render.counted(jobs, 'job')} running: stopped, and going on after the next start."
    console.confirm_project(question, count)
    ended = console.session.shutdown_system(reason=reason, timeout=console.limit(TIMEOUT))
    data = {**asdict(ended), "complete": ended.complete}
    lines = [f"gone: {', '.join((*ended.sites, *ended.servers)) or 'nobody'}"]
    if ended.sites_left:
        lines.append(f"not told, or still there: {', '.join(ended.sites_left)}")
    lines += [_refusal(site, why) for site, why in ended.sites_refused.items()]
    if ended.servers_left:
        lines.append(f"still there: {', '.join(ended.servers_left)}")
    status = ExitStatus.OK if ended.complete else ExitStatus.FAILED
    return Result(data, "\n".join([*lines, "the system is down" if ended.complete else "see their logs"]), status)


def _sites_up(console: Console) -> tuple[list[str], int]:
    """Return the connected sites and the running jobs; none where nobody leads."""
    try:
        console.session.primary(timeout=console.timeout)
    except NoPrimary:
        return [], 0
    status = console.session.check_status(timeout=console.limit(TIMEOUT))
    return [site.name for site in status.sites if site.connected], status.jobs_running


OPERATE_COMMANDS = (
    Command(
        "promote_sp",
        promote_sp,
        "make another server lead: a planned switchover",
        ("promote_sp server2", "promote_sp server2 --yes"),
        grade=2,
        errors=("NOT_FOUND", "REFUSED", "CONFLICT", "NO_PRIMARY", "TIMEOUT"),
    ),
    Command(
        "pause_failover",
        pause_failover,
        "have no server take over by itself",
        ('pause_failover --reason "new switch in the rack"', "pause_failover --yes"),
        grade=2,
        errors=("REFUSED", "UNREACHABLE"),
    ),
    Command(
        "resume_failover",
        resume_failover,
        "end a pause of failover",
        ("resume_failover", "resume_failover --yes"),
        grade=2,
        errors=("REFUSED", "UNREACHABLE"),
    ),
    Command(
        "restart",
        restart,
        "restart the primary, or sites; jobs go on",
        ("restart client site-1", 'restart server server1 --reason "new library" --yes'),
        grade=1,
        errors=("NOT_FOUND", "REFUSED", "USAGE", "TIMEOUT"),
    ),
    Command(
        "remove_sp",
        remove_sp,
        "forget a server that is down",
        ("remove_sp server3", "remove_sp server3 --yes"),
        grade=2,
        errors=("NOT_FOUND", "REFUSED"),
    ),
    Command(
        "shutdown_system",
        shutdown_system,
        "shut down all sites and servers; overseers stay",
        ("shutdown_system", 'shutdown_system --reason "the move" --confirm poc'),
        grade=3,
        errors=("REFUSED", "UNREACHABLE", "TIMEOUT"),
    ),
)
