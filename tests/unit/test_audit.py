"""The audit file: every change is noticed, a killed writer does no harm, a line is one line whatever it is about."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhelm.errors import AlreadyRunning, BadInput
from fedhelm.security.audit import MAX_WAITING, RETRY_S, AuditFile, AuditTrail
from fedhelm.security.audit_lines import MAX_LINE, START, Entry, Line, Outcome, encode, examine, parse_line
from fedhelm.security.audit_memory import read_memory
from fedhelm.security.audit_pace import BURST
from fedhelm.security.audit_writer import NotWritten
from fedhelm.security.identity import Principal
from fedhelm.security.syslog import SyslogSink, syslog_message
from tests.fakes.provision_clock import FixedClock
from tests.support.waiting import eventually_sync

BOB = Principal("poc", "lead", "bob@a.org", "a", "5f")
TIME = "2026-01-01T00:00:00.000Z"


def entry(number=1, **changes):
    told = {"job": f"job{number}", "submitter": "alice@b.org"}
    return dataclasses.replace(
        Entry("Admin.AbortJob", Outcome.DENIED, BOB, told, "manage_job needs n:submitter"), **changes
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def write(path, count, **options):
    with AuditFile(path, clock=FixedClock(), **options) as file:
        return [line for number in range(count) for line in file.append([entry(number)])]


def report_of(data):
    return examine(io.BytesIO(data if isinstance(data, bytes) else data.read_bytes()))


def test_a_line_says_who_what_about_what_and_follows_the_one_before(path):
    first, second = write(path, 2)
    bodies = [json.loads(line) for line in path.read_text().splitlines()]
    assert bodies[0] == {
        "number": 1,
        "time": TIME,
        "by": {"role": "lead", "name": "bob@a.org", "org": "a", "serial": "5f"},
        "action": "Admin.AbortJob",
        "object": {"job": "job0", "submitter": "alice@b.org"},
        "outcome": "denied",
        "why": "manage_job needs n:submitter",
        "prev": "0" * 64,
        "sha256": first.digest,
    }
    assert bodies[1]["prev"] == first.digest
    without = path.read_bytes().splitlines()[1].replace(f',"sha256":"{second.digest}"'.encode(), b"")
    assert hashlib.sha256(without).hexdigest() == second.digest
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    report = report_of(path)
    assert (report.sound, report.lines, report.last, report.tail) == (True, 2, (2, second.digest), 0)


def test_it_goes_on_where_it_was(path):
    write(path, 3)
    write(path, 2)
    assert report_of(path).last[0] == 5
    with AuditFile(path, sync=False) as file:
        assert file.last[0] == 5
        assert [line.number for line in file.append([entry(), entry()])] == [6, 7]
    assert report_of(path).sound
    assert report_of(b"").last == START


def test_there_is_one_writer(path):
    with (
        AuditFile(path) as file,
        pytest.raises(AlreadyRunning, match=r"audit\.jsonl is being written by another process"),
    ):
        AuditFile(path)
    with AuditFile(path) as file:
        file.append([entry()])


def test_no_piece_of_a_line_looks_like_a_line(path):
    told = {"a": "b", "sha256": "0" * 64}
    line = encode(entry(object=told, why="x"), 1, "0" * 64, TIME)
    assert line.body["object"] == {"a": "b", "digest": "0" * 64}
    assert {str(parse_line(line.raw[:cut])) for cut in range(len(line.raw))} == {"is not a line of an audit file"}


def test_no_link_is_followed(path, tmp_path):
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        AuditFile(path)


def test_every_changed_byte_is_named_with_its_line(path):
    write(path, 3)
    data = path.read_bytes()
    ends = [place for place, byte in enumerate(data) if byte == ord("\n")]
    for place in range(0, len(data), 3):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        if place == ends[-1]:
            continue  # the last line's end: like one that is not finished
        line = 1 + sum(end < place for end in ends)
        assert f"line {line} " in (report_of(changed).problem or ""), place


def test_what_is_taken_out_put_in_or_moved_is_named(path):
    write(path, 4)
    one, two, three, four = path.read_bytes().splitlines(keepends=True)
    forged = encode(entry(7), 2, "f" * 64, TIME).raw + b"\n"
    for lines, problem in (
        ([one, three, four], "line 2 has number 3, and 2 is due"),
        ([two, three, four], "line 1 has number 2, and 1 is due"),
        ([one, three, two, four], "line 2 has number 3"),
        ([one, two, two, three], "line 3 has number 2, and 3 is due"),
        ([one, forged, three, four], "line 2 (number 2) does not follow the line before it"),
        ([one, b"\n", two], "line 2 is not a line of an audit file"),
        ([one, b"{}\n", two], "line 2 is not a line of an audit file"),
        ([one, two[:40] + b"\n", three], "line 2 is not a line of an audit file"),
        ([one, two[:40] + b"\n"], "line 2 is not a line of an audit file"),
        ([one, b"x" * 3 * MAX_LINE, two], "line 2 is not a line of an audit file"),
        ([one, two.replace(b"job1", b"job9")], "line 2 was changed: its sha256 is another"),
    ):
        report = report_of(b"".join(lines))
        assert (report.problem or "").startswith(problem)
    assert report_of(one + two[:-1]).sound
    assert report_of(one + two[:40]).tail == 40  # not finished, and not noted yet
    assert report_of(one + two + three).sound  # a tail that was cut: only whoever kept the last digest can tell


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_line_that_was_not_finished_is_noted_and_the_chain_goes_on(path, kept):
    write(path, 2)
    data = path.read_bytes()
    start = data.index(b"\n") + 1
    path.write_bytes(data[: start + kept * (len(data) - start) // 60])
    left = len(path.read_bytes()) - start
    write(path, 2)
    report = report_of(path)
    assert (report.sound, report.torn, report.last[0]) == (True, [2], 4)
    note = json.loads(path.read_bytes().splitlines()[2])
    assert (note["number"], note["action"]) == (2, "audit.torn")
    assert note["object"]["bytes"] == str(left + 1)
    assert path.read_bytes().startswith(data[: start + left])  # nothing was taken away


def test_a_line_that_only_lacks_its_end_counts(path):
    write(path, 2)
    path.write_bytes(path.read_bytes()[:-1])
    write(path, 1)
    report = report_of(path)
    assert (report.sound, report.torn, report.last[0]) == (True, [], 3)


def test_a_writer_that_is_killed_again_and_again_while_it_notes(path):
    """At every byte at which the note of a torn line may end itself."""
    write(path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number":2,"ti')
    write(path, 0)
    noted = path.read_bytes()
    for cut in range(len(whole) + 15, len(noted) + 1, 3):
        path.write_bytes(noted[:cut])
        write(path, 1)
        assert report_of(path).sound, cut
        assert path.read_bytes().startswith(noted[:cut])


@given(
    lives=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 900), st.binary(max_size=20)), min_size=1, max_size=6)
)
@settings(max_examples=40, deadline=None)
def test_any_number_of_torn_writes_leave_a_chain_that_fits(tmp_path_factory, lives):
    """Each life writes one batch, of which the last bytes never reached the disk, or rubbish did in their place."""
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    acknowledged = b""
    for count, lost, rubbish in lives:
        with AuditFile(path, sync=False) as file:
            acknowledged = path.read_bytes()  # what a start has written is there
            file.append([entry(number) for number in range(count)])
        batch = path.read_bytes()[len(acknowledged) :]
        path.write_bytes(acknowledged + batch[: max(0, len(batch) - lost)] + rubbish)
    AuditFile(path).close()
    write(path, 1)
    assert report_of(path).sound
    assert path.read_bytes().startswith(acknowledged)


@pytest.mark.parametrize("left", [b"\0" * 100_000, b"\n", b"\n\n{}\n", b"\xff" * 10, b"{" * 70_000 + b"\n" * 3])
def test_whatever_stands_at_the_end_the_next_line_accounts_for_it(path, left):
    for lines in (0, 2):
        path.unlink(missing_ok=True)
        write(path, lines)
        path.write_bytes(path.read_bytes() + left)
        write(path, 1)
        report = report_of(path)
        assert (report.sound, len(report.torn), report.last[0]) == (True, 1, lines + 2)


def test_a_changed_line_is_not_excused_by_a_restart(path):
    write(path, 2)
    path.write_bytes(path.read_bytes().replace(b"job1", b"job9"))
    write(path, 1)
    assert "line 2 was changed" in report_of(path).problem


@pytest.mark.processes
def test_a_writer_killed_with_kill_9_leaves_a_file_that_goes_on(path):
    code = (
        "import sys; from pathlib import Path; from fedhelm.security.audit import AuditFile\n"
        "from fedhelm.security.audit_lines import Entry, Outcome\n"
        "file = AuditFile(Path(sys.argv[1]))\n"
        "while True:\n"
        "    lines = file.append([Entry('a', Outcome.ALLOWED, object={'x': 'y' * 200})] * 20)\n"
        "    print(lines[-1].number, flush=True)\n"
    )
    acknowledged = 0
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
            for _ in range(10):
                acknowledged = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        report = report_of(path)
        assert report.sound
        assert report.last[0] >= acknowledged
    write(path, 1)
    assert report_of(path).sound


_text = st.text(max_size=400) | st.sampled_from(["\n", "\u2028", "\ud800", "\x00\x1b[2J", '"\\', "😀" * 500])


@given(name=_text, action=_text, why=_text, told=st.dictionaries(_text, _text | st.integers() | st.none(), max_size=12))
@settings(max_examples=50, deadline=None)
def test_a_line_is_one_line_of_bounded_length_whatever_it_is_about(name, action, why, told):
    one = Entry(action, Outcome.FAILED, Principal(name, name, name, name, name), told, why, times=10**9)
    line = encode(one, 10**12, "0" * 64, TIME)
    assert len(line.raw) < MAX_LINE
    assert line.raw.isascii()
    assert b"\n" not in line.raw
    assert parse_line(line.raw) == line
    json.loads(line.raw)["why"].encode()  # what is read back can be written anywhere


@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([b"\n", b"{}\n", encode(entry(), 1, "0" * 64, TIME).raw + b"\n"]))
)
@settings(max_examples=80, deadline=None)
def test_any_bytes_can_be_examined(parts):
    data = b"".join(parts)
    report = report_of(data)
    assert report.lines == (1 if data.startswith(encode(entry(), 1, "0" * 64, TIME).raw + b"\n") else report.lines)
    assert report.lines <= data.count(b"\n") + 1


def test_a_full_disk_is_told_and_what_was_half_written_is_noted(path, monkeypatch):
    real, full = os.write, [True]

    def write_half(fd, data):
        if full[0]:
            full[0] = False
            return real(fd, bytes(data[:50]))
        if full == [False]:
            full.append(False)
            raise OSError(28, "No space left on device")
        return real(fd, data)

    with AuditFile(path) as file:
        file.append([entry(0)])
        monkeypatch.setattr(os, "write", write_half)
        with pytest.raises(OSError, match="No space left"):
            file.append([entry(1)])
        file.append([entry(2)])
    report = report_of(path)
    assert (report.sound, report.torn, report.last[0]) == (True, [2], 3)


class Disk:
    """A disk that takes only so many bytes more; None: as many as there are."""

    def __init__(self, monkeypatch):
        self.left, self.syncs = None, True
        self._write, self._fsync = os.write, os.fsync
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def write(self, fd, data):
        if self.left is None:
            return self._write(fd, data)
        if self.left == 0:
            raise OSError(28, "No space left on device")
        data = bytes(data[: self.left])
        self.left -= len(data)
        return self._write(fd, data)

    def fsync(self, fd):
        if not self.syncs:
            raise OSError(5, "Input/output error")
        self._fsync(fd)


@pytest.mark.parametrize("room", range(0, 2_700, 161))
def test_of_a_batch_that_does_not_fit_nothing_is_written_twice_and_nothing_is_left_out(path, monkeypatch, room):
    disk, entries = Disk(monkeypatch), [entry(number) for number in range(8)]
    with AuditFile(path) as file:
        told = file.append([entry(99)])
        disk.left = room
        while True:
            try:
                told += file.append(entries)
            except NotWritten as error:
                told += error.lines
                entries = entries[error.taken :]
                disk.left = None
            else:
                break
    report, jobs = report_of(path), [line.body["object"].get("job") for line in told]
    assert (report.sound, report.tail) == (True, 0)
    assert [job for job in jobs if job] == ["job99", *(f"job{number}" for number in range(8))]
    assert [line.number for line in told] == list(range(1, report.last[0] + 1))  # whoever is told has no hole


def test_what_a_disk_does_not_confirm_is_said(path, monkeypatch):
    disk = Disk(monkeypatch)
    with AuditFile(path) as file:
        disk.syncs = False
        with pytest.raises(NotWritten, match="Input/output error") as failure:
            file.append([entry(1), entry(2)])
        assert (failure.value.taken, len(failure.value.lines)) == (2, 2)
        disk.syncs = True
        file.append([entry(3)])
    assert report_of(path).sound
    assert [body["action"] for body in bodies(path)][2:] == ["audit.not_synced", "Admin.AbortJob"]
    assert bodies(path)[2]["object"] == {"first": "1", "last": "2"}


# -- a file that is not where it was -----------------------------------------------------------------------------------


def moved(path):
    path.rename(path.with_name("elsewhere"))


def exchanged(path):
    moved(path)
    path.touch()


def an_older_one(path):
    kept = b"".join(path.read_bytes().splitlines(keepends=True)[:2])
    path.with_name("new").write_bytes(kept)
    path.with_name("new").rename(path)


def emptied(path):
    os.truncate(path, 0)


def shortened(path):
    os.truncate(path, path.stat().st_size - 50)


DEEDS = [moved, exchanged, an_older_one, emptied, shortened]


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("deed", DEEDS)
def test_a_file_that_is_taken_away_is_noticed_by_who_writes_it(path, tmp_path, deed, running):
    memory = tmp_path / "run" / "audit-last.json"
    file = AuditFile(path, memory=memory)
    for number in range(4):
        file.append([entry(number)])
    last = file.last
    if not running:
        file.close()
    deed(path)
    if not running:
        file = AuditFile(path, memory=memory)
    lines = file.append([entry(5)])
    file.close()
    gone = [body for body in bodies_or_rubbish(path) if body["action"] == "audit.missing"]
    assert [(one["number"], one["object"]["digest"]) for one in gone] == [(5, last[1])]
    assert gone[0]["object"]["written"] == "4"
    assert lines[-1].number == 6  # no number is used again
    report = report_of(path)
    assert (report.sound, report.missing) == (True, [5])
    with AuditFile(path, memory=memory) as file:  # it is said once
        file.append([entry(6)])
    assert (report_of(path).missing, report_of(path).last[0]) == ([5], 7)


def bodies_or_rubbish(path):
    return [one.body for raw in path.read_bytes().splitlines() if isinstance(one := parse_line(raw), Line)]


def test_a_file_that_was_written_anew_does_not_fit_what_is_remembered(path, tmp_path):
    write(path, 4, memory=tmp_path / "memory")
    path.unlink()
    with AuditFile(path) as forged:
        forged.append([entry(number, why="nothing happened") for number in range(6)])
    write(path, 1, memory=tmp_path / "memory")
    assert [body["number"] for body in bodies(path) if body["action"] == "audit.missing"] == [7]


def test_a_file_is_no_less_whole_because_its_memory_is_older_or_gone(path, tmp_path):
    """The memory is written after the file: a writer that is killed in between leaves it behind."""
    memory = tmp_path / "memory"
    write(path, 2, memory=memory)
    older = memory.read_bytes()
    write(path, 2, memory=memory)
    for former in (older, b"", None):
        if former is None:
            memory.unlink()
        else:
            memory.write_bytes(former)
        write(path, 1, memory=memory)
    assert (report_of(path).sound, report_of(path).missing, report_of(path).last[0]) == (True, [], 7)
    assert read_memory(memory).last == report_of(path).last


def test_a_file_that_was_set_aside_by_its_own_name_is_not_missing(path):
    with AuditFile(path, memory=path.with_name("memory")) as file:
        file.append([entry(1), entry(2)])
        path.rename(path.with_name("audit-000000000002.jsonl"))
        assert [line.body["action"] for line in file.append([entry(3)])] == ["audit.continued", "Admin.AbortJob"]


@pytest.mark.parametrize("text", ["{}", "[]", "x" * 300, '{"number": -1, "sha256": "", "lost": 0}', "{" * 255])
def test_a_memory_that_makes_no_sense_keeps_nobody_from_writing(path, tmp_path, text, caplog):
    memory = tmp_path / "memory"
    memory.write_text(text)
    with pytest.raises(BadInput, match="memory: it is not what this participant wrote there"):
        read_memory(memory)
    write(path, 2, memory=memory)
    assert read_memory(memory).number == 2
    assert "is of no use" in caplog.text


# -- the thread --------------------------------------------------------------------------------------------------------


def bodies(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_trail_writes_without_its_callers_waiting_and_hands_lines_on(path):
    got = []
    trail = AuditTrail(AuditFile(path), [got.append], clock=FixedClock())
    for number in range(20):
        trail.note(entry(number))
    assert trail.flush(10)
    assert [line.number for line in got] == list(range(1, 21))
    assert got[-1].digest == bodies(path)[-1]["sha256"]
    trail.close()
    assert report_of(path).last[0] == 20
    with AuditFile(path):  # it has let go of the file
        pass


class SlowFile:
    """A file whose disk stands still until it is told to go on, or fails."""

    def __init__(self, path):
        self.path, self.batches, self.lost, self.remembered = path, [], 0, None
        self.go, self.entered, self.failures = threading.Event(), threading.Event(), 0

    def append(self, entries):
        self.entered.set()
        assert self.go.wait(10)
        self.check()
        self.batches.append(list(entries))
        return []

    def check(self):
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")

    def remember(self, lost=0):
        self.remembered = lost

    def close(self):
        pass

    @property
    def entries(self):
        return [one for batch in self.batches for one in batch]


def test_what_is_more_than_may_wait_is_counted_and_the_same_in_a_row_is_one_line(path):
    slow = SlowFile(path)
    trail = AuditTrail(slow, clock=FixedClock())
    trail.note(entry(0))
    assert slow.entered.wait(10)
    for _ in range(MAX_WAITING + 7):
        trail.note(entry(1, by=None, outcome=Outcome.ALLOWED))
    slow.go.set()
    assert trail.flush(10)
    trail.close()
    assert slow.entries[0] == entry(0, time=TIME)
    same = [one for one in slow.entries if one.object == entry(1).object]
    assert sum(one.times for one in same) == MAX_WAITING
    assert len(same) < 20
    assert [one.object for one in slow.entries if one.action == "audit.lost"] == [{"lines": 7}]


def test_a_disk_that_fails_is_tried_again_and_does_not_keep_anybody_from_ending(path):
    slow = SlowFile(path)
    slow.failures = 10**6
    slow.go.set()
    trail = AuditTrail(slow, clock=FixedClock())
    trail.note(entry())
    assert slow.entered.wait(10)
    assert not trail.flush(0)
    trail.close()
    assert not any(thread.name == "audit" for thread in threading.enumerate())


def test_a_receiver_that_fails_is_left_alone_for_a_while_and_the_file_says_what_it_missed(path):
    clock, got, down = FixedClock(), [], [True]

    def sink(line):
        if down[0]:
            raise ConnectionRefusedError("nobody listens")
        got.append(line)

    trail = AuditTrail(AuditFile(path), [sink], clock=clock)
    for number in (1, 2, 3):
        trail.note(entry(number))
        assert trail.flush(10)
    down[0] = False
    clock.shift(seconds=RETRY_S)
    trail.note(entry(4))
    eventually_sync(lambda: len(bodies(path)) == 5)
    trail.close()
    assert [line.number for line in got] == [4, 5]
    assert (bodies(path)[4]["action"], bodies(path)[4]["object"]) == ("audit.not_handed_on", {"lines": "3"})


def test_who_is_denied_again_and_again_does_not_fill_the_disk(path):
    clock = FixedClock()
    trail = AuditTrail(AuditFile(path, sync=False), clock=clock)
    for number in range(BURST + 50):
        trail.note(entry(number))
    trail.note(entry(by=dataclasses.replace(BOB, name="eve@b.org")))
    trail.note(entry(outcome=Outcome.ALLOWED))
    assert trail.flush(10)
    assert sum(body["outcome"] == "denied" for body in bodies(path)) == BURST + 1
    clock.shift(seconds=2)
    trail.note(entry(9999))  # 4 lines more by now: what was skipped, and this one
    assert trail.flush(10)
    told, last = bodies(path)[-2:]
    assert (told["action"], told["by"]["name"], told["object"]) == (
        "audit.skipped",
        "bob@a.org",
        {"lines": "50", "since": TIME},
    )
    assert last["object"]["job"] == "job9999"
    for number in range(10):
        trail.note(entry(number))
    trail.close()  # whatever was skipped is told at the end
    assert bodies(path)[-1]["object"]["lines"] == "8"
    assert report_of(path).sound


# -- syslog ------------------------------------------------------------------------------------------------------------


def test_a_message_is_that_of_rfc_5424():
    line = encode(entry(), 7, "0" * 64, TIME)
    head, _, rest = syslog_message(line, "site 1\n", "42").partition(b"] ")
    assert head.decode() == f'<108>1 {TIME} site1 fedhelm 42 audit [meta sequenceId="7"'
    assert rest == line.raw
    allowed = encode(entry(outcome=Outcome.ALLOWED), 7, "0" * 64, TIME)
    assert syslog_message(allowed, "").startswith(f"<110>1 {TIME} - fedhelm - audit ".encode())


def test_lines_arrive_over_udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        sink = SyslogSink(f"udp://127.0.0.1:{receiver.getsockname()[1]}", "site-1")
        lines = [encode(entry(number), number, "0" * 64, TIME) for number in (1, 2)]
        for line in lines:
            sink(line)
        got = [receiver.recv(65536) for _ in lines]
        sink.close()
    assert got == [syslog_message(line, "site-1", str(os.getpid())) for line in lines]


def test_lines_arrive_over_tcp_with_their_lengths_and_a_lost_receiver_is_an_error():
    lines = [encode(entry(number), number, "0" * 64, TIME) for number in (1, 2)]
    with socket.create_server(("127.0.0.1", 0)) as receiver:
        receiver.settimeout(10)
        sink = SyslogSink(f"tcp://127.0.0.1:{receiver.getsockname()[1]}", "site-1")
        sink(lines[0])
        connection, _ = receiver.accept()
        with connection, connection.makefile("rb") as stream:
            sink(lines[1])
            for line in lines:
                length = b""
                while (byte := stream.read(1)) != b" ":
                    length += byte
                assert stream.read(int(length)) == syslog_message(line, "site-1", str(os.getpid()))
    sink.close()
    with pytest.raises(OSError, match="refused"):
        sink(lines[0])


def test_a_receiver_that_was_started_again_gets_the_next_line():
    """What is written into a connection that the other end has closed gives no error the first time."""
    lines = [encode(entry(number), number, "0" * 64, TIME) for number in (1, 2, 3)]
    with socket.create_server(("127.0.0.1", 0)) as receiver:
        receiver.settimeout(10)
        sink = SyslogSink(f"tcp://127.0.0.1:{receiver.getsockname()[1]}", "site-1")
        got = b""
        for line in lines:
            sink(line)
            connection, _ = receiver.accept()
            with connection:
                connection.sendall(b"a receiver that says something")
                got += connection.recv(65536)
            assert select.select([sink._socket], [], [], 10)[0]  # the end has arrived
        sink.close()
    assert [line.raw in got for line in lines] == [True] * 3


def test_what_a_receiver_missed_is_written_when_the_participant_ends(path):
    def sink(line):
        raise ConnectionRefusedError("nobody listens")

    trail = AuditTrail(AuditFile(path), [sink])
    for number in range(3):
        trail.note(entry(number))
    assert trail.flush(10)
    assert trail.figures.not_handed_on == 3
    trail.close()
    assert (bodies(path)[-1]["action"], bodies(path)[-1]["object"]) == ("audit.not_handed_on", {"lines": "3"})


def test_who_logs_in_again_and_again_does_not_turn_evidence_out_and_a_participant_is_not_paced(path):
    clock = FixedClock()
    trail = AuditTrail(AuditFile(path, sync=False), clock=clock)
    for number in range(BURST + 10):
        trail.note(entry(number, action="Admin.Login", outcome=Outcome.ALLOWED))
    trail.note(entry(1))  # refused: that is counted by itself
    for number in range(BURST + 10):
        trail.note(entry(number, action="site.shutdown", by=None, outcome=Outcome.ALLOWED))
    commands = [trail.write(entry(number, outcome=Outcome.ALLOWED)) for number in range(BURST + 10)]
    assert trail.flush(10)
    assert all(one.done() and one.exception() is None for one in commands)
    trail.close()
    told = Counter(body["action"] + body["outcome"] for body in bodies(path))
    assert told == {
        "Admin.Loginallowed": BURST,
        "audit.skippedallowed": 1,
        "Admin.AbortJobdenied": 1,
        "site.shutdownallowed": BURST + 10,
        "Admin.AbortJoballowed": BURST + 10,
    }
    assert bodies(path)[-1]["object"]["lines"] == "10"


@pytest.mark.parametrize(
    "url", ["", "host:514", "http://host", "udp://", "tcp://host:0x", "tcp://host:99999", "udp://a/b", "tcp://u@h"]
)
def test_what_names_no_receiver(url):
    with pytest.raises(BadInput, match=r"is not udp://HOST:PORT or tcp://HOST:PORT"):
        SyslogSink(url, "site-1")


def test_a_line_knows_itself():
    line = encode(entry(), 1, "0" * 64, TIME)
    assert isinstance(parse_line(line.raw), Line)
    for key, value in (("number", True), ("number", 0), ("number", "1"), ("prev", 1), ("object", [])):
        body = {**line.body, key: value}
        del body["sha256"]
        plain = json.dumps(body, separators=(",", ":")).encode()
        raw = plain[:-1] + b',"sha256":"%s"}' % hashlib.sha256(plain).hexdigest().encode()
        assert parse_line(raw) == "does not have the values of a line"
