"""A server's figures, scraped over HTTPS as Prometheus would."""

from __future__ import annotations

import asyncio
import http.client
import ssl
from contextlib import asynccontextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fedhelm.errors import BadCertificate, PortTaken
from fedhelm.persist.log import Log
from fedhelm.persist.store import Store
from fedhelm.security.pki import load_certificate, serial_of
from fedhelm.security.tls import client_context
from fedhelm.tasks import cancel, spawn
from fedhelm_server import decisions
from fedhelm_server.metrics import serve_metrics
from fedhelm_server.role import Role, RoleEvent
from fedhelm_server.runtime import Runtime
from tests.fakes.persist_memory import MemoryBlobStore, MemoryLogStore
from tests.fakes.server_log import Clock, Writer, contribution, contribution_key, found, opened
from tests.fakes.wire_service import Noted
from tests.support.kits import ADMIN, make_kits
from tests.support.waiting import eventually


class Link:
    def __init__(self):
        self.frames = asyncio.Queue()

    def say(self, kind, /, **fields):
        self.frames.put_nowait({"type": kind, **fields})

    async def receive(self):
        return await self.frames.get()

    async def send(self, kind, /, **fields):
        pass

    def post(self, kind, /, **fields):
        pass


@pytest.fixture
def kits(tmp_path):
    return make_kits(tmp_path)


@asynccontextmanager
async def serving(kits, tmp_path):
    slots = found(MemoryLogStore())
    writer = Writer(slots, "server9", "i0")
    writer.job()
    writer.append("round_open", opened())
    kit = kits["server1"]
    store = Store(tmp_path / "store", kit.cluster, kit.project, Log(slots), MemoryBlobStore())
    runtime, link = None, Link()
    clock = Clock()
    runtime = Runtime(kit, "i1", store, clock, link)
    for folder in ("log", "tmp"):  # where the store is tried
        (store.root / folder).mkdir(parents=True)
    loops = (runtime.serve_link(), runtime.ledger.run(), runtime.follow_log(), runtime.watch_store())
    tasks = [spawn(loop, "loop") for loop in loops]
    try:
        async with serve_metrics(runtime, 0) as port:
            yield runtime, link, clock, port
    finally:
        await cancel(*tasks)
        await asyncio.to_thread(runtime.ledger._thread.shutdown)


def get(port, context, path="/metrics", method="GET"):
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def any_name(kit):
    context = client_context(kit)
    context.check_hostname = False
    return context


async def scrape(kit, port):
    status, text = await asyncio.to_thread(get, port, any_name(kit))
    assert status == 200, text
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name, *sample.labels.values()] = sample.value
    return samples


async def test_a_primary_shows_epoch_role_lease_appends_log_and_jobs(kits, tmp_path):
    async with serving(kits, tmp_path) as (runtime, link, clock, port):
        await eventually(lambda: runtime.ready)
        before = await scrape(kits[ADMIN], port)
        assert before["fedhelm_role", "STANDBY"] == 1
        assert before["fedhelm_lease_left_seconds",] == 0
        assert before["fedhelm_append_seconds_count",] == 0
        link.say("grant", epoch=2, deadline=clock.now + 10, cause="start", log_seq=5)
        await eventually(lambda: runtime.role is Role.ACTIVE)
        item = contribution("site-1")
        await runtime.ledger.propose("contribution", decisions.contribute(item), key=contribution_key(item))
        link.say("figures", renewals=7, failures=2, fenced=1)
        await eventually(lambda: runtime.figures)
        clock.now += 4
        now = await scrape(kits["site-1"], port)
        assert now["fedhelm_epoch",] == 2
        assert (now["fedhelm_role", "ACTIVE"], now["fedhelm_role", "STANDBY"]) == (1, 0)
        assert now["fedhelm_lease_left_seconds",] == pytest.approx(6)
        assert (now["fedhelm_lease_renewals_total", "ok"], now["fedhelm_lease_renewals_total", "failed"]) == (7, 2)
        assert now["fedhelm_fenced_total",] == 1
        assert now["fedhelm_append_seconds_count",] == 1
        assert now["fedhelm_log_position",] == runtime.book.seq
        assert now["fedhelm_log_checkpoint",] == -1
        assert sum(value for (name, *_), value in now.items() if name == "fedhelm_jobs") == 1
        assert now["fedhelm_store_ok",] == 1


async def test_how_the_audit_file_does_is_shown(kits, tmp_path):
    async with serving(kits, tmp_path) as (runtime, _, _, port):
        runtime.callers.trail = trail = Noted()
        assert (await scrape(kits[ADMIN], port))["fedhelm_audit_ok",] == 1
        trail.problem = "No space left on device"
        now = await scrape(kits[ADMIN], port)
        assert (now["fedhelm_audit_ok",], now["fedhelm_audit_lost_total",]) == (0, 0)


async def test_time_without_lease_and_without_store_is_counted(kits, tmp_path):
    async with serving(kits, tmp_path) as (runtime, link, clock, port):
        link.say("grant", epoch=2, deadline=clock.now + 10, cause="start", log_seq=5)
        await eventually(lambda: runtime.role is Role.ACTIVE)
        runtime._event(RoleEvent.UNLEASED)
        clock.now += 3
        runtime._event(RoleEvent.STORE_LOST)
        clock.now += 2
        now = await scrape(kits[ADMIN], port)
        assert (now["fedhelm_unleased_seconds_total",], now["fedhelm_readonly_seconds_total",]) == (3, 2)


async def test_nobody_without_a_certificate_of_the_project_reads_figures(kits, tmp_path):
    (tmp_path / "other").mkdir()
    stranger = make_kits(tmp_path / "other")[ADMIN]
    async with serving(kits, tmp_path) as (_, _, _, port):
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.check_hostname = False
        bare.load_verify_locations(kits[ADMIN].ca)
        unknown = any_name(stranger)
        unknown.verify_mode = ssl.CERT_NONE
        for context in (bare, unknown):
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.BadStatusLine)):
                await asyncio.to_thread(get, port, context)
        assert (await asyncio.to_thread(get, port, any_name(kits[ADMIN])))[0] == 200


async def test_who_was_revoked_reads_no_figures_and_that_is_written(kits, tmp_path):
    class Revocations:
        def check(self, serial):
            if serial == revoked:
                raise BadCertificate("it was revoked")

    revoked, trail = serial_of(load_certificate(kits["site-1"].cert.read_bytes(), "certificate")), Noted()
    async with serving(kits, tmp_path) as (runtime, _, _, port):
        runtime.callers.revocations, runtime.callers.trail = Revocations(), trail
        status, text = await asyncio.to_thread(get, port, any_name(kits["site-1"]))
        assert (status, text) == (403, "it was revoked\n")
        assert (await asyncio.to_thread(get, port, any_name(kits[ADMIN])))[0] == 200
    (entry,) = trail.entries
    assert (entry.action, entry.outcome, entry.by.name) == ("GET /metrics", "denied", "site-1")


async def test_nothing_else_is_served_and_who_says_nothing_holds_up_nobody(kits, tmp_path):
    async with serving(kits, tmp_path) as (_, _, _, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)  # no handshake
        context = any_name(kits[ADMIN])
        assert (await asyncio.to_thread(get, port, context, "/"))[0] == 404
        assert (await asyncio.to_thread(get, port, context, "/metrics", "POST"))[0] == 404
        assert (await asyncio.to_thread(get, port, context, "/metrics?x=1"))[0] == 200
        writer.close()


async def test_a_taken_port_is_named(kits, tmp_path):
    async with serving(kits, tmp_path) as (runtime, _, _, port):
        with pytest.raises(PortTaken, match=str(port)):
            async with serve_metrics(runtime, port):
                pass
