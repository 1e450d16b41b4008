"""``fedhelm failover KIT``: make a standby lead while every overseer is away and the primary is gone."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import sys
import time
from pathlib import Path

from fedhelm.config.kit import Kit
from fedhelm.errors import DeadlineExceeded, ExitStatus, FedhelmError, KitError, NotFound, Refused
from fedhelm.output import CommandParser, Format, add_output_option, emit, format_of, guarded
from fedhelm.persist.record import Record
from fedhelm.persist.store import open_store
from fedhelm.process import ParticipantLock, read_state
from fedhelm.provision.stop import wait_until
from fedhelm.security.kit import open_kit
from fedhelm.security.tls import client_context
from fedhelm.wire.overseer_client import OverseerClient
from fedhelm_server.break_glass import Request, leave, withdraw
from fedhelm_server.local_settings import read_settings

__all__ = ["main"]

_ABOUT = """\
Make the standby of this kit lead, without an overseer. Run it on the standby's machine, when every overseer is lost and
the primary too: nothing else brings service back before an overseer returns. The server raises the epoch in the log
itself, so a primary that still lives somewhere can write nothing after it. Overseers that return later adopt it.

It is refused while an overseer answers (use promote_sp), and while the last primary answers or writes to the log.
"""

_TAKEN_S = 5.0
_LEADS_S = 20.0
_HANDSHAKE_S = 1.0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="fedhelm failover",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("kit", type=Path, metavar="KIT", help="the standby's folder, the one that holds startup/")
    parser.add_argument("--reason", default="", metavar="TEXT", help="goes into the log")
    parser.add_argument(
        "--gone",
        metavar="SERVER",
        help="the last primary, where the kit does not know its address (it was added later): you saw that it is down",
    )
    parser.add_argument("--confirm", metavar="PROJECT", help="in scripts, instead of typing the project's name")
    add_output_option(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run ``fedhelm failover ARGV``; return its exit status."""
    fmt = format_of(argv)

    def body() -> ExitStatus:
        args = _parser().parse_args(argv)
        kit = open_kit(args.kit, role="server")
        _check_server(kit)
        _check_overseers(kit)
        last = _check_silence(kit)
        _check_last_primary(kit, last, args.gone)
        _confirm(kit, last, args.confirm)
        return _take_over(kit, args.reason, fmt)

    return guarded(body, fmt)


def _check_server(kit: Kit) -> None:
    if ParticipantLock.holder(kit.run) is None:
        raise NotFound(f"{kit.name} does not run", hint=f"{kit.startup / 'start.sh'}, then again")
    if read_settings(kit.local).stop_when_unleased:
        raise Refused(f"{kit.name} stops when no overseer answers, as local/server.json says", hint="unleased: serve")
    if (role := _role(kit)) != "STANDBY":
        raise Refused(f"{kit.name} is {role or 'starting'}, not a standby", hint="see its log.txt")


def _check_overseers(kit: Kit) -> None:
    async def ask() -> str | None:
        async with OverseerClient(kit) as overseer:
            try:
                await overseer.health()
            except FedhelmError:
                return None
            return "an overseer answers"

    if answer := asyncio.run(ask()):
        raise Refused(f"{answer}: failover is its business", hint=f"in the console: promote_sp {kit.name}")


def _check_silence(kit: Kit) -> Record | None:
    """Return the last fence, if nobody appends for as long as a lease lives.

    Raises:
        Refused: somebody leads.
    """
    assert kit.store is not None
    log = open_store(kit.store, kit.cluster).log
    log.read_new()
    deadline = time.monotonic() + kit.timing.lease
    while time.monotonic() < deadline:
        time.sleep(kit.timing.observe)
        if records := log.read_new().records:
            by = records[-1].by.name
            raise Refused(f"{by} leads, epoch {log.epoch}: it appended slot {records[-1].seq} just now")
    return log.fence


def _check_last_primary(kit: Kit, last: Record | None, gone: str | None) -> None:
    """Refuse if the last primary answers at its port: it may lead, and have nothing to write just now.

    One that was added after this kit was made cannot be asked: then a person has to say that it is ``gone``.
    """
    if last is None or last.by.name == kit.name:
        return
    try:
        address = kit.server(last.by.name)
    except KitError:
        if gone == last.by.name:
            return
        raise Refused(
            f"{last.by.name}, the last primary, is not in the kit of {kit.name}: it may lead, and cannot be asked",
            hint=f"see to it that {last.by.name} is down, then --gone {last.by.name}",
        ) from None

    async def dial() -> None:
        async with asyncio.timeout(kit.timing.request + _HANDSHAKE_S):
            _, writer = await asyncio.open_connection(
                address.host, address.fed_learn_port, ssl=client_context(kit), server_hostname=address.name
            )
            writer.transport.abort()

    try:
        asyncio.run(dial())
    except (OSError, TimeoutError):
        return
    raise Refused(
        f"{address.name}, the last primary, answers at {address.host}:{address.fed_learn_port}: it may lead",
        hint=f"stop {address.name} first, or run this for {address.name}",
    )


def _confirm(kit: Kit, last: Record | None, given: str | None) -> None:
    was = f"{last.by.name}, epoch {last.epoch}" if last is not None else "nobody"
    if given is None:
        if not sys.stdin.isatty():
            raise Refused("this needs a person", hint=f"--confirm {kit.project}")
        sys.stderr.write(
            f"No overseer answers, and nobody wrote to the log for {kit.timing.lease:g} s. Last primary: {was}.\n"
            f"{kit.name} will lead. Type {kit.project} to go on: "
        )
        sys.stderr.flush()
        given = sys.stdin.readline().strip()
    if given != kit.project:
        raise Refused(f"this project is {kit.project}, not {given or 'confirmed'}; nothing was done")


def _take_over(kit: Kit, reason: str, fmt: Format) -> ExitStatus:
    leave(kit.run, Request(getpass.getuser(), reason))
    wait_until(lambda: not (kit.run / "break-glass.json").exists(), _TAKEN_S)
    if withdraw(kit.run):
        raise DeadlineExceeded(f"the supervisor of {kit.name} did not take the request; nothing was done")
    wait_until(lambda: _role(kit) in {"ACTIVE", "UNLEASED"}, _LEADS_S)
    if (role := _role(kit)) not in {"ACTIVE", "UNLEASED"}:
        raise DeadlineExceeded(f"{kit.name} was asked, and is {role}", hint=f"{kit.log_file} says why")
    epoch = (read_state(kit.run) or {}).get("epoch")
    data = {"name": kit.name, "epoch": epoch, "role": role}
    return emit(data, fmt, f"{kit.name} leads, epoch {epoch}; no failover until an overseer is back")


def _role(kit: Kit) -> str | None:
    return (read_state(kit.run) or {}).get("role")
