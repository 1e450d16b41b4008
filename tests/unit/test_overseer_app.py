"""The HTTP edge: permissions, bodies, errors; the certificate is put into the scope as the TLS protocol does."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import Depends, FastAPI
from prometheus_client.parser import text_string_to_metric_families

from fedhelm.errors import StoreUnavailable
from fedhelm_overseer.app import Allowed, check_routes, create_app
from fedhelm_overseer.bodies import MAX_BODY, MAX_REGISTRATION, BodyLimit
from fedhelm_overseer.desk import Desk
from tests.fakes.overseer_clock import FakeClock
from tests.fakes.overseer_store import MemoryLeaseStore
from tests.support.kits import ADMIN, make_kits

HOLD = {
    "/api/v1/lease": None,
    "/api/v1/servers/register": {"incarnation": "aa"},
    "/api/v1/servers/beat": {"incarnation": "aa", "role": "STANDBY", "log_epoch": 0, "log_seq": 0, "ready": True},
    "/api/v1/lease/renew": {"epoch": 1, "incarnation": "aa", "log_epoch": 1, "log_seq": 1, "role": "ACTIVE"},
    "/api/v1/lease/activate": {"epoch": 1, "incarnation": "aa", "log_seq": 1},
    "/api/v1/lease/release": {"epoch": 1, "incarnation": "aa", "reason": "x"},
}
VIEW = (
    "/healthz",
    "/metrics",
    "/api/v1/openapi.json",
    "/api/v1/servers",
    "/api/v1/servers/server1/explain",
    "/api/v1/system",
    "/api/v1/history",
    "/api/v1/events/recent",
    "/api/v1/revocations",
    "/api/v1/primary",
)
OPERATE = {
    "/api/v1/promote": {"target": "server2", "request_id": "r1"},
    "/api/v1/failover/pause": {"request_id": "r2", "reason": "why"},
    "/api/v1/failover/resume": {"request_id": "r3"},
    "/api/v1/shutdown": {"request_id": "r4"},
    "/api/v1/servers/server2/remove": {"request_id": "r5"},
}


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("kits"), servers=2)


@pytest.fixture
def app(kits):
    threads = ThreadPoolExecutor(2)
    store = MemoryLeaseStore()
    clock = FakeClock()
    made = create_app(kits["overseer"], Desk(kits["overseer"], store, clock), threads)
    made.state.store, made.state.clock = store, clock
    yield made
    threads.shutdown()


@pytest.fixture
async def call(app, kits):
    clients = []

    async def as_(name, method, path, **options):
        der = None
        if name is not None:
            der = x509.load_pem_x509_certificate(kits[name].cert.read_bytes()).public_bytes(Encoding.DER)

        async def with_certificate(scope, receive, send):
            await app({**scope, "extensions": {"tls": {"client_cert_der": der}}}, receive, send)

        transport = httpx.ASGITransport(app=with_certificate, raise_app_exceptions=False)
        clients.append(httpx.AsyncClient(transport=transport, base_url="https://overseer"))
        return await clients[-1].request(method, path, **options)

    yield as_
    for client in clients:
        await client.aclose()


def told(answer):
    body = answer.json()
    assert set(body) == {"code", "message", "hint"}
    return answer.status_code, body["code"]


@pytest.mark.parametrize("path", [*VIEW, *HOLD, *OPERATE, "/api/v1/events"])
async def test_nothing_is_answered_without_a_certificate(call, path):
    body = HOLD.get(path) or OPERATE.get(path)
    assert told(await call(None, "POST" if body else "GET", path, json=body)) == (401, "BAD_CERTIFICATE")


@pytest.mark.parametrize("path", HOLD)
@pytest.mark.parametrize("caller", ["site-1", ADMIN, "overseer"])
async def test_only_servers_hold_the_lease(call, caller, path):
    body = HOLD[path]
    assert told(await call(caller, "POST" if body else "GET", path, json=body)) == (403, "NOT_AUTHORISED")


@pytest.mark.parametrize("path", OPERATE)
@pytest.mark.parametrize("caller", ["site-1", "server1", "overseer"])
async def test_only_admins_operate(call, app, caller, path):
    before = app.state.store.read()
    assert told(await call(caller, "POST", path, json=OPERATE[path])) == (403, "NOT_AUTHORISED")
    assert app.state.store.read() == before


async def test_every_route_is_in_one_of_these_lists(app):
    """A new route has to be tried with every role here."""
    patterned = {
        "/api/v1/servers/{name}/explain": "/api/v1/servers/server1/explain",
        "/api/v1/servers/{name}/remove": "/api/v1/servers/server2/remove",
    }
    paths = {patterned.get(path, path) for path in app.openapi()["paths"]}
    assert paths - {"/api/v1/events"} == {*VIEW, *HOLD, *OPERATE} - {"/api/v1/openapi.json"}


async def test_an_admin_pauses_and_resumes_under_its_own_name(call):
    paused = (await call(ADMIN, "POST", "/api/v1/failover/pause", json=OPERATE["/api/v1/failover/pause"])).json()
    assert paused == {"paused": True, "paused_by": ADMIN, "reason": "why", "shutdown": None, "down": False}
    assert (await call("site-1", "GET", "/api/v1/system")).json() == paused
    body = {"request_id": "r3", "by": "somebody@else.com", "admin": "somebody@else.com"}
    assert not (await call(ADMIN, "POST", "/api/v1/failover/resume", json=body)).json()["paused"]
    told_of = (await call(ADMIN, "GET", "/api/v1/events/recent")).json()
    assert [event["data"]["admin"] for event in told_of] == [ADMIN, ADMIN]


async def test_an_id_of_another_request_is_a_conflict(call):
    await call(ADMIN, "POST", "/api/v1/failover/pause", json={"request_id": "r1"})
    answer = await call(ADMIN, "POST", "/api/v1/shutdown", json={"request_id": "r1"})
    assert told(answer) == (409, "CONFLICT")


async def test_a_shutdown_and_a_removal_go_by_their_routes(call):
    answer = await call(ADMIN, "POST", "/api/v1/shutdown", json={"request_id": "s1"})
    assert (answer.status_code, answer.json()["shutdown"]) == (200, "s1")
    # This overseer has only just started, so server2 may live.
    answer = await call(ADMIN, "POST", "/api/v1/servers/server2/remove", json={"request_id": "s2"})
    assert told(answer) == (409, "REFUSED")
    answer = await call(ADMIN, "POST", "/api/v1/servers/server9/remove", json={"request_id": "s3"})
    assert told(answer) == (404, "NOT_FOUND")


@pytest.mark.parametrize("name", ["..", "server1%2F..", "UPPER", "a" * 300])
async def test_a_name_of_no_server_is_refused(call, name):
    assert (await call(ADMIN, "GET", f"/api/v1/servers/{name}/explain")).status_code in {400, 404}


async def test_an_explanation_is_a_sentence_and_its_conditions(call):
    await call("server1", "POST", "/api/v1/servers/register", json={"incarnation": "aa"})
    body = (await call("site-1", "GET", "/api/v1/servers/server1/explain")).json()
    assert body["verdict"] == "server1 cannot be granted the lease: it is not ready."
    assert [check["name"] for check in body["checks"]] == [
        "heard",
        "role",
        "ready",
        "store",
        "log",
        "log_versions",
        "refused",
        "incarnation",
        "hold_down",
        "paused",
        "holder",
    ]
    assert all(check["text"] for check in body["checks"])


async def test_figures_are_prometheus_text(call):
    answer = await call("site-1", "GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["fedhelm_overseer_epoch"].samples[0].value == 0
    assert families["fedhelm_overseer_servers"].samples[0].value == 2
    assert families["fedhelm_overseer_grants"].type == "counter"
    assert all(name.startswith("fedhelm_overseer_") for name in families), "no figures of the process or of Python"


async def test_a_lease_that_could_not_be_read_for_a_term_is_503(call, app):
    clock = app.state.clock
    clock.advance(app.state.kit.timing.lease)
    assert told(await call("server1", "GET", "/api/v1/lease")) == (503, "STORE_UNAVAILABLE")
    app.state.desk.observe()
    assert (await call("server1", "GET", "/api/v1/lease")).status_code == 200


@pytest.mark.parametrize("caller", ["site-1", ADMIN, "overseer", "server1"])
async def test_every_role_may_look(call, caller):
    for path in VIEW[:-1]:
        assert (await call(caller, "GET", path)).status_code == (204 if path.endswith("revocations") else 200)
    assert told(await call(caller, "GET", "/api/v1/primary")) == (503, "NO_PRIMARY")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"incarnation": "../../etc"}',
        b'{"incarnation": "aa", "log_seq": -2}',
        b'{"incarnation": "aa", "role": "KING"}',
        b'{"incarnation": "aa", "log_epoch": 1e400}',
    ],
)
async def test_a_malformed_body_is_refused_with_a_reason(call, body):
    answer = await call(
        "server1", "POST", "/api/v1/servers/register", content=body, headers={"content-type": "application/json"}
    )
    assert told(answer) == (400, "BAD_INPUT")


@pytest.mark.parametrize("query", ["after=x", "wait=-1", "wait=1e9", "wait=nan"])
async def test_a_malformed_query_is_refused(call, query):
    assert told(await call("server1", "GET", f"/api/v1/lease?{query}")) == (400, "BAD_INPUT")


@pytest.mark.parametrize(("path", "limit"), [("servers/beat", MAX_BODY), ("servers/register", MAX_REGISTRATION)])
async def test_a_large_body_is_refused_whatever_it_announces(call, path, limit):
    async def chunks():
        for _ in range(limit // 1024 + 1):
            yield b" " * 1024

    for content in (b" " * (limit + 1), chunks()):
        answer = await call("server1", "POST", f"/api/v1/{path}", content=content)
        assert told(answer) == (413, "BAD_INPUT")
        assert answer.headers["connection"] == "close"  # what is still to come is not read


async def test_unknown_paths_and_methods_are_json_too(call):
    assert told(await call("server1", "GET", "/api/v1/nothing")) == (404, "NOT_FOUND")
    assert told(await call("server1", "DELETE", "/api/v1/servers")) == (405, "BAD_INPUT")


async def test_a_store_that_does_not_answer_is_503(call, app):
    app.state.store.broken = True
    assert told(await call("server1", "POST", "/api/v1/servers/register", json={"incarnation": "aa"})) == (
        503,
        StoreUnavailable.code,
    )


async def test_the_api_describes_itself(call):
    described = (await call(ADMIN, "GET", "/api/v1/openapi.json")).json()
    assert {*HOLD, "/api/v1/promote", "/healthz", "/api/v1/events"} <= set(described["paths"])
    assert json.dumps(described)


def test_an_app_with_a_route_that_declares_no_permission_is_not_built():
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/open")
    async def open_to_all():
        return {}

    with pytest.raises(RuntimeError, match="/open"):
        check_routes(app.routes)


@pytest.mark.parametrize(
    ("path", "permission", "said"),
    [
        ("/open", "overseer.view", "GET /open is not in the table"),
        ("/healthz", "overseer.view", "GET /healthz declares 'overseer.view'"),
    ],
)
def test_an_app_with_a_route_that_the_table_does_not_have_so_is_not_built(path, permission, said):
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get(path, dependencies=[Depends(Allowed(permission))])
    async def open_to_some():
        return {}

    with pytest.raises(ValueError, match=said):
        check_routes(app.routes)


async def test_a_body_that_does_not_come_is_given_up():
    never, sent = asyncio.Event(), []

    async def receive():
        await never.wait()

    async def send(message):
        sent.append(message)

    async def within(_scope, _receive, _send):
        raise AssertionError("nothing gets there without its body")

    scope = {"type": "http", "method": "POST", "path": "/api/v1/servers/beat", "headers": []}
    await BodyLimit(within, seconds=0.01)(scope, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["message"] == "the body did not come within 0.01 s"


def test_an_unknown_permission_cannot_be_declared():
    with pytest.raises(ValueError, match="unknown permission"):
        Allowed("lease.steal")
