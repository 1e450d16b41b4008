"""The chain that every gRPC call passes: identity, revocation, both gates, handler, audit, errors.

Nothing that a caller sends is read before its certificate, the list of revoked ones and its role were looked at.
Handlers are plain async functions named after the method in snake case. They get the request (or an async iterator of
them) and a :class:`Call`; a streaming answer is an async generator. A handler asks ``call.passage`` about what it
touches before it reads or changes anything for the caller; one that did not ask gives no answer. A service whose method
declares no known permission, has no handler, or is not in the table of what calls touch cannot be built, so the process
refuses to start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, NoReturn, Protocol

import grpc
from cryptography import x509
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from fedhelm.clock import Clock, SystemClock, iso
from fedhelm.errors import BadCertificate, FedhelmError, NotAuthorised, NotFound, Unreachable
from fedhelm.security.audit_commands import Commands, confirmed
from fedhelm.security.audit_lines import Entry
from fedhelm.security.audit_start import entry_of
from fedhelm.security.authorization import Policy
from fedhelm.security.gates import check_endpoint
from fedhelm.security.identity import Principal, principal_from_certificate
from fedhelm.security.passage import Passage
from fedhelm.security.pki import load_certificate
from fedhelm.security.policy import PERMISSIONS
from fedhelm.security.trust import NEW_KIT, check_validity
from fedhelm.v1 import common_pb2
from fedhelm.wire.faults import EPOCH_KEY, ERROR_KEY, encode_error, status_of
from fedhelm.wire.incoming import Incoming, Readers
from fedhelm.wire.live_calls import LiveCall, LiveCalls

__all__ = ["Call", "Revocations", "ServiceHandlers", "Trail", "is_stop"]

_log = logging.getLogger("fedhelm.wire")

_RAW = common_pb2.DESCRIPTOR.message_types_by_name["Raw"].full_name


class Trail(Commands, Protocol):
    """Where the chain notes what became of calls, such as :class:`fedhelm.security.audit.AuditTrail`."""

    def note(self, entry: Entry, /) -> None:
        """Have an entry written soon; must not wait."""


class Revocations(Protocol):
    """Whether a certificate still counts, such as :class:`fedhelm.security.kept_revocations.KeptRevocations`."""

    def check(self, serial: str, /) -> None:
        """Raise BadCertificate if the certificate with this serial was revoked."""


@dataclass(frozen=True)
class Call:
    """One call: who makes it, its context, and its way through the gates."""

    principal: Principal
    method: str
    context: Any
    passage: Passage


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _permission(method: MethodDescriptor) -> str:
    permission = str(method.GetOptions().Extensions[common_pb2.permission])
    if permission not in PERMISSIONS:
        raise ValueError(f"{method.full_name} declares no known permission ({permission!r})")
    return permission


@lru_cache(maxsize=256)
def _read(pem: bytes, project: str) -> tuple[Principal, x509.Certificate]:
    certificate = load_certificate(pem, "the client certificate")
    return principal_from_certificate(certificate, project), certificate


def _identity(context: Any, project: str) -> tuple[Principal, x509.Certificate]:
    auth: Mapping[str, Sequence[bytes]] = context.auth_context()
    certificates = auth.get("x509_pem_cert", ())
    if not certificates:
        raise BadCertificate("the call came without a client certificate")
    return _read(certificates[0], project)


class ServiceHandlers(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in the stubs alone
    """All methods of one service, each wrapped into the chain.

    Args:
        service: descriptor of the service.
        implementation: has an async method for each, named in snake case.
        project: callers of another project are refused.
        epoch: the epoch that replies carry.
        policy: who may do what; the second gate.
        trail: where it is noted what became of each call that is worth a line; None: nowhere.
        revocations: asked about the certificate of every call; None: none was revoked.
        clock: for the certificates' validity: a connection may outlive its certificate, a call may not.

    Attributes:
        policy: The policy for calls from now on.
        calls: Those that run.

    Raises:
        ValueError: a method has no known permission or no handler, or is not in the table of what calls touch.
    """

    def __init__(
        self,
        service: ServiceDescriptor,
        implementation: object,
        *,
        project: str,
        epoch: Callable[[], int],
        policy: Policy,
        trail: Trail | None = None,
        revocations: Revocations | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.policy, self._clock = policy, clock or SystemClock()
        self._project, self._epoch = project, epoch
        self._trail, self._revocations = trail, revocations
        self.calls, self._readers = LiveCalls(), Readers()
        self._handlers = {
            f"/{service.full_name}/{method.name}": self._wrap(method, implementation) for method in service.methods
        }

    def end_calls(self, serials: Iterable[str]) -> int:
        """End the calls that run with these certificates, which were revoked: they fail with BadCertificate.

        Call it in the event loop's thread, once the revocations are in force, so that no new call slips in between.

        Args:
            serials: hex, lower case, as ``Principal.serial``.

        Returns:
            How many calls there were.
        """
        return sum(self.calls.end(serial, lambda serial=serial: self._revoked(serial)) for serial in serials)  # type: ignore[misc]

    def _revoked(self, serial: str) -> BadCertificate:
        try:
            if self._revocations is not None:
                self._revocations.check(serial)
        except BadCertificate as error:
            return error
        return BadCertificate("the caller's certificate was revoked")

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method, None if it is not ours (grpc's own interface)."""
        return self._handlers.get(handler_call_details.method)

    def _wrap(self, method: MethodDescriptor, implementation: object) -> Any:
        handler = getattr(implementation, _snake(method.name), None)
        if handler is None:
            raise ValueError(f"{method.full_name} has no handler")
        name = f"{method.containing_service.name}.{method.name}"
        if check_endpoint(name, _permission(method)).answered_when_written:
            handler = confirmed(handler, self._trail)
        # Every method takes a stream here, also one that has a single request: see fedhelm.wire.incoming.
        if method.server_streaming:
            make, wrapped = grpc.stream_stream_rpc_method_handler, self._streaming(method, handler, name)
        else:
            make, wrapped = grpc.stream_unary_rpc_method_handler, self._unary(method, handler, name)
        return make(wrapped, response_serializer=None if method.output_type.full_name == _RAW else _serialize)

    def _unary(self, method: MethodDescriptor, handler: Any, name: str) -> Any:
        request_of = self._reader(method, name)

        async def answer(_: Any, context: Any) -> Any:
            way = _Way(name, context)
            try:
                call = self._enter(way, method)
                reply = await handler(await request_of(way, call), call)
                way.admitted()
            except BaseException as error:  # noqa: BLE001 - whatever it is is raised again, told to caller and audit file
                await self._fail(way, method, error)
            self._end(way)
            self._stamp(context)
            return reply

        return answer

    def _streaming(self, method: MethodDescriptor, handler: Any, name: str) -> Any:
        # It writes by itself and yields nothing: a caller that leaves while an answer is written cancels the write in
        # here. Of a generator nobody would tell: it would stay where it is, and the call with it.
        request_of = self._reader(method, name)

        async def answer(_: Any, context: Any) -> None:
            way = _Way(name, context)
            try:
                call = self._enter(way, method)
                way.end_with_certificate(self._clock.utcnow())
                async with contextlib.aclosing(handler(await request_of(way, call), call)) as replies:
                    async for reply in replies:
                        if not way.told:
                            way.admitted()
                            self._note(way)  # not at its end: a site's stream lasts for days
                            await way.written(context.send_initial_metadata(()))
                        await way.written(context.write(reply))
                way.admitted()
            except BaseException as error:  # noqa: BLE001 - whatever it is is raised again, told to caller and audit file
                await self._fail(way, method, error)
            self._end(way)
            self._stamp(context)

        return answer

    def _reader(self, method: MethodDescriptor, name: str) -> Callable[[_Way, Call], Awaitable[Any]]:
        parse = None if method.input_type.full_name == _RAW else _parser(method.input_type)

        async def request_of(way: _Way, call: Call) -> Any:
            way.incoming = Incoming(name, call.context, parse, self._readers.of(call.principal.serial))
            return way.incoming if method.client_streaming else await way.incoming.only()

        return request_of

    def _enter(self, way: _Way, method: MethodDescriptor) -> Call:
        principal, way.certificate = _identity(way.context, self._project)
        way.passage = Passage(way.name, principal, self.policy)
        check_validity(way.certificate, way.whose, self._clock.utcnow())
        if self._revocations is not None:
            self._revocations.check(principal.serial)
        way.passage.enter()
        way.live = self.calls.begin(principal.serial, partial(self._abort, way.context))
        return Call(principal, method.name, way.context, way.passage)

    def _note(self, way: _Way, error: BaseException | None = None) -> None:
        if self._trail is not None and (entry := way.entry(error)) is not None:
            self._trail.note(entry)
        way.told = True

    def _end(self, way: _Way, error: BaseException | None = None) -> None:
        if isinstance(error, NotFound) and isinstance(error.__cause__, NotAuthorised):
            error = error.__cause__  # the caller may not know of what there is; the audit file says what was denied
        if not way.told or way.unreadable or isinstance(error, NotAuthorised):
            self._note(way, error)
        if way.live is not None:
            self.calls.over(way.live)
        if way.expiry is not None:
            way.expiry.cancel()

    async def _fail(self, way: _Way, method: MethodDescriptor, raised: BaseException) -> NoReturn:
        error = way.live.meant(raised) if way.live is not None else raised
        self._end(way, error)
        if way.live is not None and way.live.forced:  # the caller is being told already
            raise raised
        if isinstance(error, FedhelmError):
            await self._abort(way.context, error)
        if isinstance(error, Exception):
            await self._crash(way.context, method, error)
        raise error

    def _stamp(self, context: Any) -> None:
        context.set_trailing_metadata(((EPOCH_KEY, str(self._epoch())),))

    async def _abort(self, context: Any, error: FedhelmError) -> NoReturn:
        metadata = ((ERROR_KEY, encode_error(error)), (EPOCH_KEY, str(self._epoch())))
        await context.abort(status_of(error), error.message[:100], trailing_metadata=metadata)
        raise error  # grpc has raised already

    async def _crash(self, context: Any, method: MethodDescriptor, error: Exception) -> NoReturn:
        # InternalError: an answer could not be written. grpc knows whether the caller has left, and says so otherwise.
        if isinstance(error, grpc.RpcError | grpc.aio.AbortError | grpc.aio.InternalError):
            raise error
        if is_stop(error):
            await self._abort(context, Unreachable("the server stops"))
        _log.error("%s failed", method.full_name, exc_info=error)
        await self._abort(context, FedhelmError(f"{method.name} failed inside the server; its log has the reason"))


class _Way:
    """A call from its beginning to its end."""

    def __init__(self, name: str, context: Any) -> None:
        self.name, self.context = name, context
        self.passage: Passage | None = None
        self.certificate: x509.Certificate | None = None
        self.live: LiveCall | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self.incoming: Incoming | None = None
        self.told = False
        """Whether the audit file was told how it went."""

    @property
    def unreadable(self) -> bool:
        """Whether the caller sent bytes that are no message."""
        return self.incoming is not None and self.incoming.unreadable

    @property
    def whose(self) -> str:
        """What messages call the caller's certificate."""
        return "the client certificate" if self.passage is None else f"the certificate of {self.passage.principal}"

    def end_with_certificate(self, now: datetime) -> None:
        """Have the call, which may last for days, end when its certificate does."""
        assert self.certificate is not None
        assert self.live is not None
        end = self.certificate.not_valid_after_utc
        error = BadCertificate(f"{self.whose} expired on {iso(end)}", hint=NEW_KIT)
        delay = max(0.0, (end - now).total_seconds())
        self.expiry = asyncio.get_running_loop().call_later(delay, self.live.end, error)

    def admitted(self) -> None:
        """An answer is about to be given."""
        assert self.passage is not None
        self.passage.check_asked()

    async def written(self, write: Awaitable[Any]) -> None:
        """Have grpc write; raises why the call was ended meanwhile."""
        assert self.live is not None
        self.live.writing = True
        await write
        self.live.written()

    def entry(self, error: BaseException | None) -> Entry | None:
        """Return what the audit file is to say; None: nothing."""
        if self.passage is not None and self.unreadable:
            return entry_of(self.name, self.passage.principal, {}, error)  # no program sends that by accident
        if self.passage is not None:
            return self.passage.entry(error)
        # Nobody knows who it was: the address is all there is. Without the port, so that repetitions are one line.
        return entry_of(self.name, None, {"from": self.context.peer().rpartition(":")[0]}, error)


def is_stop(error: BaseException) -> bool:
    """Tell whether reading a call's messages failed because this server was stopped: an end, and no defect."""
    # Its class is private to grpc; those below grpc's public base that tell of a defect are not.
    defects = (grpc.aio.AbortError, grpc.aio.InternalError, grpc.aio.UsageError)
    return isinstance(error, grpc.aio.BaseError) and not isinstance(error, defects)


def _parser(message: Any) -> Callable[[bytes], Any]:
    parse: Callable[[bytes], Any] = GetMessageClass(message).FromString
    return parse


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
