"""A real agent whose kit is replaced and whose certificate is revoked while it works; the servers are fakes with the real chain."""

from __future__ import annotations

import asyncio
import json
import logging
import time

import pytest

from fedhelm.process import marked_processes, read_state
from fedhelm.provision.install import install
from fedhelm.security.pki import CertificateAuthority
from tests.support.kits import ADMIN, newer_kit
from tests.support.site import SiteBench
from tests.support.waiting import eventually

pytestmark = pytest.mark.processes


@pytest.fixture
async def fed(tmp_path):
    fed = SiteBench(tmp_path)
    await fed.one.start()
    await fed.two.start()
    yield fed
    await fed.stop_agent()
    assert marked_processes(fed.kit.root) == [], "a process was left"
    await fed.one.stop()
    await fed.two.stop()


async def installed(fed, version, **options):
    """Install a newer kit of the site; return the serial of its certificate."""
    folder = fed.root / f"kit-{version}"
    serial = newer_kit(fed.kit, options.pop("issuer", fed.authority), folder, version, **options)
    await asyncio.to_thread(install, fed.kit.root, folder)
    return serial


async def test_a_new_certificate_is_shown_to_every_server_and_a_call_on_its_way_is_not_broken_off(fed):
    """The call goes on while the federation's root is rotated under it, step by step, and the former kits are gone."""
    fed.add_job()
    fed.log.task(1)
    held, going = [], asyncio.Event()

    async def hold(server):
        held.append(server)
        await going.wait()

    fed.one.hooks["before_record"] = hold
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(lambda: held, 20)

    new = CertificateAuthority.create("poc")
    both, both_new_first = fed.authority.trusting(new.signing_pem), new.trusting(fed.authority.signing_pem)
    for server in (fed.one, fed.two):
        server.certificate.take(trusting(fed, server.kit, both.cert_pem))
    steps = [
        {"trusting": both},  # begin: all trust a second root
        {"trusting": both_new_first, "issuer": new, "signer": fed.authority},  # switch: it issues
        {"trusting": new, "issuer": new},  # finish: nobody trusts the first one any more
    ]
    for version, options in enumerate(steps, start=2):
        if version == 4:
            for server in (fed.one, fed.two):
                issued = new.issue("server", server.kit.name, "nvidia")
                server.kit.cert.write_bytes(issued.cert)
                server.kit.key.write_bytes(issued.key)
                server.certificate.take(server.kit)
        serial = await installed(fed, version, **options)
        for server in (fed.one, fed.two):
            await eventually(lambda server=server, serial=serial: server.serials[-1] == serial, 20, f"step {version}")
    assert (fed.one.offers, key_recorded(fed)) == (1, False)
    assert read_state(fed.kit.run)["primary"] == "server1"
    going.set()
    await eventually(lambda: key_recorded(fed))
    fed.log.close_round(1)
    fed.log.task(2)
    fed.one.tell()
    await eventually(fed.recorded(2), 20)
    assert fed.one.offers == 2
    assert fed.calls() == ["site-1 train 1", "site-1 train 2"]


def trusting(fed, kit, roots):
    kit.ca.write_bytes(roots)
    return kit


def key_recorded(fed):
    return fed.recorded(1)()


async def test_who_was_revoked_says_so_once_and_goes_on_with_a_new_kit(fed, caplog):
    caplog.set_level(logging.INFO, "fedhelm")
    fed.add_job(wait=True)
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(fed.calls, 20)
    (serial,) = set(fed.one.serials)
    begun = time.monotonic()
    for server in (fed.one, fed.two):
        server.revoke(serial)
    await eventually(lambda: read_state(fed.kit.run)["primary"] is None)
    state = await eventually(lambda: told if "revoked" in ((told := read_state(fed.kit.run))["reason"] or "") else None)
    assert state["ready"] is False
    assert "was revoked on 2026-11-23: laptop stolen" in state["reason"]
    fed.go(1)  # the script works on, and its result waits
    await eventually(lambda: list((fed.kit.run / "outbox").rglob("*.result.json")), 20)
    await eventually(lambda: fed.one.refusals >= 2, 20)  # the stream that ended, and another try
    most = 2 + (time.monotonic() - begun) / 5.0
    assert max(fed.one.refusals, fed.two.refusals) <= most, "a refused certificate was tried in a hot loop"

    new = await installed(fed, 2)
    await eventually(fed.recorded(1), 20)
    state = read_state(fed.kit.run)
    assert (state["ready"], state["reason"], fed.one.serials[-1]) == (True, None, new)
    said = [one.getMessage() for one in caplog.records if "was revoked" in one.getMessage()]
    assert len(said) == 1, said  # both servers refuse it


async def test_orders_and_jobs_are_in_the_audit_file(fed):
    fed.add_job()
    fed.log.task(1)
    await fed.one.lead(1)
    await fed.start_agent()
    await eventually(fed.recorded(1), 20)
    fed.order("shutdown", "r7", "power cut at noon")
    await fed.ended()
    lines = [json.loads(line) for line in (fed.kit.root / "audit.jsonl").read_text().splitlines()]
    job, order = [line for line in lines if line["action"].startswith("site.")]
    assert (job["action"], job["outcome"], job["by"]["role"]) == ("site.job", "allowed", "project_admin")
    assert (order["action"], order["outcome"], order["by"]["name"]) == ("site.shutdown", "allowed", ADMIN)
    assert order["object"] == {"order": "r7", "reason": "power cut at noon", "server": "server1"}
