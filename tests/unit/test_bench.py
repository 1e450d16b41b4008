"""How figures are kept and shown; the measuring itself needs real processes and is no test."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from bench.__main__ import main
from bench.failover import LogProbe
from bench.machine import describe, load
from bench.measures import MEASURES
from bench.report import Figure, append, markdown
from fedhelm.persist.log import Batch
from fedhelm.persist.record import By, Record
from tests.support.waiting import eventually_sync

MACHINE = {
    "cpu": "A CPU",
    "cores": 2,
    "memory_gib": 4.0,
    "kernel": "6.1",
    "python": "3.11.7",
    "filesystem": "ext4",
    "fsync_ms": 0.6,
    "commit": "abc",
}
FIGURE = Figure("round", "one round", "s", [0.075, 0.0712, 1.5], "by the log", "0.15 s", 1.25)


def test_table_shows_median_range_count_goal_and_how():
    text = markdown([FIGURE], MACHINE)
    assert "A CPU, 2 cores" in text
    row = next(line for line in text.splitlines() if line.startswith("| one round"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "one round",
        "0.075 s",
        "0.0712 to 1.5",
        "3",
        "0.15 s",
        "1.2",
    ]
    assert "* one round: by the log" in text


def test_a_lone_value_has_no_range():
    row = Figure("memory", "memory", "MiB", [354.4], "VmHWM").row()
    assert row == ["memory", "354 MiB", "", "1", "", ""]


def test_lines_accumulate(tmp_path):
    file = tmp_path / "results.jsonl"
    for _ in range(2):
        append(file, [FIGURE], MACHINE, datetime(2026, 11, 22, 16, 0, tzinfo=UTC))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0]["time"] == "2026-11-22T16:00:00Z"
    assert (lines[0]["name"], lines[0]["median"], lines[0]["values"]) == ("round", 0.075, [0.075, 0.0712, 1.5])
    assert lines[0]["machine"] == MACHINE


def test_machine_is_described_by_what_matters_for_a_figure(tmp_path):
    found = describe(tmp_path)
    assert set(found) == set(MACHINE)
    assert found["fsync_ms"] > 0
    assert found["cores"] >= 1
    assert load() >= 0
    assert list(tmp_path.iterdir()) == []


def test_unknown_measure_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--only", "nonsense"])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert all(name in err for name in MEASURES)


class LogOf:
    """Stands in for the servers' log: hands out what was appended since."""

    def __init__(self, *records):
        self._records = list(records)

    def read_new(self):
        found, self._records = self._records, []
        return Batch(None, found)


def record(kind, epoch):
    return Record(
        seq=1, epoch=epoch, by=By("server1", "a"), nonce="n", prev="p", kind=kind, body={"items": []}, sha256="s"
    )


def test_probe_finds_the_first_acknowledgement_under_a_new_epoch():
    log = LogOf()
    with LogProbe(log) as probe:
        log._records = [record("metrics", 1), record("fence", 2)]
        eventually_sync(lambda: not log._records)
        log._records = [record("round_open", 2), record("contribution", 2), record("metrics", 2)]
        first = probe.first(1, "metrics", "contribution")
        assert (first.kind, first.epoch) == ("contribution", 2)
        assert probe.last(1, "metrics", "contribution").kind == "metrics"
        assert first.at > probe.last(1, "metrics").at
