"""Ask the others of a federation, as a participant would: do their names resolve, do they answer, do they accept us?"""

from __future__ import annotations

import dataclasses
import http.client
import json
import queue
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal, TypeVar

from fedhelm.clock import Clock, iso
from fedhelm.config.kit import ADMIN_ROLES, Kit, OverseerAddress, ServerAddress
from fedhelm.errors import FedhelmError
from fedhelm.security.tls import client_context

__all__ = ["TIMEOUT", "Finding", "Level", "ask_others", "reason_of", "worst"]

Level = Literal["ok", "warn", "fail"]

TIMEOUT: Final = 5.0
"""Seconds that one name, one connection or one program gets."""

SKEW: Final = 60.0
"""Seconds by which this clock may differ from an overseer's before it is worth a warning."""

_HINT: Final = "is it started, and does the firewall let this machine reach it?"

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, and what to do where it is not good."""

    level: Level
    what: str
    said: str
    hint: str | None = None


def worst(findings: list[Finding]) -> Level:
    """Return the worst level of a report."""
    return max((one.level for one in findings), key=("ok", "warn", "fail").index, default="ok")


def ask_others(kit: Kit, clock: Clock) -> Iterator[Finding]:
    """Resolve every name, ask every overseer, and shake hands with the servers that this participant dials."""
    hosts = dict.fromkeys([*(one.host for one in kit.overseers), *(one.host for one in kit.servers)])
    known = {host: _within(lambda host=host: _resolve(host)) for host in hosts}  # type: ignore[misc]
    for host, found in known.items():
        if isinstance(found, str):
            yield Finding("fail", "name", f"{host} does not resolve: {found}", "add it to DNS or /etc/hosts")
        elif host not in found:
            yield Finding("ok", "name", f"{host} is {', '.join(found)}")
    try:
        context, h2 = client_context(kit), client_context(kit)
    except FedhelmError as error:
        yield Finding("fail", "tls", str(error), error.hint)
        return
    h2.set_alpn_protocols(["h2"])
    others = [one for one in kit.overseers if one.name != kit.name and isinstance(known[one.host], list)]
    yield from _all_or_some("overseer", [_ask_overseer(one, context, clock) for one in others])
    if kit.role == "site" or kit.role in ADMIN_ROLES:
        near = [one for one in kit.servers if isinstance(known[one.host], list)]
        yield from _all_or_some("server", [_ask_server(one, h2, admin=kit.role != "site") for one in near])


def _all_or_some(what: str, groups: list[list[Finding]]) -> Iterator[Finding]:
    """One of several that answers is enough to start: the failures of the others are warnings then."""
    some = any(all(one.level != "fail" for one in group) for group in groups)
    for group in groups:
        for one in group:
            softer = one.level == "fail" and some
            yield dataclasses.replace(one, level="warn") if softer else one
    if not groups and what == "server":
        yield Finding("fail", what, "there is none that can be asked", "see to the names above")


def _resolve(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


def _within(ask: Callable[[], _T], limit: float = TIMEOUT) -> _T | str:
    """Return what ``ask`` returns, or in words why not; within ``limit`` seconds, as a resolver may take minutes."""
    answer: queue.SimpleQueue[_T | str] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put(ask())
        except (OSError, ValueError) as error:
            answer.put(reason_of(error))

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.get(timeout=limit)
    except queue.Empty:
        return f"no answer within {limit:g} s"


def reason_of(error: BaseException) -> str:
    """Return in a few words why something could not be reached or run."""
    if isinstance(error, ssl.SSLError):
        return f"TLS fails: {error.reason or error}".lower().replace("_", " ").replace("tls fails", "TLS fails")
    if isinstance(error, TimeoutError | subprocess.TimeoutExpired):
        return f"no answer within {TIMEOUT:g} s"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _dial(host: str, port: int, name: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection((host, port), TIMEOUT)
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise


def _ask_overseer(address: OverseerAddress, context: ssl.SSLContext, clock: Clock) -> list[Finding]:
    where = f"{address.name} at {address.host}:{address.port}"
    started = clock.utcnow()
    try:
        with _dial(address.host, address.port, address.name, context) as tls:
            line = http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT)
            line.sock = tls
            line.request("GET", "/healthz")
            reply = line.getresponse()
            date = reply.getheader("Date")
            body = reply.read(65536)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return [Finding("fail", "overseer", f"{where}: {reason_of(error)}", _HINT)]
    found = Finding("ok", "overseer", f"{where} answers")
    if reply.status != 200:
        said = f"{where} answers with HTTP status {reply.status}{_told(body)}"
        found = Finding("fail", "overseer", said, "see its log.txt")
    # Also where it refuses us: a clock that is wrong may be why.
    return [found, _clock(address.name, date, started, clock.utcnow())]


def _told(body: bytes) -> str:
    """Return what an answer gives as its reason, such as a certificate that is not valid yet; empty if it has none."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    return f": {message[:500]}" if isinstance(message, str) and message.isprintable() else ""


def _clock(name: str, date: str | None, before: datetime, after: datetime) -> Finding:
    skew = _skew(date, before, after)
    if skew is None:
        return Finding("ok", "clock", f"this machine's says {iso(after)}; {name} does not say what its own does")
    if abs(skew) <= SKEW:
        return Finding("ok", "clock", f"agrees with that of {name}")
    side = "behind" if skew > 0 else "ahead of"
    said = f"this machine's says {iso(after)}, {abs(skew):.0f} s {side} that of {name}"
    return Finding("warn", "clock", said, "set the clock (NTP)")


def _skew(date: str | None, before: datetime, after: datetime) -> float | None:
    """Return by how many seconds the other clock is ahead of ours; within its second and the time of the call, 0."""
    try:
        theirs = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    theirs = theirs.replace(tzinfo=theirs.tzinfo or UTC)
    ahead, behind = (theirs - after).total_seconds(), (before - theirs).total_seconds() - 1
    return ahead if ahead > 0 else -behind if behind > 0 else 0.0


def _ask_server(address: ServerAddress, context: ssl.SSLContext, *, admin: bool) -> list[Finding]:
    port = address.admin_port if admin else address.fed_learn_port
    where = f"{address.name} at {address.host}:{port}"
    try:
        with _dial(address.host, port, address.name, context) as tls:
            # In TLS 1.3 a refused client certificate shows at the first read; HTTP/2 servers speak first.
            said = tls.recv(9)
    except OSError as error:
        return [Finding("fail", "server", f"{where}: {reason_of(error)}", _HINT)]
    if not said:
        return [Finding("fail", "server", f"{where} closes the connection", "see its log.txt")]
    return [Finding("ok", "server", f"{where} answers")]
