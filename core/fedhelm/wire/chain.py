"""The chain that every gRPC call passes: identity, authorise, audit, handler, errors.

Handlers are plain async functions named after the method in snake case. They get the request (or an async iterator of
them) and a :class:`Call`; a streaming answer is an async generator. A service whose method declares no known
permission, or has no handler, cannot be built, so the process refuses to start.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

import fedhelm.wire
from fedhelm.errors import BadCertificate, FedhelmError, Unreachable
from fedhelm.security.identity import Principal, principal_from_uris
from fedhelm.security.policy import PERMISSIONS, authorise
from fedhelm.v1 import common_pb2
from fedhelm.wire.alive import keep_alive
from fedhelm.wire.faults import EPOCH_KEY, ERROR_KEY, encode_error, status_of

__all__ = ["Call", "ServiceHandlers", "is_stop", "serve_options", "server_credentials"]

_log = logging.getLogger("fedhelm.wire")

MAX_CONTROL = 4 * 1024 * 1024
"""Largest message, bytes. Bulk streams cut theirs at 1 MiB."""

HANDSHAKE_MS = 10_000
"""Time that a connection has to finish TLS; one that does not is closed (grpc's own limit is 120 s)."""

_RAW = common_pb2.DESCRIPTOR.message_types_by_name["Raw"].full_name


@dataclass(frozen=True)
class Call:
    """One call: who makes it, and its context."""

    principal: Principal
    method: str
    context: Any


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _permission(method: MethodDescriptor) -> str:
    permission = str(method.GetOptions().Extensions[common_pb2.permission])
    if permission not in PERMISSIONS:
        raise ValueError(f"{method.full_name} declares no known permission ({permission!r})")
    return permission


def _identity(context: Any, project: str) -> Principal:
    auth: Mapping[str, Sequence[bytes]] = context.auth_context()
    uris = [value.decode(errors="replace") for value in auth.get("peer_uri", ())]
    if not uris:
        raise BadCertificate("the client certificate has no URI that names a participant")
    return principal_from_uris(uris, project)


class ServiceHandlers(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in the stubs alone
    """All methods of one service, each wrapped into the chain.

    Args:
        service: descriptor of the service.
        implementation: has an async method for each, named in snake case.
        project: callers of another project are refused.
        epoch: the epoch that replies carry.
        audit: called with every write after it was authorised.

    Raises:
        ValueError: a method has no known permission or no handler.
    """

    def __init__(
        self,
        service: ServiceDescriptor,
        implementation: object,
        *,
        project: str,
        epoch: Callable[[], int],
        audit: Callable[[Call], None] | None = None,
    ) -> None:
        self._project = project
        self._epoch = epoch
        self._audit = audit
        self._handlers = {
            f"/{service.full_name}/{method.name}": self._wrap(method, implementation) for method in service.methods
        }

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method, None if it is not ours (grpc's own interface)."""
        return self._handlers.get(handler_call_details.method)

    def _wrap(self, method: MethodDescriptor, implementation: object) -> Any:
        handler = getattr(implementation, _snake(method.name), None)
        if handler is None:
            raise ValueError(f"{method.full_name} has no handler")
        permission = _permission(method)
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        wrap = self._streaming if method.server_streaming else self._unary
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            wrap(method, handler, permission),
            request_deserializer=None if method.input_type.full_name == _RAW else _parser(method.input_type),
            response_serializer=None if method.output_type.full_name == _RAW else _serialize,
        )

    def _enter(self, context: Any, method: MethodDescriptor, permission: str) -> Call:
        principal = _identity(context, self._project)
        authorise(principal, permission)
        call = Call(principal, method.name, context)
        if self._audit is not None:
            self._audit(call)
        return call

    def _unary(self, method: MethodDescriptor, handler: Any, permission: str) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            try:
                reply = await handler(request, self._enter(context, method, permission))
            except FedhelmError as error:
                await self._abort(context, error)
            except Exception as error:  # noqa: BLE001 - a bug must reach the caller as an error, not as a hang
                await self._crash(context, method, error)
            else:
                self._stamp(context)
                return reply

        return answer

    def _streaming(self, method: MethodDescriptor, handler: Any, permission: str) -> Any:
        async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for reply in handler(request, self._enter(context, method, permission)):
                    yield reply
            except FedhelmError as error:
                await self._abort(context, error)
            except Exception as error:  # noqa: BLE001 - as above
                await self._crash(context, method, error)
            self._stamp(context)

        return answer

    def _stamp(self, context: Any) -> None:
        context.set_trailing_metadata(((EPOCH_KEY, str(self._epoch())),))

    async def _abort(self, context: Any, error: FedhelmError) -> None:
        metadata = ((ERROR_KEY, encode_error(error)), (EPOCH_KEY, str(self._epoch())))
        await context.abort(status_of(error), error.message[:100], trailing_metadata=metadata)

    async def _crash(self, context: Any, method: MethodDescriptor, error: Exception) -> None:
        if isinstance(error, grpc.RpcError | grpc.aio.AbortError):
            raise error
        if is_stop(error):
            await self._abort(context, Unreachable("the server stops"))
        _log.error("%s failed", method.full_name, exc_info=error)
        await self._abort(context, FedhelmError(f"{method.name} failed inside the server; its log has the reason"))


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


def serve_options() -> list[tuple[str, int]]:
    """Return the options of a gRPC server: keep-alive, limits, and no silent sharing of a port."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", MAX_CONTROL),
        ("grpc.max_send_message_length", MAX_CONTROL),
        *keep_alive(),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_metadata_size", 16_384),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    ]


def server_credentials(ca: bytes, cert: bytes, key: bytes) -> grpc.ServerCredentials:
    """Return credentials that demand TLS 1.3 and a client certificate of the project's CA.

    Raises:
        RuntimeError: this process imported grpc before :mod:`fedhelm.wire`, so that it would speak TLS 1.2 too.
    """
    if not fedhelm.wire.TLS_1_3_ONLY:
        raise RuntimeError("grpc was imported before fedhelm.wire: it would accept TLS 1.2")
    return grpc.ssl_server_credentials([(key, cert)], root_certificates=ca, require_client_auth=True)
