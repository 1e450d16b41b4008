"""The overseer's own description of its API, tried by schemathesis for every role: refusals yes, 500 never."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import schemathesis
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm_overseer.app import create_app
from fedhelm_overseer.desk import Desk
from tests.fakes.overseer_clock import FakeClock
from tests.fakes.overseer_store import MemoryLeaseStore
from tests.support.kits import ADMIN, make_kits

CALLERS = ("server1", ADMIN, "site-1")
QUICK, LONG = 6, 1_000
SENT = ("method", "url", "params", "headers", "json")


class Overseer:
    """The application in this process; calls carry a participant's certificate as the TLS protocol would put it."""

    def __init__(self, folder, threads):
        self.kits = make_kits(folder, servers=2)
        kit = self.kits["overseer"]
        self.store = MemoryLeaseStore()
        desk = Desk(kit, self.store, FakeClock(), KeptRevocations(kit))
        self.app = create_app(kit, desk, threads)
        self.runner = asyncio.Runner()
        # Long polls answer and streams end at once, as when an overseer stops.
        desk.changed.close()
        desk.feed.bell.close()
        self.asked = 0

    def _client(self, caller):
        der = x509.load_pem_x509_certificate(self.kits[caller].cert.read_bytes()).public_bytes(Encoding.DER)

        async def app(scope, receive, send):
            await self.app({**scope, "extensions": {"tls": {"client_cert_der": der}}}, receive, send)

        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="https://overseer")

    def ask(self, caller, **request):
        async def once():
            async with self._client(caller) as client, asyncio.timeout(30):
                return await client.request(**request)

        self.asked += 1
        return self.runner.run(once())


@pytest.fixture(scope="module")
def overseer(tmp_path_factory):
    with ThreadPoolExecutor(2) as threads:
        made = Overseer(tmp_path_factory.mktemp("overseer"), threads)
        yield made
        made.runner.close()


def described(overseer):
    answer = overseer.ask(ADMIN, method="GET", url="/api/v1/openapi.json")
    return schemathesis.openapi.from_dict(answer.json())


def attack(overseer, examples):
    """Try every operation with every caller, by its description and against it; return what each was answered."""
    answers = {}
    for found in described(overseer).get_all_operations():
        operation = found.ok()
        told = answers.setdefault(f"{operation.method.upper()} {operation.path}", set())
        attempts(overseer, operation.as_strategy(), examples, told)
        with contextlib.suppress(Unsatisfiable):  # where nothing is asked for, nothing can contradict it
            attempts(overseer, operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), examples, told)
    return answers


def attempts(overseer, cases, examples, told):
    @seed(1)
    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=cases)
    def attempt(case):
        sent = case.as_transport_kwargs(base_url="https://overseer")
        request = {key: value for key, value in sent.items() if key in SENT}
        if isinstance(sent.get("data"), bytes | str):  # a body of another kind than was described
            request["content"] = sent["data"]
        for caller in CALLERS:
            answer = overseer.ask(caller, **request)
            told.add(answer.status_code)
            assert answer.status_code < 500 or answer.status_code == 503, (caller, request, answer.text)

    attempt()


def test_nothing_that_fits_the_description_or_not_is_a_500(overseer):
    answers = attack(overseer, QUICK)
    assert set(answers) == {
        f"{method.upper()} {path}" for path, methods in overseer.app.openapi()["paths"].items() for method in methods
    }
    assert {200, 400, 403} <= set().union(*answers.values())


@pytest.mark.long
def test_thousands_are_no_500(overseer):
    attack(overseer, LONG)
