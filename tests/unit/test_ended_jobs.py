"""A job that has ended at a site does not run there again, whatever happens to agent, disk and server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fedhelm.errors import BadInput, BadSignature, FedhelmError, NotAuthorised
from fedhelm_client.ended_jobs import EndedJobs, ended_before
from fedhelm_client.folders import JobFolder, outbox_dir
from tests.support.kits import make_kits

AT = datetime(2026, 11, 22, 15, 4, 5, tzinfo=UTC)
ONE, TWO = "a23456723456", "b23456723456"


class Ticking:
    """A second later at each look."""

    def __init__(self):
        self.now = AT

    def utcnow(self):
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ended_jobs.txt"


def number(place):
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    return "".join(digits[place // 32**power % 32] for power in range(12))


def test_who_ended_is_remembered_by_the_next_agent_and_allowed_by_the_operator_alone(path):
    ended = EndedJobs(path, Ticking())
    ended.check(ONE)
    ended.add(ONE)
    ended.add(ONE)
    ended.add(TWO)
    assert path.read_text() == f"{ONE} 2026-11-22T15:04:06.000Z\n{TWO} 2026-11-22T15:04:07.000Z\n"
    again = EndedJobs(path, Ticking())
    assert ONE in again
    with pytest.raises(
        NotAuthorised, match=f"job {ONE} ended at this site at 2026-11-22T15:04:06.000Z and is not run"
    ) as no:
        again.check(ONE)
    assert str(path) in no.value.hint
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if ONE not in line))
    allowed = EndedJobs(path, Ticking())
    allowed.check(ONE)
    assert TWO in allowed


def test_a_line_that_was_torn_off_costs_no_other(path, caplog):
    EndedJobs(path, Ticking()).add(ONE)
    with path.open("ab") as file:
        file.write(b"b2345672\xff")
    torn = EndedJobs(path, Ticking())
    assert "the last line was torn off" in caplog.text
    torn.add(TWO)
    whole = EndedJobs(path, Ticking())
    assert (ONE in whole, TWO in whole) == (True, True)


def test_what_the_disk_does_not_take_counts_until_the_agent_ends_and_is_written_later(tmp_path):
    path = tmp_path / "missing" / "ended_jobs.txt"
    ended = EndedJobs(path, Ticking())
    with pytest.raises(OSError, match="No such file"):
        ended.add(ONE)
    assert ONE in ended
    path.parent.mkdir()
    ended.add(TWO)
    again = EndedJobs(path, Ticking())
    assert (ONE in again, TWO in again) == (True, True)


def test_a_memory_that_cannot_be_read_is_not_taken_for_empty(path):
    path.mkdir()
    with pytest.raises(FedhelmError, match=r"ended_jobs\.txt cannot be read"):
        EndedJobs(path, Ticking())


def test_a_line_that_says_nothing_is_named_and_not_read_over(path):
    good = f"{ONE} 2026-11-22T15:04:05.123Z"
    path.write_text(f"{good}\r\n\n{TWO}  2026-11-22\n{good}\n")
    with pytest.raises(BadInput, match=rf"ended_jobs\.txt:3: '{TWO}  2026-11-22' is not a job and a time, such as"):
        EndedJobs(path, Ticking())
    path.write_text(f"{good}\r\n\n")
    assert ONE in EndedJobs(path, Ticking())


def test_of_many_the_oldest_are_forgotten_and_nothing_of_their_time_is_taken_in(path):
    clock = Ticking()
    ended = EndedJobs(path, clock, most=10)
    for place in range(25):
        ended.add(number(place))
    again = EndedJobs(path, clock, most=10)
    assert len(path.read_text().splitlines()) == 11
    assert number(14) not in again
    assert all(number(place) in again for place in range(15, 25))
    last_forgotten = "2026-11-22T15:04:20.000Z"
    for signed in ("2026-11-21T00:00:00.000Z", last_forgotten):
        with pytest.raises(BadSignature, match=f"forgotten which jobs ended before {last_forgotten}"):
            again.check_age(ONE, signed)
    again.check_age(ONE, "2026-11-22T15:04:20.001Z")
    for place in range(25, 40):  # it is kept, and rises
        again.add(number(place))
    with pytest.raises(BadSignature, match=r"before 2026-11-22T15:04:35\.000Z"):
        EndedJobs(path, clock, most=10).check_age(ONE, "2026-11-22T15:04:20.001Z")


def test_a_site_that_was_upgraded_knows_its_ended_jobs_by_what_they_left(tmp_path, path):
    kit = make_kits(tmp_path)["site-1"]
    assert ended_before(kit) == []
    running, over, failed, never = (number(place) for place in (1, 2, 3, 4))
    for job in (running, over, failed, never):
        JobFolder.of(kit, job).make()
    for job in (running, over):
        JobFolder.of(kit, job).bundle.mkdir()
    for job in (running, failed):
        (outbox_dir(kit) / job).mkdir(parents=True)
    JobFolder.of(kit, failed).log.touch()
    (kit.run / "jobs" / "notes").mkdir()
    assert ended_before(kit) == [over]
    EndedJobs(path, Ticking()).begin(ended_before(kit))
    ended = EndedJobs(path, Ticking())
    assert [job in ended for job in (running, over, failed, never)] == [False, True, False, False]


def test_a_site_without_any_begins_with_an_empty_file(path):
    EndedJobs(path, Ticking()).begin([])
    assert path.read_bytes() == b""
    path.unlink()
    path.mkdir()
    with pytest.raises(FedhelmError, match="cannot be"):
        EndedJobs(path, Ticking()).begin([])
