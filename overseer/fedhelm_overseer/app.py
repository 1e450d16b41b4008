"""The overseer's HTTP API. Each route declares its permission; the app is not built while one is missing.

Who calls is read from the client's certificate alone, and whether they may is asked before anything else is read: see
:mod:`fedhelm_overseer.edge`. Errors are JSON ``{code, message, hint}``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from importlib import metadata
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from fedhelm.clock import Clock
from fedhelm.config.kit import Kit
from fedhelm.errors import BadInput, FedhelmError, NotFound
from fedhelm.security.audit import AuditTrail
from fedhelm.security.authorization import Policy, default_policy
from fedhelm.security.gates import check_endpoint
from fedhelm.security.identity import Principal
from fedhelm.security.passage import Passage
from fedhelm.security.policy import check_permission
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
    RevocationsView,
    ServerView,
    SystemView,
)
from fedhelm_overseer.bodies import BodyLimit, answer
from fedhelm_overseer.desk import Desk
from fedhelm_overseer.edge import Edge
from fedhelm_overseer.lease import StoreAway
from fedhelm_overseer.metrics import CONTENT_TYPE, audit_figures
from fedhelm_overseer.standing import Standing

__all__ = ["Allowed", "check_routes", "create_app"]

_log = logging.getLogger("fedhelm.overseer")

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


class Allowed:
    """A dependency: the caller, whom :class:`~fedhelm_overseer.edge.Edge` let pass both gates for this route.

    Raises:
        ValueError: when the route is declared, for an unknown permission.
        NotFound: the path only resembles this route's, so nobody was asked about it.
    """

    def __init__(self, permission: str) -> None:
        self.permission = check_permission(permission)

    async def __call__(self, request: Request) -> Principal:
        """Return who calls."""
        passage: Passage | None = request.state.passage
        if passage is None or passage.name != f"{request.method} {request.scope['route'].path}":
            raise NotFound("there is no such route")
        passage.check_asked()
        return passage.principal


Viewer = Annotated[Principal, Depends(Allowed("overseer.view"))]
Prober = Annotated[Principal, Depends(Allowed("overseer.health"))]
Holder = Annotated[Principal, Depends(Allowed("lease.hold"))]
Promoter = Annotated[Principal, Depends(Allowed("lease.promote"))]
Operator = Annotated[Principal, Depends(Allowed("system.command"))]
Revoker = Annotated[Principal, Depends(Allowed("trust.revoke"))]

Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9.-]{0,252}$")]

_errors: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 408, 409, 413, 503)
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


def _standing(request: Request) -> Standing:
    standing: Standing = request.state.standing
    return standing


async def _off_loop(request: Request, call: Callable[..., _T], *args: Any) -> _T:
    """Run what may touch the disk in a thread."""
    return await asyncio.get_running_loop().run_in_executor(request.app.state.threads, call, *args)


@_root.get("/healthz")
async def healthz(request: Request, _caller: Prober) -> Health:
    """Tell that this overseer serves, and which project; 503 STORE_UNAVAILABLE while it cannot read the lease."""
    await _off_loop(request, _desk(request).check_store)
    trail: AuditTrail | None = request.app.state.trail
    audit = trail.figures.problem if trail is not None else None
    return Health(status="ok", project=request.app.state.kit.project, version=_version(), audit=audit)


@_root.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request, _caller: Prober) -> Response:
    """Give the overseer's figures in Prometheus' text format."""
    trail: AuditTrail | None = request.app.state.trail
    audit = audit_figures(trail.figures) if trail is not None else b""
    return Response(_desk(request).metrics() + audit, media_type=CONTENT_TYPE)


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
    stream = _desk(request).feed.stream(last_event_id, _standing(request).left)
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
    desk, standing, loop = _desk(request), _standing(request), asyncio.get_running_loop()
    until = loop.time() + wait
    while True:
        turn = desk.changed.turn()
        standing.check()
        desk.check_sight()
        view = desk.lease()
        left = until - loop.time()
        if view.version != after or left <= 0 or desk.changed.closed:
            return view
        await desk.changed.wait(turn, min(left, standing.left()))


@_api.post("/servers/register")
async def register(request: Request, caller: Holder, body: RegisterRequest) -> RegisterReply:
    """Register an incarnation of the calling server."""
    _desk(request).came(caller.name, body.incarnation, caller.serial)
    return await _off_loop(request, _desk(request).register, caller.name, body)


@_api.post("/servers/beat")
async def beat(request: Request, caller: Holder, body: BeatRequest) -> LeaseView:
    """Take a sign of life; 404 makes an unknown incarnation register."""
    return _desk(request).beat(caller.name, body)


@_api.post("/lease/renew")
async def renew(request: Request, caller: Holder, body: RenewRequest) -> RenewReply:
    """Renew the calling server's lease."""
    _desk(request).came(caller.name, body.incarnation, caller.serial)
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
    request.state.passage.tell(server=body.target)
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


_LIST = {"content": {"application/json": {"schema": {"type": "object"}}}}


@_api.get(
    "/revocations",
    response_class=Response,
    responses={
        200: {"description": "the list as the root signed it", **_LIST},
        204: {"description": "none that is newer"},
    },
)
async def revocations(
    request: Request,
    _caller: Viewer,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    wait: Annotated[float, Query(ge=0, le=_MAX_WAIT)] = 0.0,
) -> Response:
    """Return the signed list of revoked certificates once its version is above ``after``; 204 if none is in time."""
    desk, standing, loop = _desk(request), _standing(request), asyncio.get_running_loop()
    until = loop.time() + wait
    while True:
        turn = desk.changed.turn()
        standing.check()
        if desk.revocations.current.version > after:
            return Response(desk.revocations.signed, media_type="application/json")
        left = until - loop.time()
        if left <= 0 or desk.changed.closed:
            return Response(status_code=204)
        await desk.changed.wait(turn, min(left, standing.left()))


@_api.post("/revocations", openapi_extra={"requestBody": {"required": True, **_LIST}})
async def revoke(request: Request, caller: Revoker) -> RevocationsView:
    """Hand over the list of revoked certificates as the root signed it; 409 where a newer one is in force."""
    data = await request.body()
    view = await _off_loop(request, _desk(request).trust.hand_over, caller.name, data)
    request.state.passage.tell(version=view.version, taken=view.taken)
    return view


def create_app(
    kit: Kit,
    desk: Desk,
    threads: Executor,
    trail: AuditTrail | None = None,
    *,
    policy: Callable[[], Policy] = default_policy,
    clock: Clock | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        kit: the overseer's kit.
        desk: the operations.
        threads: where operations that touch the disk run.
        trail: where it is written who asked for what; None: nowhere.
        policy: who may do what; asked at each request.
        clock: for the validity of certificates.

    Raises:
        RuntimeError: a route declares no permission.
        ValueError: a route is not in the table of what calls touch, or declares another permission there.
    """
    app = FastAPI(
        title="Fedhelm overseer",
        version=_version(),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would lead to whatever host the request names
    )
    app.state.kit, app.state.desk, app.state.threads, app.state.trail = kit, desk, threads, trail
    app.include_router(_root)
    app.include_router(_api)
    app.add_exception_handler(FedhelmError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_mistake)
    app.add_middleware(BodyLimit)
    app.add_middleware(
        Edge, project=kit.project, revocations=lambda: desk.revocations, policy=policy, trail=trail, clock=clock
    )
    check_routes(app.routes)
    return app


def check_routes(routes: list[BaseRoute]) -> None:
    """Refuse routes without a declared permission, or with another one than the table of what calls touch has.

    Raises:
        RuntimeError: names the first one that declares none.
        ValueError: names the first one that the table does not have so.
    """
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            check_routes(inner.routes)
            continue
        needs = route.dependant.dependencies if isinstance(route, APIRoute) else ()
        declared = [need.call.permission for need in needs if isinstance(need.call, Allowed)]
        if not isinstance(route, APIRoute) or not declared:
            raise RuntimeError(f"route {getattr(route, 'path', route)} declares no permission")
        for verb in route.methods or ():
            check_endpoint(f"{verb} {route.path}", declared[0])


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FedhelmError)
    request.state.error = error
    if isinstance(error, StoreAway) and str(error) != getattr(request.app.state, "away", None):
        request.app.state.away = str(error)
        _log.warning("%s %s is answered 503: %s", request.method, request.url.path, error)
    return answer(_STATUS.get(error.code, 500), error)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    request.state.error = told = BadInput(f"{where}: {first['msg']}")
    return answer(400, told)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = NotFound if error.status_code == 404 else BadInput
    request.state.error = told = kind(str(error.detail))
    return answer(error.status_code, told)


async def _on_mistake(_request: Request, _error: Exception) -> JSONResponse:
    return answer(500, FedhelmError("the overseer failed; its log says why"))
