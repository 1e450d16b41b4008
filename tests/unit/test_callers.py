"""What a server asks about its callers: read before a port is opened, replaced while it runs, closed last."""

from __future__ import annotations

import contextlib
import re
from types import SimpleNamespace

import pytest

from fedhelm.errors import AlreadyRunning, BadInput, ExitStatus, FedhelmError
from fedhelm.security.audit import AUDIT_FILE
from fedhelm.security.audit_lines import Entry, Outcome, Report, read_lines
from fedhelm.security.authorization import Object, Right, Subject, decide
from fedhelm.security.own_policy import OwnPolicy
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.revocation import RevocationList, Revoked
from fedhelm.tasks import cancel, spawn
from fedhelm_server import cli
from fedhelm_server.callers import Callers
from tests.support.kits import make_kits
from tests.support.waiting import eventually, eventually_sync

CLUSTER = "c1"
ALICE = Subject("lead", "alice@a.org", "a")
OWN = Object(submitter="alice@a.org", submitter_org="a")

NOBODY_ABORTS = """{
  # mine
  "format_version": "1.0",
  "permissions": {"lead": {"view": "any", "submit_job": "any"}}
}
"""
MISTAKEN = '{\n  "format_version": "1.0",\n  "permissions": {"lead": {"submit": "any"}}\n}\n'


@pytest.fixture
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kit(tmp_path, authority):
    return make_kits(tmp_path, authority=authority, cluster=CLUSTER)["server1"]


@contextlib.contextmanager
def callers_of(kit):
    made = Callers.of(kit)
    try:
        yield made
    finally:
        made.close()


def write_local(kit, text):
    (kit.local / "authorization.json").write_text(text)


def may(callers, right):
    return decide(callers.policy, ALICE, right, OWN).allowed


def test_the_participants_own_policy_tightens_the_signed_one(kit):
    with callers_of(kit) as callers:
        assert may(callers, Right.MANAGE_JOB)
    write_local(kit, NOBODY_ABORTS)
    with callers_of(kit) as callers:
        assert not may(callers, Right.MANAGE_JOB)
        assert may(callers, Right.SUBMIT_JOB)


def test_a_mistake_in_it_keeps_the_server_from_starting_and_is_told_in_one_line(kit, capfd):
    write_local(kit, MISTAKEN)
    where = (
        f"{kit.local / 'authorization.json'}:3:28: permissions.lead.submit: unknown right (did you mean submit_job?)"
    )
    with pytest.raises(BadInput, match=re.escape(where)):
        Callers.of(kit)
    assert not (kit.root / AUDIT_FILE).exists()
    assert cli.main(["--kit", str(kit.root)]) == ExitStatus.USAGE
    told = capfd.readouterr().err
    assert told.startswith(f"error[BAD_INPUT]: {where}")
    assert told.count("\n") == 1
    assert not (kit.run / "pid").exists()


def test_a_mistake_in_the_audit_settings_too(kit, capfd):
    (kit.local / "audit.json").write_text('{\n  "sylog": "tcp://x:1"\n}')
    assert cli.main(["--kit", str(kit.root)]) == ExitStatus.USAGE
    assert f"{kit.local / 'audit.json'}:2:" in capfd.readouterr().err


def test_the_audit_file_has_one_writer_and_what_was_noted_when_it_is_closed(kit):
    with callers_of(kit) as callers:
        with pytest.raises(AlreadyRunning, match=AUDIT_FILE):
            Callers.of(kit)
        callers.trail.note(Entry("Admin.AbortJob", Outcome.ALLOWED))
    with callers_of(kit) as callers:
        callers.trail.note(Entry("Admin.DeleteJob", Outcome.DENIED))
    report = Report()
    with (kit.root / AUDIT_FILE).open("rb") as file:
        actions = [line.body["action"] for line in read_lines(file, report)]
    assert (actions, report.problem) == (["Admin.AbortJob", "Admin.DeleteJob"], None)


def test_an_operator_is_warned_while_lines_cannot_be_written(kit):
    path = kit.root / AUDIT_FILE
    with callers_of(kit) as callers:
        assert callers.warnings() == []
        path.rename(kit.root / "kept")
        path.mkdir()
        callers.trail.note(Entry("Admin.AbortJob", Outcome.ALLOWED))
        (told,) = eventually_sync(callers.warnings)
        assert told == "commands are refused: their lines cannot be written to the audit file: Is a directory"
        path.rmdir()


def test_an_audit_file_that_cannot_be_written_keeps_the_server_from_starting(kit):
    (kit.root / AUDIT_FILE).mkdir()
    with pytest.raises(FedhelmError, match=rf"{AUDIT_FILE} cannot be written: Is a directory"):
        Callers.of(kit)


class Service:
    """What answers callers, as far as this goes."""

    def __init__(self):
        self.policy, self.ended = None, []

    def end_calls(self, serials):
        self.ended += serials
        return len(serials)


def test_another_kit_brings_another_policy_to_every_service_and_a_mistake_leaves_the_one_in_force(kit):
    with callers_of(kit) as callers:
        callers.services += [Service(), Service()]
        write_local(kit, NOBODY_ABORTS)
        callers.take(kit)
        assert not may(callers, Right.MANAGE_JOB)
        assert [one.policy for one in callers.services] == [callers.policy] * 2
        write_local(kit, MISTAKEN)
        before = callers.policy
        with pytest.raises(BadInput):
            callers.take(kit)
        assert callers.policy == before
        assert callers.services[0].policy is callers.policy


async def test_an_edited_policy_counts_while_the_server_runs_and_a_mistake_leaves_the_one_in_force(kit, caplog):
    caplog.set_level("INFO", "fedhelm.kit")
    with callers_of(kit) as callers:
        callers.services += [Service(), Service()]
        watching = spawn(callers.watch_own_policy(0.001), "policy")
        write_local(kit, NOBODY_ABORTS)
        await eventually(lambda: not may(callers, Right.MANAGE_JOB))
        assert [one.policy for one in callers.services] == [callers.policy] * 2
        write_local(kit, MISTAKEN)
        (told,) = await eventually(callers.warnings)
        assert told.startswith(f"{kit.local / 'authorization.json'}:3:28: permissions.lead.submit: unknown right")
        assert told.endswith("the policy of before stays in force")
        assert not may(callers, Right.MANAGE_JOB)
        assert caplog.text.count("stays in force") == 1
        (kit.local / "authorization.json").unlink()
        await eventually(lambda: may(callers, Right.MANAGE_JOB))
        assert callers.warnings() == []
        assert "the kit's policy alone counts" in caplog.text
        await cancel(watching)


def test_a_policy_that_is_away_for_a_moment_stays_in_force(kit):
    write_local(kit, NOBODY_ABORTS)
    own = OwnPolicy(kit.root)
    path = kit.local / "authorization.json"
    path.rename(kit.local / "authorization.json~")
    assert own.look() is None
    (kit.local / "authorization.json~").rename(path)
    assert own.look() is None
    path.unlink()
    assert own.look() is None
    assert own.look() is not None


def test_what_was_not_verified_again_is_not_read_again(kit):
    """Whoever may change files below startup/ gets no other policy by that: only another kit brings one."""
    own = OwnPolicy(kit.root)
    (kit.startup / "authorization.json").write_text('{"format_version": "1.0", "permissions": {}}')
    write_local(kit, NOBODY_ABORTS)
    assert own.look() is not None
    assert decide(own.policy, ALICE, Right.SUBMIT_JOB, OWN).allowed


def test_a_folder_that_cannot_be_looked_into_leaves_the_policy_in_force(kit):
    write_local(kit, NOBODY_ABORTS)
    own = OwnPolicy(kit.root)
    kit.local.rename(kit.root / "kept")
    kit.local.write_text("no folder")
    for _ in range(3):
        assert own.look() is None
    assert own.problem.startswith(f"{kit.local / 'authorization.json'}: cannot be read: Not a directory")
    assert not decide(own.policy, ALICE, Right.MANAGE_JOB, OWN).allowed
    kit.local.unlink()
    (kit.root / "kept").rename(kit.local)
    assert own.look() is None
    assert own.problem is None
    assert not decide(own.policy, ALICE, Right.MANAGE_JOB, OWN).allowed


def test_another_kit_counts_although_there_is_a_mistake_in_ones_own_file(kit):
    write_local(kit, NOBODY_ABORTS)
    own = OwnPolicy(kit.root)
    write_local(kit, MISTAKEN)
    (kit.startup / "authorization.json").write_text(
        '{"format_version": "1.0", "permissions": {"lead": {"view": "any"}}}'
    )
    with pytest.raises(BadInput):
        own.take()
    assert not decide(own.policy, ALICE, Right.SUBMIT_JOB, OWN).allowed
    write_local(kit, NOBODY_ABORTS)
    assert own.look() is not None
    assert not decide(own.policy, ALICE, Right.SUBMIT_JOB, OWN).allowed
    assert decide(own.policy, ALICE, Right.VIEW, OWN).allowed


def revoked(authority, version, *serials):
    entries = tuple(Revoked(one, "site", f"site-{one}", "2026-11-22T15:04:05.123Z", "lost") for one in serials)
    return RevocationList("poc", CLUSTER, version, "2026-11-22T15:04:05.123Z", entries).to_bytes(authority)


def test_a_new_list_ends_the_calls_of_those_that_are_revoked_now(kit, authority, caplog):
    kit.run.mkdir()
    (kit.run / "revoked.json").write_bytes(revoked(authority, 1, "1f"))
    with callers_of(kit) as callers:
        callers.services += [Service(), Service()]
        callers.revocations.check("2f")
        (kit.run / "revoked.json").write_bytes(revoked(authority, 2, "1f", "2f"))
        callers.read_revocations()
        with pytest.raises(FedhelmError, match="site-2f was revoked"):
            callers.revocations.check("2f")
        (kit.run / "revoked.json").write_bytes(revoked(CertificateAuthority.create("poc"), 3))
        callers.read_revocations()
        assert "the list of revoked certificates in force stays" in caplog.text
        assert [one.ended for one in callers.services] == [["2f"], ["2f"]]


def test_without_a_kit_the_default_policy_decides_and_nothing_is_noted():
    callers = Callers()
    callers.services.append(SimpleNamespace(end_calls=len))
    assert may(callers, Right.MANAGE_JOB)
    assert callers.end_calls(("1f",)) == 1
    callers.read_revocations()
    callers.close()
