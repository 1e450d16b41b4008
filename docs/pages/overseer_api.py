"""overseer-api.md: routes and bodies, from the overseer's own OpenAPI description."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from fastapi.routing import APIRoute

from docs.pages.markdown import GENERATED, anchor, code, table
from fedhelm.config.kit import Kit
from fedhelm.config.timing import PROFILES
from fedhelm.security.policy import PERMISSIONS
from fedhelm_overseer.app import Allowed, create_app

__all__ = ["page"]

_INTRO = """\
# The overseer's HTTP API

HTTPS with a client certificate of the project, TLS 1.3. The caller is who the certificate says; nothing in a header or
a body changes that. Every route declares its permission; the overseer does not start while one is missing.

An answer of 400 and above is `{"code", "message", "hint"}` with the codes of [errors](errors.md): 400 bad input, 401 no
or a wrong certificate, 403 the role may not, 404 unknown, 409 refused or a conflict, 413 a body of more than 64 KiB
(a registration: 1.5 MiB), 503 nobody leads or the database does not answer. `GET /api/v1/openapi.json` gives the same
in OpenAPI.

Ages and durations are seconds, times are ISO 8601 UTC. Numbers of records are slots of the log; -1 is before the
first.
"""


def _app() -> Any:
    kit = Kit(Path("/"), "poc", "", "overseer", "overseer", "", (), (), (), PROFILES["default"])
    # The description needs neither a desk nor threads.
    return create_app(kit, cast("Any", None), cast("Any", None))


def _routes(routes: Any) -> Iterator[APIRoute]:
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from _routes(inner.routes)
        elif isinstance(route, APIRoute):
            yield route


def _permission(route: APIRoute) -> str:
    return next(need.call.permission for need in route.dependant.dependencies if isinstance(need.call, Allowed))


def _ref(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{anchor(name)})"
    if "anyOf" in schema:
        return " or ".join(_ref(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_ref(schema['items'])}"
    if "enum" in schema:
        return ", ".join(code(one) for one in schema["enum"])
    return str(schema.get("type", "any"))


def _body(content: dict[str, Any]) -> str:
    kinds = content.get("content", {})
    if "text/event-stream" in kinds:
        return "server-sent events ([Event](#event))"
    if "text/plain" in kinds:
        return "Prometheus' text format"
    return _ref(kinds["application/json"]["schema"]) if "application/json" in kinds else ""


def _operations(app: Any) -> Iterator[tuple[str, ...]]:
    described = app.openapi()["paths"]
    permissions = {
        (method, route.path): _permission(route) for route in _routes(app.routes) for method in route.methods or ()
    }
    for (method, path), permission in sorted(permissions.items(), key=lambda one: (one[0][1], one[0][0])):
        full = path if path in described else f"/api/v1{path}"
        operation = described.get(full, {}).get(method.lower())
        if operation is None:
            continue
        parameters = ", ".join(code(one["name"]) for one in operation.get("parameters", ()))
        takes = _body(operation["requestBody"]) if "requestBody" in operation else parameters
        who = (
            "all"
            if len(PERMISSIONS[permission]) == len(PERMISSIONS["overseer.view"])
            else ", ".join(sorted(PERMISSIONS[permission]))
        )
        gives = _body(operation["responses"]["200"])
        yield code(f"{method} {full}"), takes, gives, code(permission), who, _plain(operation.get("description", ""))


def _plain(text: str) -> str:
    """Return a docstring's text as Markdown."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def _model(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (code(key), _ref(value), "yes" if key in required else "", value.get("description", ""))
        for key, value in schema.get("properties", {}).items()
    ]
    about = _plain(schema.get("description", "").partition("Attributes:")[0]).strip()
    return f"### {name}\n\n" + (f"{about}\n\n" if about else "") + table(("field", "type", "required", ""), rows)


def page() -> str:
    """Return the page."""
    from fedhelm.wire.overseer_api import Event

    app = _app()
    routes = table(("route", "takes", "gives", "permission", "roles", ""), _operations(app))
    schemas = dict(app.openapi()["components"]["schemas"])
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI lists them; this API answers with an ErrorBody
        schemas.pop(unused, None)
    schemas.setdefault("Event", Event.model_json_schema())
    bodies = "\n".join(_model(name, schemas[name]) for name in sorted(schemas))
    return GENERATED + f"{_INTRO}\n## Routes\n\n{routes}\n## Bodies\n\n{bodies}"
