"""A command is answered when its line is on the disk, and refused where it cannot be; machines never wait for a disk."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from fedhelm.errors import AuditUnavailable
from fedhelm.security import audit, audit_commands
from fedhelm.security.audit import MAX_WAITING, AuditFile, AuditTrail
from fedhelm.security.audit_commands import check_command, write_command
from fedhelm.security.audit_lines import Outcome
from fedhelm.security.audit_memory import read_memory
from fedhelm.security.audit_writer import RESERVE
from fedhelm.security.authorization import Object, default_policy
from fedhelm.security.gates import ENDPOINTS
from fedhelm.security.identity import Principal
from fedhelm.security.passage import Passage
from tests.support.waiting import eventually, eventually_sync
from tests.unit.test_audit import bodies, entry

ADMIN = Principal("poc", "project_admin", "alice@a.org", "a", "5f")
SERVER = Principal("poc", "server", "server1", "a", "7a")
SITE = Principal("poc", "site", "site-1", "a", "6a")


def passage(name, principal=ADMIN):
    call = Passage(name, principal, default_policy())
    call.admit(Object())
    return call


class Disk:
    """An audit file's disk, which may be full or stand still."""

    def __init__(self, path, monkeypatch):
        self.full, self.go, self.free = False, threading.Event(), 10 * RESERVE
        self.go.set()
        self._write, self._stat = os.write, os.fstatvfs
        self.file = AuditFile(path, memory=path.with_name("memory"))
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fstatvfs", self.stat)

    def write(self, fd, data):
        if os.path.samestat(os.fstat(fd), self.file.path.stat()):
            assert self.go.wait(10)
            if self.full:
                raise OSError(28, "No space left on device")
        return self._write(fd, data)

    def stat(self, fd):
        found = self._stat(fd)
        return os.statvfs_result((found[0], 1, found[2], found[3], self.free, *found[5:]))


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "RETRY_S", 0.05)
    return Disk(tmp_path / "audit.jsonl", monkeypatch)


@pytest.fixture
def trail(disk):
    trail = AuditTrail(disk.file)
    yield trail
    disk.full = False
    disk.go.set()
    trail.close()


def test_what_is_answered_when_it_is_written_is_what_people_command():
    assert {name for name, endpoint in ENDPOINTS.items() if endpoint.answered_when_written} == {
        "Admin.SubmitJob",
        "Admin.AbortJob",
        "Admin.DeleteJob",
        "Admin.PrepareDownload",
        "Admin.Operate",
        "POST /api/v1/promote",
        "POST /api/v1/failover/pause",
        "POST /api/v1/failover/resume",
        "POST /api/v1/shutdown",
        "POST /api/v1/servers/{name}/remove",
        "POST /api/v1/revocations",
    }


async def test_a_command_is_answered_once_its_line_is_on_the_disk(disk, trail):
    call = passage("Admin.AbortJob")
    await check_command(trail, call)
    await write_command(trail, call)
    assert call.entry() is None  # it is not written again
    assert [body["action"] for body in bodies(disk.file.path)] == ["Admin.AbortJob"]


async def test_machines_and_looks_wait_for_no_disk(disk, trail):
    disk.go.clear()
    for name, principal in (("Fleet.Connect", SITE), ("Admin.ShowJob", ADMIN), ("POST /api/v1/lease/activate", SERVER)):
        call = passage(name, principal)
        await check_command(trail, call)
        await write_command(trail, call)
    await check_command(None, passage("Admin.AbortJob"))


async def test_a_command_is_refused_before_it_acts_while_lines_cannot_be_written(disk, trail):
    disk.full = True
    trail.note(entry())
    assert not trail.flush(0.01)
    with pytest.raises(AuditUnavailable, match="refused: its line cannot be written to the audit file"):
        await check_command(trail, passage("Admin.AbortJob"))
    assert "No space left on device" in trail.figures.problem


async def test_a_command_is_refused_where_hardly_anything_is_free(disk, trail):
    disk.free = RESERVE - 1
    with pytest.raises(AuditUnavailable, match=r"refused: .*: less than 1 MiB is free"):
        await check_command(trail, passage("Admin.SubmitJob"))
    for number in range(600):  # while there is room at all, nothing waits
        trail.note(entry(number, by=None, outcome=Outcome.ALLOWED))
    assert await asyncio.to_thread(trail.flush, 10)
    assert len(bodies(disk.file.path)) == 600
    disk.free = RESERVE
    await eventually(lambda: trail.figures.problem is None)
    await check_command(trail, passage("Admin.SubmitJob"))


async def test_a_disk_that_is_full_in_between_leaves_a_command_that_nobody_confirms(disk, trail):
    call = passage("Admin.AbortJob")
    await check_command(trail, call)
    disk.full = True
    with pytest.raises(AuditUnavailable, match="carried out, but its line is not in the audit file yet: No space left"):
        await write_command(trail, call)


async def test_a_disk_that_stands_still_is_not_waited_for_without_end(disk, trail, monkeypatch):
    monkeypatch.setattr(audit_commands, "WAIT_S", 0.05)
    disk.go.clear()
    trail.note(entry())
    for waits in (check_command, write_command):
        with pytest.raises(AuditUnavailable, match=r"the disk did not answer within 0\.05 s"):
            await waits(trail, passage("Admin.AbortJob"))
    disk.go.set()
    assert await asyncio.to_thread(trail.flush, 10)
    assert [body["action"] for body in bodies(disk.file.path)] == ["Admin.AbortJob", "Admin.AbortJob"]


async def test_a_stolen_key_is_revoked_whatever_the_disk_does(disk, trail):
    disk.full = True
    call = passage("POST /api/v1/revocations")
    await check_command(trail, call)
    with pytest.raises(AuditUnavailable, match="carried out, but"):
        await write_command(trail, call)


def test_nobody_who_notes_something_waits_for_a_disk_that_stands_still(disk, trail):
    disk.go.clear()
    for number in range(1000):
        trail.note(entry(number))
    assert not trail.flush(0)
    assert trail.figures.waiting > 0
    disk.go.set()
    assert trail.flush(10)


def test_lines_that_were_lost_are_counted_once_however_long_the_disk_is_full(disk, trail):
    disk.full = True
    for number in range(MAX_WAITING + 300):
        trail.note(entry(number, by=None, outcome=Outcome.ALLOWED))
    eventually_sync(lambda: trail.figures.problem == "No space left on device")
    assert not trail.flush(0.3)  # it is tried again some times
    disk.full = False
    assert trail.flush(10)
    told = bodies(disk.file.path)
    lost = [int(body["object"]["lines"]) for body in told if body["action"] == "audit.lost"]
    assert sum(lost) == trail.figures.lost
    assert sum(body["action"] == "Admin.AbortJob" for body in told) + sum(lost) == MAX_WAITING + 300
    assert len({body["object"]["job"] for body in told if "job" in body["object"]}) == MAX_WAITING + 300 - sum(lost)
    assert read_memory(disk.file.path.with_name("memory")).lost == 0


def test_what_a_participant_could_not_write_it_says_when_it_starts_again(disk, trail, caplog):
    trail.note(entry(1))
    assert trail.flush(10)
    disk.full = True
    for number in range(10):
        trail.note(entry(number))
    trail.close()
    assert "10 lines were not written; the next start says so" in caplog.text
    assert read_memory(disk.file.path.with_name("memory")).lost == 10
    disk.full = False
    again = AuditTrail(AuditFile(disk.file.path, memory=disk.file.path.with_name("memory")))
    assert again.flush(10)
    assert again.figures.lost == 10
    again.close()
    told = bodies(disk.file.path)
    assert [(body["action"], body["object"].get("lines")) for body in told] == [
        ("Admin.AbortJob", None),
        ("audit.lost", "10"),
    ]
    AuditTrail(AuditFile(disk.file.path, memory=disk.file.path.with_name("memory"))).close()
    assert len(bodies(disk.file.path)) == 2  # said once
