"""The overseer's HTTP API. Each route declares its permission; the app is not built while one is missing.

Who calls is read from the client's certificate alone. Errors are JSON ``{code, message, hint}``.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import Executor
from importlib import metadata
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from fedhelm.config.kit import Kit
from fedhelm.errors import BadCertificate, BadInput, FedhelmError, NotFound
from fedhelm.security.identity import Principal, principal_from_der
from fedhelm.security.policy import authorise, check_permission
from fedhelm.wire.overseer_api import (
    API_ROOT,
    ActivateRequest,
    BeatRequest,
    ErrorBody,
    Event,
    ExplainView,
    Health,
    HistoryEntry,
    LeaseView,
    OperateRequest,
    PrimaryView,
    PromoteReply,
    PromoteRequest,
    RegisterReply,
    RegisterRequest,
    ReleaseRequest,
    RenewReply,
    RenewRequest,
    ServerView,
    SystemView,
)
from fedhelm_overseer.desk import Desk
from fedhelm_overseer.metrics import CONTENT_TYPE
from fedhelm_overseer.tls_protocol import client_certificate

__all__ = ["MAX_BODY", "MAX_REGISTRATION", "Allowed", "check_routes", "create_app"]

MAX_BODY = 64 * 1024
"""Largest body of a request, in bytes, but for a registration."""
MAX_REGISTRATION = 1536 * 1024
"""Largest body of a registration, which may carry a kit's configuration."""

_MAX_WAIT = 30.0
_MAX_RECENT = 1000
_STATUS: Mapping[str, int] = {
    "BAD_INPUT": 400,
    "USAGE": 400,
    "BAD_CERTIFICATE": 401,
    "NOT_AUTHORISED": 403,
    "NOT_FOUND": 404,
    "REFUSED": 409,
    "CONFLICT": 409,
    "NO_PRIMARY": 503,
    "UNREACHABLE": 503,
    "STORE_UNAVAILABLE": 503,
}

_T = TypeVar("_T")
_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

_identify = functools.lru_cache(maxsize=256)(principal_from_der)


class Allowed:
    """A dependency: the caller, if its role has the permission.

    Raises:
        ValueError: when the route is declared, for an unknown permission.
        BadCertificate: no certificate of this project.
        NotAuthorised: the role lacks the permission.
    """

    def __init__(self, permission: str) -> None:
        self.permission = check_permission(permission)

    async def __call__(self, request: Request) -> Principal:
        """Identify, then authorise."""
        der = client_certificate(request.scope)
        if der is None:
            raise BadCertificate("a client certificate is needed")
        principal = _identify(der, request.app.state.kit.project)
        authorise(principal, self.permission)
        return principal


Viewer = Annotated[Principal, Depends(Allowed("overseer.view"))]
Prober = Annotated[Principal, Depends(Allowed("overseer.health"))]
Holder = Annotated[Principal, Depends(Allowed("lease.hold"))]
Promoter = Annotated[Principal, Depends(Allowed("lease.promote"))]
Operator = Annotated[Principal, Depends(Allowed("system.operate"))]

Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9.-]{0,252}$")]

_errors: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 409, 413, 503)
}
_root = APIRouter(responses=_errors)
_api = APIRouter(prefix=API_ROOT, responses=_errors)


def _version() -> str:
    try:
        return metadata.version("fedhelm")
    except metadata.PackageNotFoundError:
        return "0"


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


async def _off_loop(request: Request, call: Callable[..., _T], *args: Any) -> _T:
    """Run what may touch the disk in a thread."""
    return await asyncio.get_running_loop().run_in_executor(request.app.state.threads, call, *args)


@_root.get("/healthz")
async def healthz(request: Request, _caller: Prober) -> Health:
    """Tell that this overseer serves, and which project; 503 STORE_UNAVAILABLE while it cannot read the lease."""
    await _off_loop(request, _desk(request).check_store)
    return Health(status="ok", project=request.app.state.kit.project, version=_version())


@_root.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request, _caller: Prober) -> Response:
    """Give the overseer's figures in Prometheus' text format."""
    return Response(_desk(request).metrics(), media_type=CONTENT_TYPE)


@_api.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request, _caller: Viewer) -> JSONResponse:
    """Describe this API."""
    return JSONResponse(request.app.openapi())


@_api.get("/primary")
async def primary(request: Request, _caller: Viewer) -> PrimaryView:
    """Name the primary; 503 NO_PRIMARY while nobody leads."""
    return _desk(request).primary()


@_api.get("/servers")
async def servers(request: Request, _caller: Viewer) -> list[ServerView]:
    """List every server of the project."""
    return list(_desk(request).servers())


@_api.get("/servers/{name}/explain")
async def explain(request: Request, _caller: Viewer, name: Name) -> ExplainView:
    """Say why a server is or is not a candidate, and who would be next."""
    return _desk(request).admins.explain(name)


@_api.get("/system")
async def system(request: Request, _caller: Viewer) -> SystemView:
    """Tell what admins decided of the whole system."""
    return _desk(request).admins.system()


@_api.get("/history")
async def history(request: Request, _caller: Viewer) -> list[HistoryEntry]:
    """List the epochs, oldest first."""
    return list(await _off_loop(request, _desk(request).history))


@_api.get("/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
async def events(
    request: Request, _caller: Viewer, last_event_id: Annotated[int | None, Header(ge=0, lt=2**63)] = None
) -> StreamingResponse:
    """Stream events; ``Last-Event-ID`` resumes after that event, 0 begins with the oldest kept."""
    stream = _desk(request).feed.stream(last_event_id)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})


@_api.get("/events/recent")
async def recent_events(
    request: Request, _caller: Viewer, limit: Annotated[int, Query(ge=0, le=_MAX_RECENT)] = 20
) -> list[Event]:
    """List the newest events that are kept, oldest first."""
    return _desk(request).feed.latest(limit)


@_api.get("/lease")
async def lease(
    request: Request,
    _caller: Holder,
    after: Annotated[int, Query(ge=-1, lt=2**63)] = -1,
    wait: Annotated[float, Query(ge=0, le=_MAX_WAIT)] = 0.0,
) -> LeaseView:
    """Return the lease row once its version differs from ``after``, at the latest after ``wait`` seconds.

    503 when the store did not answer this overseer for T.
    """
    desk, loop = _desk(request), asyncio.get_running_loop()
    until = loop.time() + wait
    while True:
        turn = desk.changed.turn()
        desk.check_sight()
        view = desk.lease()
        left = until - loop.time()
        if view.version != after or left <= 0 or desk.changed.closed:
            return view
        await desk.changed.wait(turn, left)


@_api.post("/servers/register")
async def register(request: Request, caller: Holder, body: RegisterRequest) -> RegisterReply:
    """Register an incarnation of the calling server."""
    return await _off_loop(request, _desk(request).register, caller.name, body)


@_api.post("/servers/beat")
async def beat(request: Request, caller: Holder, body: BeatRequest) -> LeaseView:
    """Take a sign of life; 404 makes an unknown incarnation register."""
    return _desk(request).beat(caller.name, body)


@_api.post("/lease/renew")
async def renew(request: Request, caller: Holder, body: RenewRequest) -> RenewReply:
    """Renew the calling server's lease."""
    return await _off_loop(request, _desk(request).renew, caller.name, body)


@_api.post("/lease/activate")
async def activate(request: Request, caller: Holder, body: ActivateRequest) -> LeaseView:
    """Take note that the calling holder's fence is in the log."""
    return await _off_loop(request, _desk(request).activate, caller.name, body)


@_api.post("/lease/release")
async def release(request: Request, caller: Holder, body: ReleaseRequest) -> LeaseView:
    """Take the lease back from the calling holder."""
    return await _off_loop(request, _desk(request).release, caller.name, body)


@_api.post("/promote")
async def promote(request: Request, caller: Promoter, body: PromoteRequest) -> PromoteReply:
    """Ask for a planned switchover."""
    return await _off_loop(request, _desk(request).promote, caller.name, body)


@_api.post("/failover/pause")
async def pause(request: Request, caller: Operator, body: OperateRequest) -> SystemView:
    """Grant nothing from now on but what an admin asks for."""
    return await _off_loop(request, _desk(request).admins.pause, caller.name, body)


@_api.post("/failover/resume")
async def resume(request: Request, caller: Operator, body: OperateRequest) -> SystemView:
    """Grant again, at once if nobody leads."""
    return await _off_loop(request, _desk(request).admins.resume, caller.name, body)


@_api.post("/shutdown")
async def shutdown(request: Request, caller: Operator, body: OperateRequest) -> SystemView:
    """Ask all servers to end, the primary last; the overseers stay."""
    return await _off_loop(request, _desk(request).admins.shutdown, caller.name, body)


@_api.post("/servers/{name}/remove")
async def remove(request: Request, caller: Operator, name: Name, body: OperateRequest) -> list[ServerView]:
    """Forget a server that is down; gives the servers that are left."""
    await _off_loop(request, _desk(request).admins.remove, caller.name, name, body)
    return list(_desk(request).servers())


def create_app(kit: Kit, desk: Desk, threads: Executor) -> FastAPI:
    """Build the application.

    Args:
        kit: the overseer's kit.
        desk: the operations.
        threads: where operations that touch the disk run.

    Raises:
        RuntimeError: a route declares no permission.
    """
    app = FastAPI(
        title="Fedhelm overseer",
        version=_version(),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.kit, app.state.desk, app.state.threads = kit, desk, threads
    app.include_router(_root)
    app.include_router(_api)
    app.add_exception_handler(FedhelmError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_mistake)
    app.add_middleware(_BodyLimit)
    check_routes(app.routes)
    return app


def check_routes(routes: list[BaseRoute]) -> None:
    """Refuse routes without a declared permission.

    Raises:
        RuntimeError: names the first one.
    """
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            check_routes(inner.routes)
            continue
        needs = route.dependant.dependencies if isinstance(route, APIRoute) else ()
        if not any(isinstance(need.call, Allowed) for need in needs):
            raise RuntimeError(f"route {getattr(route, 'path', route)} declares no permission")


class _BodyLimit:
    """Answers 413 to a body of more than is allowed for the path, whatever length it announced."""

    def __init__(self, app: _App) -> None:
        self._app = app

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = MAX_REGISTRATION if scope["path"] == f"{API_ROOT}/servers/register" else MAX_BODY
        messages: list[MutableMapping[str, Any]] = []
        size, more = 0, True
        while more:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            more = message["type"] == "http.request" and bool(message.get("more_body", False))
            if size > limit:
                refusal = _answer(413, BadInput(f"the body is larger than {limit} bytes"))
                refusal.headers["connection"] = "close"  # else the rest would be read and thrown away, without end
                await refusal(scope, receive, send)
                return

        async def replay() -> MutableMapping[str, Any]:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)


def _answer(status: int, error: FedhelmError) -> JSONResponse:
    body = ErrorBody(code=error.code, message=error.message, hint=error.hint)
    return JSONResponse(body.model_dump(), status_code=status)


async def _on_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FedhelmError)
    return _answer(_STATUS.get(error.code, 500), error)


async def _on_invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _answer(400, BadInput(f"{where}: {first['msg']}"))


async def _on_http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = NotFound if error.status_code == 404 else BadInput
    return _answer(error.status_code, kind(str(error.detail)))


async def _on_mistake(_request: Request, _error: Exception) -> JSONResponse:
    return _answer(500, FedhelmError("the overseer failed; its log says why"))
