"""An audit file that has grown large is set aside, and the chain goes on over all of them."""

from __future__ import annotations

import errno
import json
import os

import pytest

from fedhelm.provision.audit_cli import main
from fedhelm.security.audit import AuditFile
from fedhelm.security.audit_files import older_files, open_files, read_files
from fedhelm.security.audit_lines import CONTINUED, Entry, Outcome, Report, parse_line
from fedhelm.security.audit_start import open_trail
from tests.fakes.provision_clock import FixedClock
from tests.support.kits import make_kits

SMALL = 2_000
"""Bytes of a file in these tests: some eight lines."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


@pytest.fixture
def run(capsys):
    def command(*words):
        status = main([*map(str, words), "-o", "json"])
        out = capsys.readouterr()
        return status, json.loads(out.out)

    return command


def write(path, count, **options):
    with AuditFile(path, clock=FixedClock(), sync=False, max_bytes=SMALL, **options) as file:
        for number in range(count):
            file.append([Entry("Admin.ShowJob", Outcome.ALLOWED, object={"job": f"job{number}"})])
        return file.last


def examined(path):
    report = Report()
    with open_files(path) as files:
        lines = list(read_files(files, report))
    return report, lines


def jobs(lines):
    return [line.body["object"]["job"] for line in lines if line.body["action"] != CONTINUED]


def test_the_chain_goes_on_over_files_of_bounded_size(path):
    last = write(path, 40)
    older = older_files(path)
    assert len(older) >= 4
    assert all(SMALL <= one.stat().st_size < SMALL + 1000 for one in older)
    assert all(one.stat().st_mode & 0o777 == 0o600 for one in (*older, path))
    report, lines = examined(path)
    assert (report.problem, report.first, report.last) == (None, 1, last)
    assert jobs(lines) == [f"job{number}" for number in range(40)]
    assert [line.number for line in lines] == list(range(1, last[0] + 1))
    for one in older:  # its name is the number of its last line
        assert f"{parse_line(one.read_bytes().splitlines()[-1]).number:012d}" in one.name


def test_a_writer_that_comes_back_goes_on_whichever_file_it_finds(path):
    write(path, 10)
    write(path, 10)
    path.rename(path.with_name(f"audit-{examined(path)[0].last[0]:012d}.jsonl"))  # died before it made the new one
    write(path, 10)
    assert jobs(examined(path)[1]) == [f"job{number}" for _ in range(3) for number in range(10)]
    with path.open("ab") as file:
        file.truncate(100)  # died in the first line of the new one
    older = older_files(path)
    write(path, 1)
    report, _ = examined(path)
    assert report.problem is None
    assert report.torn
    assert older_files(path) == older


def test_a_file_that_goes_on_says_so_and_fits_alone(path, run):
    write(path, 20)
    for one in older_files(path):
        one.unlink()
    report, lines = examined(path)
    assert report.problem is None
    assert report.first == lines[0].number > 1
    assert lines[0].body["action"] == CONTINUED
    status, told = run("verify", path)
    assert status == 0
    assert told["data"]["first"] == report.first
    status, told = run("verify", path, "--expect", f"1:{'0' * 64}")
    assert (status, told["data"]["problem"]) == (1, "line number 1 is missing: it is in a file that is not here")


def test_a_file_whose_beginning_was_cut_does_not_fit(path):
    write(path, 5)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[2:]))
    assert examined(path)[0].problem == "line 1 has number 3, and 1 is due"


@pytest.mark.parametrize("change", ["taken out", "swapped", "edited", "cut"])
def test_what_was_done_to_older_files_is_named(path, run, change):
    write(path, 30)
    first, second, third = older_files(path)[:3]
    if change == "taken out":
        second.unlink()
    elif change == "swapped":
        content = second.read_bytes()
        second.write_bytes(third.read_bytes())
        third.write_bytes(content)
    elif change == "edited":
        first.write_bytes(first.read_bytes().replace(b"job2", b"job3", 1))
    else:
        second.write_bytes(b"".join(second.read_bytes().splitlines(keepends=True)[:-1]))
    status, told = run("verify", path.parent)
    assert status == 1
    blamed = {"taken out": third, "swapped": second, "edited": first, "cut": third}[change]
    assert told["data"]["file"] == str(blamed)
    told = told["data"]["problem"]
    assert {
        "taken out": "is due: a file before it is missing",
        "swapped": "is due: a file before it is missing",
        "edited": "was changed",
        "cut": "is due: a file before it is missing",
    }[change] in told


def test_show_and_export_read_all_of_them(path, run, tmp_path, capsys):
    write(path, 30)
    assert len(run("show", path.parent, "-n", 0)[1]["data"]["lines"]) == len(examined(path)[1])
    run("export", path, "--to", tmp_path / "all")
    assert main(["verify", str(tmp_path / "all")]) == 0
    assert main(["verify", str(path)]) == 0
    told = capsys.readouterr().out
    assert f"{path} and {len(older_files(path))} older files: every line fits" in told


def test_only_the_newest_are_kept_where_that_is_asked(path):
    last = write(path, 60, keep=2)
    assert len(older_files(path)) == 2
    report, _ = examined(path)
    assert report.problem is None
    assert report.first > 1
    assert report.last == last


def test_files_of_other_names_are_left_alone(path):
    for name in ("audit-1.jsonl", "audit-000000000001.jsonl.gz", "other-000000000001.jsonl", "audit-notes.jsonl"):
        (path.parent / name).write_text("mine")
    write(path, 40, keep=1)
    assert len(older_files(path)) == 1
    assert (path.parent / "audit-1.jsonl").read_text() == "mine"


def test_a_file_that_cannot_be_set_aside_grows_on(path, caplog):
    with AuditFile(path, clock=FixedClock(), sync=False, max_bytes=SMALL) as file:
        while path.stat().st_size < SMALL:
            file.append([Entry("start", Outcome.ALLOWED)])
        target = path.with_name(f"audit-{file.last[0]:012d}.jsonl")
        target.mkdir()  # of that name there is something already
        file.append([Entry("start", Outcome.ALLOWED)])
        told = f"{path} has grown large, and no new one can be begun"
        wrong = f"[Errno {errno.EEXIST}] {os.strerror(errno.EEXIST)}: '{target}'"
        assert [record.message for record in caplog.records] == [f"{told}: {wrong}"]
        file.append([Entry("start", Outcome.ALLOWED)])  # the next number is free
    assert len(older_files(path)) == 1
    assert examined(path)[0].problem is None


def test_a_reader_reads_a_file_once_that_is_set_aside_under_its_hands(path):
    write(path, 5)
    with open_files(path) as files:
        path.rename(path.with_name("audit-000000000005.jsonl"))
        report = Report()
        assert len(list(read_files(files, report))) == 5
        assert report.problem is None


def test_the_settings_of_a_participant_say_how_large(tmp_path):
    kit = make_kits(tmp_path)["site-1"]
    (kit.local / "audit.json").write_text('{"max_mb": 1, "keep": 3, "sync": false}')
    trail = open_trail(kit)
    trail.close()
    assert (trail._file._max_bytes, trail._file._keep) == (1 << 20, 3)
