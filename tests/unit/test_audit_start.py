"""A participant's own audit trail: settings, and what is written of a call."""

from __future__ import annotations

import json
import socket

import pytest

from fedhelm.config.kit import Kit
from fedhelm.config.timing import PROFILES
from fedhelm.errors import AlreadyRunning, BadCertificate, BadInput, JobNotFound, NotAuthorised
from fedhelm.security.audit_lines import Outcome
from fedhelm.security.audit_start import AuditSettings, entry_of, open_trail, read_audit_settings
from fedhelm.security.identity import Principal

BOB = Principal("poc", "lead", "bob@a.org", "a", "5f")


@pytest.fixture
def kit(tmp_path):
    (tmp_path / "local").mkdir()
    return Kit(tmp_path, "poc", "c", "site", "site-1", "a", (), (), (), PROFILES["fast"])


def test_what_is_noted_is_in_the_kits_file_and_at_the_receiver(kit):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        port = receiver.getsockname()[1]
        (kit.local / "audit.json").write_text(f'{{"syslog": "udp://127.0.0.1:{port}", // ours\n "sync": false}}')
        trail = open_trail(kit)
        trail.note(entry_of("Admin.AbortJob", BOB, {"job": "k7m3tq4w2zpx", "site": None}))
        assert trail.flush(10)
        with pytest.raises(AlreadyRunning):
            open_trail(kit)
        trail.close()
        message = receiver.recv(65536).decode()
    line = (kit.root / "audit.jsonl").read_text().rstrip("\n")
    assert message.endswith(f"] {line}")
    assert " site-1 fedhelm " in message
    assert json.loads(line)["object"] == {"job": "k7m3tq4w2zpx"}


def test_how_a_call_ended():
    denied = entry_of("a", BOB, {}, NotAuthorised("lead bob@a.org: manage_job needs n:submitter"))
    assert (denied.outcome, denied.why) == (
        Outcome.DENIED,
        "NOT_AUTHORISED: lead bob@a.org: manage_job needs n:submitter",
    )
    assert entry_of("a", None, {}, BadCertificate("expired")).outcome is Outcome.DENIED
    failed = entry_of("a", BOB, {}, JobNotFound("no job"))
    assert (failed.outcome, failed.why) == (Outcome.FAILED, "JOB_NOT_FOUND: no job")
    assert entry_of("a", BOB, {}, ValueError("password=secret")).why == "ValueError"
    assert entry_of("a", BOB, {"job": "x"}).outcome is Outcome.ALLOWED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "audit.json:1:1: an object"),
        ('{\n "sync": 1}', "audit.json:2:2: sync: true or false is needed"),
        ('{"syslog": 1}', "audit.json:1:2: syslog: a text is needed"),
        ('{"syslog": "http://x"}', "audit.json:1:2: syslog: 'http://x' is not udp://HOST:PORT or tcp://HOST:PORT"),
        ('{"sislog": "x"}', "audit.json:1:2: sislog: unknown key; there is syslog, sync, max_mb, keep"),
        ('{"max_mb": 0}', "audit.json:1:2: max_mb: a whole number from 1 to 65536 is needed"),
        ('{"max_mb": true}', "audit.json:1:2: max_mb: a whole number"),
        ('{"keep": 1.5}', "audit.json:1:2: keep: a whole number from 1 to 100000 is needed"),
        ("{", "audit.json:1:2: not JSON"),
    ],
)
def test_a_mistake_in_the_settings_is_named(kit, text, message):
    (kit.local / "audit.json").write_text(text)
    with pytest.raises(BadInput) as error:
        read_audit_settings(kit.local)
    assert message in error.value.message


def test_without_settings_lines_are_forced_to_the_disk_and_go_nowhere_else(kit):
    assert read_audit_settings(kit.local) == AuditSettings(None, True)
    (kit.local / "audit.json").write_bytes(b"\xff")
    with pytest.raises(BadInput, match=r"audit\.json: cannot be read"):
        read_audit_settings(kit.local)
