"""What an overseer asks of a request before it reads any of it: certificate, role, policy; and after how long again."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from fedhelm.clock import SystemClock
from fedhelm.provision.install import exchange
from fedhelm.security.audit import AuditFile, AuditTrail
from fedhelm.security.authorization import Policy, default_policy
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.tasks import spawn
from fedhelm_overseer.app import create_app
from fedhelm_overseer.bodies import MAX_BODY
from fedhelm_overseer.desk import Desk
from fedhelm_overseer.front import Front
from fedhelm_overseer.lease import StoreAway
from fedhelm_overseer.refusals import EVERY_S, MOST, Refusals
from tests.fakes.overseer_clock import FakeClock
from tests.fakes.overseer_store import MemoryLeaseStore
from tests.fakes.provision_clock import FixedClock
from tests.support.kits import ADMIN, make_kits
from tests.support.overseer_http import ends_of, request

PAUSE = json.dumps({"request_id": "r1"}).encode()
EXPIRED = "expired on"


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("kits"), servers=2)


class Office:
    """The application with its audit file, a clock for certificates and a policy that can be changed."""

    def __init__(self, kits, folder, threads):
        self.kits = kits
        self.clock = FixedClock(SystemClock().utcnow())
        self.policy = default_policy()
        self.audit = folder / "audit.jsonl"
        self.trail = AuditTrail(AuditFile(self.audit))
        self.store = MemoryLeaseStore()
        self.desk = Desk(kits["overseer"], self.store, FakeClock())
        self.desk.changed.attach()
        self.desk.feed.bell.attach()
        self.app = create_app(
            kits["overseer"], self.desk, threads, self.trail, policy=lambda: self.policy, clock=self.clock
        )

    async def ask(self, who, method, path, body=b"", **options):
        kit = None if who is None else self.kits[who]
        async with asyncio.timeout(30):
            return await request(self.app, kit, method, path, body, **options)

    def lines(self):
        self.trail.flush(30)
        found = [json.loads(line) for line in self.audit.read_bytes().splitlines()]
        return [(line["action"], line["by"] and line["by"]["name"], line["outcome"]) for line in found]


@pytest.fixture
async def office(kits, tmp_path):
    with ThreadPoolExecutor(2) as threads:
        made = Office(kits, tmp_path, threads)
        yield made
        made.trail.close()


# -- a certificate that ends while its connection lives ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "method", "path", "body"),
    [
        (ADMIN, "POST", "/api/v1/failover/pause", PAUSE),
        (ADMIN, "GET", "/api/v1/servers", b""),
        ("server1", "GET", "/api/v1/lease", b""),
        ("site-1", "GET", "/healthz", b""),
        ("site-1", "GET", "/nothing", b""),
    ],
)
async def test_who_has_an_expired_certificate_is_refused_on_a_connection_of_before(office, who, method, path, body):
    before = office.store.read()
    office.clock.now = ends_of(office.kits[who]) + timedelta(seconds=1)
    answer = await office.ask(who, method, path, body)
    assert answer.told == (401, "BAD_CERTIFICATE")
    assert EXPIRED in answer.message
    assert (answer.headers["connection"], answer.read) == ("close", False)
    assert office.store.read() == before
    assert [(by, outcome) for _, by, outcome in office.lines()] == [(who, "denied")]


async def test_a_certificate_counts_up_to_its_last_second(office):
    office.clock.now = ends_of(office.kits[ADMIN])
    assert (await office.ask(ADMIN, "POST", "/api/v1/failover/pause", PAUSE)).status == 200


async def test_a_certificate_that_is_not_valid_yet_is_refused(office):
    office.clock.shift(days=-2)
    answer = await office.ask("site-1", "GET", "/healthz")
    assert answer.told == (401, "BAD_CERTIFICATE")
    assert "is not valid before" in answer.message


async def test_an_event_stream_ends_with_the_certificate_and_not_at_the_next_ping(office):
    office.clock.now = ends_of(office.kits[ADMIN]) - timedelta(seconds=0.05)
    heard = []

    def hear(piece):
        heard.append(piece)
        office.clock.shift(seconds=1)

    answer = await office.ask(ADMIN, "GET", "/api/v1/events", heard=hear)
    assert answer.status == 200
    assert [piece for piece in heard if piece] == [b": fedhelm\n\n"]


@pytest.mark.parametrize(
    ("who", "path"), [("server1", "/api/v1/lease?after=0&wait=30"), ("site-1", "/api/v1/revocations?after=0&wait=30")]
)
async def test_a_long_poll_ends_with_the_certificate(office, who, path):
    now = (await office.ask("server1", "GET", "/api/v1/lease")).body
    path = path.replace("lease?after=0", f"lease?after={json.loads(now)['version']}")
    office.clock.now = ends_of(office.kits[who]) - timedelta(seconds=0.2)
    polling = spawn(office.ask(who, "GET", path), "poll")
    await asyncio.sleep(0)
    office.clock.shift(seconds=1)
    answer = await polling
    assert answer.told == (401, "BAD_CERTIFICATE")
    assert EXPIRED in answer.message


# -- the gates, before anything is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "path"),
    [
        ("site-1", "/api/v1/promote"),
        ("server1", "/api/v1/failover/pause"),
        ("overseer", "/api/v1/servers/server2/remove"),
        ("site-1", "/api/v1/servers/register"),
        (ADMIN, "/api/v1/servers/register"),
        ("site-1", "/api/v1/revocations"),
    ],
)
async def test_a_role_that_may_not_is_refused_before_its_body_is_read_and_written_down(office, who, path):
    answer = await office.ask(who, "POST", path, b"{")
    assert answer.told == (403, "NOT_AUTHORISED")
    assert (answer.headers["connection"], answer.read) == ("close", False)
    action = f"POST {path}".replace("server2", "{name}")
    assert office.lines() == [(action, who, "denied")]


async def test_a_policy_that_gives_nobody_the_right_to_operate_binds_the_overseer(office):
    body = {"project_admin": {"operate": "none", "view": "any"}}
    office.policy = Policy.parse(json.dumps({"format_version": "1.0", "permissions": body}), "authorization.json")
    answer = await office.ask(ADMIN, "POST", "/api/v1/failover/pause", b"{")
    assert answer.told == (403, "NOT_AUTHORISED")
    assert "operate is none for project_admin" in answer.message
    assert not answer.read
    assert (await office.ask(ADMIN, "GET", "/api/v1/system")).status == 200
    assert office.lines() == [("POST /api/v1/failover/pause", ADMIN, "denied")]
    office.policy = default_policy()
    assert (await office.ask(ADMIN, "POST", "/api/v1/failover/pause", PAUSE)).status == 200


@pytest.mark.parametrize("path", ["/api/v1/primary/", "/healthz/", "/api/v1/servers/server1/explain/", "/api/v1/"])
async def test_a_path_with_a_slash_too_many_is_unknown_and_leads_nowhere(office, path):
    answer = await office.ask("site-1", "GET", path, headers=[(b"host", b"evil.example")])
    assert answer.told == (404, "NOT_FOUND")
    assert "location" not in answer.headers


async def test_a_path_that_only_resembles_a_route_passes_no_gate(office):
    """The router takes a line's end for the end of the path."""
    before = office.store.read()
    answer = await office.ask(ADMIN, "POST", "/api/v1/failover/pause\n", PAUSE)
    assert answer.status == 404
    assert office.store.read() == before


@pytest.mark.parametrize("body", [b" " * (MAX_BODY + 1), b"{", b"\xff\xfe", b"[]", b'{"request_id": "../../etc"}'])
async def test_what_comes_to_nothing_is_not_written_down_as_done(office, body):
    assert (await office.ask(ADMIN, "POST", "/api/v1/failover/pause", body)).status in {400, 413}
    assert office.lines() == [("POST /api/v1/failover/pause", ADMIN, "failed")]


async def test_who_shows_no_certificate_is_written_down_with_the_address(office):
    assert (await office.ask(None, "GET", "/healthz")).told == (401, "BAD_CERTIFICATE")
    office.trail.flush(30)
    line = json.loads(office.audit.read_bytes().splitlines()[-1])
    assert (line["by"], line["object"], line["outcome"]) == (None, {"from": "192.0.2.7"}, "denied")


async def test_every_answer_tells_the_overseers_time(office):
    office.clock.shift(days=1)
    for who, path in (("site-1", "/healthz"), ("site-1", "/nothing"), (None, "/healthz")):
        answer = await office.ask(who, "GET", path)
        assert answer.headers["date"] == office.clock.now.strftime("%a, %d %b %Y %H:%M:%S GMT")


# -- while the lease store is not open --------------------------------------------------------------------------------


@pytest.fixture
def front(office):
    kept = KeptRevocations(office.kits["overseer"])
    made = Front("poc", kept, lambda: office.policy, office.trail, office.clock)
    made.kept, made.office = kept, office
    made.reason = StoreAway("the lease store does not answer: FATAL: no password for user fedhelm at 10.0.0.5")
    return made


async def told_by(front, who, method, path):
    kit = None if who is None else front.office.kits[who]
    answer = await request(front, kit, method, path, b"{")
    assert (answer.read, answer.headers["connection"]) == (False, "close")
    return answer


async def test_an_overseer_that_waits_for_its_store_refuses_whom_it_would_refuse_later(front):
    office = front.office
    assert (await told_by(front, None, "GET", "/healthz")).told == (401, "BAD_CERTIFICATE")
    assert (await told_by(front, "site-1", "POST", "/api/v1/promote")).told == (403, "NOT_AUTHORISED")
    office.clock.now = ends_of(office.kits["site-1"]) + timedelta(seconds=1)
    assert (await told_by(front, "site-1", "GET", "/healthz")).told == (401, "BAD_CERTIFICATE")
    denied = [("GET /healthz", None), ("POST /api/v1/promote", "site-1"), ("GET /healthz", "site-1")]
    assert office.lines() == [(*one, "denied") for one in denied]


async def test_an_overseer_that_waits_for_its_store_says_so_and_nothing_of_the_database(front):
    for who, method, path in (("site-1", "GET", "/healthz"), (ADMIN, "POST", "/api/v1/shutdown")):
        answer = await told_by(front, who, method, path)
        assert answer.told == (503, "STORE_UNAVAILABLE")
        assert json.loads(answer.body) == {
            "code": "STORE_UNAVAILABLE",
            "message": "the lease store does not answer",
            "hint": "the overseer's log.txt has the reason",
        }
        assert answer.headers["fedhelm-revocations"] == "0"
    assert front.office.lines() == [("POST /api/v1/shutdown", ADMIN, "failed")]


async def test_what_the_database_says_is_for_the_log(office, caplog):
    def broken():
        raise StoreAway("the lease store does not answer: FATAL: no password for user fedhelm at 10.0.0.5")

    office.desk.check_store = broken
    for _ in range(3):
        answer = await office.ask("site-1", "GET", "/healthz")
        assert answer.told == (503, "STORE_UNAVAILABLE")
        assert answer.message == "the lease store does not answer"
    said = [record.getMessage() for record in caplog.records if "10.0.0.5" in record.getMessage()]
    assert len(said) == 1


# -- whom TLS refused -------------------------------------------------------------------------------------------------


def test_an_address_that_knocks_for_ever_has_one_line_a_minute_with_the_count():
    refusals = Refusals()
    said = [refusals.take("192.0.2.7", "certificate has expired", 1000.0 + second) for second in range(121)]
    assert [line for line in said if line] == [
        "TLS refused 192.0.2.7: certificate has expired",
        "TLS refused 192.0.2.7: certificate has expired; and 59 more since the line before",
        "TLS refused 192.0.2.7: certificate has expired; and 59 more since the line before",
    ]


def test_a_thousand_addresses_have_no_thousand_lines():
    refusals = Refusals()
    first = [refusals.take(f"2001:db8::{number:x}", "http request", 1000.0) for number in range(1000)]
    said = [line for line in first if line]
    assert len(said) == MOST + 1
    assert said[-1] == "TLS refused other addresses: http request"
    later = 1000.0 + EVERY_S
    assert refusals.take("192.0.2.7", "http request", later) == "TLS refused 192.0.2.7: http request"


# -- the audit file's disk ---------------------------------------------------------------------------------------------


class Broken:
    """Where the audit file was, something stands that cannot be written; in one step, lest a file appear meanwhile."""

    def __init__(self, path):
        self.path, self.kept = path, path.with_name("kept")

    def begin(self):
        self.kept.mkdir()
        exchange(self.path, self.kept)

    def end(self):
        exchange(self.path, self.kept)


async def test_a_command_is_refused_while_no_line_can_be_written_and_leases_and_looks_are_not(office):
    await office.ask(ADMIN, "POST", "/api/v1/failover/pause", PAUSE)
    assert b"\nfedhelm_overseer_audit_ok 1\n" in (await office.ask(ADMIN, "GET", "/metrics")).body
    disk = Broken(office.audit)
    disk.begin()
    resume = json.dumps({"request_id": "r2"}).encode()
    for _ in range(2):
        refused = await office.ask(ADMIN, "POST", "/api/v1/failover/resume", resume)
        assert refused.told == (503, "AUDIT_UNAVAILABLE")
        assert refused.message.startswith("refused: its line cannot be written to the audit file: ")
        assert not refused.read
    assert office.desk.admins.system().paused
    assert (await office.ask(ADMIN, "GET", "/api/v1/system")).status == 200
    health = await office.ask(ADMIN, "GET", "/healthz")
    assert (health.status, json.loads(health.body)["audit"]) == (200, "Is a directory")
    assert b"\nfedhelm_overseer_audit_ok 0\n" in (await office.ask(ADMIN, "GET", "/metrics")).body
    assert (await office.ask("server1", "GET", "/api/v1/lease")).status == 200
    disk.end()


async def test_a_command_is_not_confirmed_before_its_line_is_written(office):
    disk, pause = Broken(office.audit), office.desk.admins.pause

    def pause_and_break(*args):
        disk.begin()
        return pause(*args)

    office.desk.admins.pause = pause_and_break
    told = await office.ask(ADMIN, "POST", "/api/v1/failover/pause", PAUSE)
    assert told.told == (503, "AUDIT_UNAVAILABLE")
    assert told.message.startswith("carried out, but its line is not in the audit file yet: ")
    assert office.desk.admins.system().paused
    disk.end()
