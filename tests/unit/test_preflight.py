from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import threading
from datetime import timedelta

import pytest

from fedhelm.clock import SystemClock
from fedhelm.config.kit import kit_to_json
from fedhelm.persist import init_store
from fedhelm.process import ParticipantLock
from fedhelm.provision import reach
from fedhelm.provision.check_cli import main
from fedhelm.provision.preflight import _missing, examine
from fedhelm.provision.reach import Finding, worst
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.signing import make_manifest
from fedhelm.security.tls import server_context
from tests.fakes.provision_clock import FixedClock
from tests.support.kits import ADMIN, make_kits


@pytest.fixture
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kits(tmp_path, authority):
    return make_kits(tmp_path, servers=2, base_port=free_ports(5), authority=authority)


def free_ports(number):
    """The first of some ports in a row that nobody has, below those of outgoing connections."""
    for base in range(29000, 32000, number):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(base, base + number):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return base
    raise AssertionError("no free ports")


def look(kit, **options):
    options = {"network": False} | options
    return list(examine(kit.root, **options))


def find(findings, what, level=None):
    found = [one for one in findings if one.what == what and level in (None, one.level)]
    assert len(found) == 1, findings
    return found[0]


class Answering:
    """Something that listens as an overseer or a server does, and says ``text`` to each."""

    def __init__(self, kit, port, text):
        self._socket = socket.create_server(("127.0.0.1", port))
        self._context = server_context(kit)
        self._text = text
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                connection.settimeout(10)
                with contextlib.suppress(OSError), self._context.wrap_socket(connection, server_side=True) as tls:
                    if self._text.startswith(b"HTTP"):
                        tls.recv(4096)
                    tls.sendall(self._text)
                    tls.recv(1)

    def close(self):
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(20)
        assert not self._thread.is_alive()


def healthz(*headers):
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: 2", *headers, b"", b"{}"])


def test_a_fresh_kit_is_good_and_nothing_is_written(kits, tmp_path):
    init_store(kits["server1"].store, kits["server1"].cluster, "poc")
    for kit in kits.values():
        before = sorted(path for path in tmp_path.rglob("*"))
        findings = look(kit)
        assert worst(findings) == "ok", findings
        assert sorted(path for path in tmp_path.rglob("*")) == before
    assert "keeps a name exclusive" in "".join(one.said for one in look(kits["server1"]))


def test_a_kit_that_cannot_be_trusted_ends_the_examination(kits, tmp_path):
    with (kits["site-1"].startup / "start.sh").open("a") as file:
        file.write("# mine")
    findings = look(kits["site-1"])
    assert [(one.level, one.what) for one in findings] == [("fail", "files")]
    assert "start.sh was changed" in findings[0].said
    assert "no startup folder" in next(examine(tmp_path)).said


def test_expiry_and_a_wrong_clock(kits):
    now = SystemClock().utcnow()
    soon = find(look(kits["site-1"], clock=FixedClock(now + timedelta(days=360))), "certificate")
    assert (soon.level, "expires soon on" in soon.said) == ("warn", True)
    assert "renew" in soon.hint
    late = find(look(kits["site-1"], clock=FixedClock(now + timedelta(days=400))), "certificate")
    assert (late.level, "expired on" in late.said) == ("fail", True)
    early = find(look(kits["site-1"], clock=FixedClock(now - timedelta(days=1))), "certificate")
    assert (early.level, early.hint) == ("fail", "set the clock")


def test_an_older_kit_and_an_open_key(kits, authority):
    kit = kits["site-1"]
    kit.run.mkdir()
    (kit.run / "kit.json").write_text('{"version": 2}')
    assert "version 2 was in use" in find(look(kit), "certificate", "fail").said
    (kit.run / "kit.json").write_text('{"version": 1}')
    assert find(look(kit), "version").level == "ok"
    kit.key.chmod(0o644)
    assert find(look(kit), "certificate", "fail").hint == f"chmod 600 {kit.key}"
    kit.key.chmod(0o600)
    kit.startup.chmod(0o777)
    assert find(look(kit), "permissions").hint == f"chmod go-w {kit.startup}"


def test_a_policy_that_cannot_be_read(kits):
    for name in ("site-1", "overseer"):
        (kits[name].local / "authorization.json").write_text("{")
        assert "authorization.json:1" in find(look(kits[name]), "policy", "fail").said


def test_a_policy_of_before_is_none_that_stops_a_start(kits, authority):
    for name, text in (("site-1", '{"version": 1, "about": "", "permissions": {}}'), ("overseer", None)):
        kit = kits[name]
        path = kit.startup / "authorization.json"
        path.unlink() if text is None else path.write_text(text)
        files = {one.name: one.read_bytes() for one in kit.startup.iterdir() if one.name != "signature.json"}
        (kit.startup / "signature.json").write_bytes(make_manifest(files, authority))
        (kit.local / "authorization.json").write_text('{"format_version": "1.0", "permissions": {}}')
        assert find(look(kit), "policy").level == "ok"


def test_a_kit_whose_own_key_was_not_put_in_yet(kits, authority, capsys):
    """As after `pki approve`: the manifest says `own_key`, and the key is still where the request was made."""
    for name in ("site-1", "server1", "overseer", ADMIN):
        kit = kits[name]
        kit.key.unlink()
        skipped = ("signature.json", kit.key.name)
        files = {path.name: path.read_bytes() for path in kit.startup.iterdir() if path.name not in skipped}
        (kit.startup / "signature.json").write_bytes(make_manifest(files, authority, own_key=True))
        findings = look(kit, network=True)
        wrong = [one for one in findings if one.level == "fail" and one.what != "store"]
        assert [one.what for one in wrong] == ["certificate"], findings
        assert f"{kit.key} is missing" in wrong[0].said
        assert "copy the key" in wrong[0].hint
        assert main([str(kit.root)]) == 1
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "file", "text", "said"),
    [
        ("site-1", "audit.json", '{"syslog": "x"}', "audit.json:1:2: syslog"),
        ("overseer", "audit.json", '{"keep": 0}', "audit.json:1:2: keep"),
        ("server1", "log.config", "fedhelm = INFO\n", "log.config:1: [levels] is missing"),
        ("site-1", "log.config", "[levels]\nfedhelm = LOUD\n", "log.config: fedhelm: 'LOUD' is not one of"),
        ("server1", "server.json", '{"metrics_port": 0}', "server.json: metrics_port is 0"),
        ("site-1", "site.json", '{"environment": "HOME"}', "site.json:1:2: environment: a list of names is needed"),
    ],
)
def test_settings_of_its_own_that_stop_the_start(kits, name, file, text, said):
    kit = kits[name]
    (kit.local / file).write_text(text)
    assert said in find(look(kit), "settings", "fail").said
    (kit.local / file).write_text({"log.config": "[levels]\nfedhelm = DEBUG\n"}.get(file, "{}"))
    assert find(look(kit), "settings", "ok").said == f"local/{file} can be read"


def test_what_cannot_be_looked_at_is_a_finding(kits, capsys):
    """As of another user's kit: here folders that are none, since root reads everything."""
    for name, place in (("server1", "run"), ("site-1", "run"), ("overseer", "local")):
        kit = kits[name]
        if (kit.root / place).is_dir():
            shutil.rmtree(kit.root / place)
        (kit.root / place).symlink_to(kit.root / place)
        wrong = [one for one in look(kit) if one.level == "fail" and one.what != "store"]
        assert wrong, place
        assert all(str(kit.root / place) in one.said for one in wrong), wrong
        assert main([str(kit.root), "--offline"]) == 1
        assert capsys.readouterr().err == ""


def test_a_privacy_policy_is_told_or_what_is_wrong_with_it(kits):
    path = kits["site-1"].local / "privacy.json"
    assert not [one for one in look(kits["site-1"]) if one.what == "privacy"]
    path.write_text('{"format_version": "1.0", "filters": [{"type": "clip", "norm": 1}], "show_parameters": false}')
    assert find(look(kits["site-1"]), "privacy", "ok").said == "clip(norm=1)"
    path.write_text('{"format_version": "1.0", "filters": [{"type": "clap"}]}')
    assert "privacy.json:1:40: filters[0].type: unknown filter" in find(look(kits["site-1"]), "privacy", "fail").said


def test_the_store_that_is_not_there_or_somebody_elses(kits):
    kit = kits["server1"]
    missing = find(look(kit), "store", "fail")
    assert "--found-store" in missing.hint
    init_store(kit.store, "another", "poc")
    assert "belongs to cluster 'another'" in find(look(kit), "store", "fail").said


def test_ports_that_are_free_taken_or_ones_own(kits):
    kit, own = kits["server1"], kits["server1"].own_server
    with socket.create_server(("127.0.0.1", own.admin_port)):
        free, taken = [one for one in look(kit) if one.what == "port"]
    assert (free.level, free.said) == ("ok", f"{own.fed_learn_port} is free")
    assert (taken.level, f"sport = :{own.admin_port}" in taken.hint) == ("fail", True)
    kit.run.mkdir()
    lock = ParticipantLock(kit.run)
    lock.acquire()
    try:
        assert {one.said.partition(": ")[2] for one in look(kit) if one.what == "port"} == {
            f"server1 runs already, pid {os.getpid()}"
        }
    finally:
        lock.release()


def with_gpus(kit, authority):
    (kit.startup / "fed_client.json").write_text(json.dumps(kit_to_json(kit) | {"resources": {"gpu": [0, 1]}}))
    files = {path.name: path.read_bytes() for path in kit.startup.iterdir() if path.name != "signature.json"}
    (kit.startup / "signature.json").write_bytes(make_manifest(files, authority))


@pytest.mark.parametrize(
    ("script", "level", "said"),
    [
        (None, "fail", r"offers GPU [0, 1], and there is no nvidia-smi here"),
        ("echo '0, NVIDIA A100, 40960 MiB'", "fail", "GPU [1], which is not there"),
        ("echo '0, A, 1 MiB'; echo '1, A, 1 MiB'", "ok", "0, A, 1 MiB; 1, A, 1 MiB"),
        ("exit 9", "fail", "nvidia-smi does not work"),
    ],
)
def test_the_gpus_that_a_site_offers(kits, authority, tmp_path, monkeypatch, script, level, said):
    with_gpus(kits["site-1"], authority)
    programs = tmp_path / "bin"
    programs.mkdir()
    if script is not None:
        (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    found = find(look(kits["site-1"]), "gpu")
    assert (found.level, said in found.said) == (level, True), found


def test_packages():
    assert _missing("numpy>=2.0") is None
    assert _missing("numpy>=2.0,<999") is None
    assert _missing("no-such-package>=1") == "the package no-such-package is missing"
    assert "needed is >=999.1" in _missing("numpy>=999.1")
    assert "needed is <1" in _missing("numpy<1,>=0.1")


def test_nobody_answers(kits):
    findings = look(kits["site-1"], network=True)
    assert [one.said.partition(": ")[2] for one in findings if one.level == "fail"] == ["Connection refused"] * 3


def test_who_answers_and_who_does_not(kits):
    overseer, one = kits["overseer"], kits["server1"]
    with contextlib.ExitStack() as stack:
        date = b"Date: Thu, 01 Jan 2026 00:00:00 GMT"
        stack.enter_context(contextlib.closing(Answering(overseer, overseer.own_overseer.port, healthz(date))))
        for port in (one.own_server.fed_learn_port, one.own_server.admin_port):
            stack.enter_context(contextlib.closing(Answering(one, port, b"\0\0\0\4\0\0\0\0\0")))
        for name in ("site-1", ADMIN):
            findings = look(kits[name], network=True)
            assert find(findings, "overseer").level == "ok"
            clock = find(findings, "clock")
            assert (clock.level, "s ahead of that of overseer" in clock.said) == ("warn", True)
            servers = [(one.level, one.said.partition(" at ")[0]) for one in findings if one.what == "server"]
            assert servers == [("ok", "server1"), ("warn", "server2")]
            assert worst(findings) == "warn"


def test_an_overseer_of_another_root_and_one_that_refuses_us(kits, tmp_path):
    (tmp_path / "other").mkdir()
    others = make_kits(tmp_path / "other", servers=2)
    port = kits["overseer"].own_overseer.port
    with contextlib.closing(Answering(others["overseer"], port, healthz())):
        assert "TLS fails: certificate verify failed" in find(look(kits["site-1"], network=True), "overseer").said


def test_names_that_do_not_resolve_and_those_that_take_too_long(kits):
    kit = dataclasses.replace(
        kits["site-1"],
        overseers=tuple(dataclasses.replace(one, host="overseer.invalid") for one in kits["site-1"].overseers),
        servers=(),
    )
    findings = list(reach.ask_others(kit, SystemClock()))
    assert (findings[0].level, "overseer.invalid does not resolve" in findings[0].said) == ("fail", True)
    release = threading.Event()
    assert reach._within(release.wait, 0.05) == "no answer within 0.05 s"
    release.set()


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        (None, None),
        ("yesterday", None),
        ("Thu, 01 Jan 2026 00:00:00 GMT", 0),
        ("Wed, 31 Dec 2025 23:59:59 GMT", 0),
        ("Wed, 31 Dec 2025 23:58:59 GMT", -60),
        ("Thu, 01 Jan 2026 00:02:01 GMT", 120),
    ],
)
def test_the_other_clock(date, seconds):
    start = FixedClock().utcnow()
    assert reach._skew(date, start, start + timedelta(seconds=1)) == seconds


def test_the_command(kits, capsys):
    assert main([str(kits["site-1"].root), "--offline"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"{kits['site-1'].root}: ready to start"
    assert main([str(kits["server1"].root), "--offline", "-o", "json"]) == 1
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["level"] == "fail"
    assert {"level", "what", "said", "hint"} == set(data["findings"][0])
    assert main([str(kits["server1"].root), "--offline"]) == 1
    assert "do: at the federation's very first start" in capsys.readouterr().out
    assert worst([]) == "ok"
    assert worst([Finding("ok", "a", "b"), Finding("warn", "a", "b")]) == "warn"


def test_the_command_says_of_one_that_runs_that_it_does(kits, capsys):
    kit = kits["site-1"]
    kit.run.mkdir()
    lock = ParticipantLock(kit.run)
    lock.acquire()
    try:
        assert main([str(kit.root), "--offline"]) == 0
    finally:
        lock.release()
    assert capsys.readouterr().out.splitlines()[-1] == f"{kit.root}: it runs, pid {os.getpid()}; nothing is amiss"
