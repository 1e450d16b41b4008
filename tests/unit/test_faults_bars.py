"""The check of the bars: silent where each is reached, one line for each that is missed."""

from __future__ import annotations

import itertools

import pytest

import bench.faults.__main__ as command
from bench.faults.bars import misses
from bench.faults.kinds import BOUNDS, KINDS
from bench.faults.lines import PER_PHASE, SAMPLES, append_line
from bench.faults.table import table

GAPS = {"crash": 0.2, "host": 3.0, "switchover": 0.3}


def line(trial, kind, phase, **more):
    klass = KINDS[kind].klass
    return {
        "commit": "a" * 40, "machine": "A CPU", "seed": 1, "trial": trial, "kind": kind, "class": klass,
        "phase": phase, "gap_s": GAPS.get(klass, 0.1), "silence_s": 0.1, "verdict": "ok", "findings": [],
        "load": 1.0, "seconds": 9.0, "checkpoints": 0, "compactions": 0, **more,
    }  # fmt: skip


def enough():
    """As many trials as the bars want, of every kind in every phase, all of them good."""
    wanted = [(kind.name, phase) for kind in KINDS.values() for phase in kind.phases for _ in range(PER_PHASE)]
    for klass in BOUNDS:
        members = [(kind.name, phase) for kind in KINDS.values() if kind.klass == klass for phase in kind.phases]
        wanted += itertools.islice(itertools.cycle(members), SAMPLES)
    return [line(number, *one) for number, one in enumerate(wanted)]


def changed(kind, **more):
    """Enough trials, one of which, of this kind, is not as it should be."""
    lines = enough()
    lines[next(number for number, one in enumerate(lines) if one["kind"] == kind)] |= more
    return lines


def test_nothing_is_missed_where_each_bar_is_reached():
    assert misses(enough(), enough()) == []


@pytest.mark.parametrize(
    ("finding", "begins"),
    [
        ("I2: line 7 of site-1 is lost", "lost: 1"),
        ("I3: contribution (1,) is recorded twice, again in slot 4", "doubled: 1"),
        ("I7: aborted job x runs again: round_open in slot 9", "doubled: 1"),
        ("I1: epoch 3 has two writers: a and b in slot 9", "epochs with two writers: 1"),
        ("site-1 trained round 2 again, whose result it had finished", "trained again: 1"),
    ],
)
def test_what_a_fault_must_not_cost_is_missed(finding, begins):
    lines = changed("kill-child", verdict="failed", findings=[finding])
    found = misses(lines, lines)
    assert [one for one in found if one.startswith(begins)]
    assert [one for one in found if one.startswith("failed: kill-child in training, seed 1")]
    assert len(found) == 2


def test_a_failure_that_was_mended_is_no_miss():
    lines = changed("kill-child", verdict="failed", findings=["I2: line 7 of site-1 is lost"])
    bad = next(one for one in lines if one["verdict"] == "failed")
    mends = {"mends": {name: bad[name] for name in ("commit", "seed", "trial")}, "by": "c" * 40}
    assert misses(lines, lines) != []
    assert misses(lines, [*lines, mends]) == []


@pytest.mark.parametrize("klass", BOUNDS)
def test_gaps_are_too_few_or_too_long(klass):
    lines = enough()
    slow = [one | {"gap_s": BOUNDS[klass]} if one["class"] == klass else one for one in lines]
    assert any("99th percentile" in one for one in misses(slow, slow))
    unseen = [one | {"gap_s": None} if one["class"] == klass else one for one in lines]
    assert any(f"0 gaps, {SAMPLES} are wanted" in one for one in misses(unseen, unseen))
    assert len(misses(slow, slow)) == len(misses(unseen, unseen)) == 1


def test_two_of_two_hundred_may_be_late_and_three_may_not():
    lines = [one for one in enough() if one["class"] == "crash"]
    late = [one | {"gap_s": 9.0} if number < len(lines) // 100 else one for number, one in enumerate(lines)]
    rest = [one for one in enough() if one["class"] != "crash"]
    assert misses([*late, *rest], []) == []
    later = [one | {"gap_s": 9.0} if number <= len(lines) // 100 + 1 else one for number, one in enumerate(lines)]
    assert len(misses([*later, *rest], [])) == 1


def test_the_class_of_a_kind_is_the_one_that_it_has_now():
    lines = [one | {"class": "host"} if one["kind"] == "flapping-link" else one for one in enough()]
    other = [one | {"gap_s": 60.0} if one["kind"] == "flapping-link" else one for one in lines]
    assert misses(other, other) == []


def test_a_phase_that_was_met_too_seldom_is_missed():
    lines = [one for one in enough() if (one["kind"], one["phase"]) != ("kill-agent", "closing")]
    assert misses(lines, lines) == ["kill-agent: each phase is wanted 3 times, it met closing 0"]


def test_few_trials_of_few_kinds_are_missed():
    found = misses(enough()[:30], [], kinds=[])
    assert "30 trials, 500 are wanted" in found
    assert any(one.endswith("kinds, 20 are wanted") for one in found)


def test_a_kind_that_could_not_run_is_missed_and_shown():
    reason = {"seed": 1, "trial": 9999, "kind": "clock-step", "class": "none", "verdict": "not run", "findings": []}
    lines = [one for one in enough() if one["kind"] != "clock-step"] + [reason | {"reason": "no libfaketime"}]
    assert misses(lines, lines) == ["clock-step: not run: no libfaketime"]
    assert "| `clock-step` | not run |" in table(lines, lines)


@pytest.mark.parametrize("kind", ["overseers-gone-60s", "overseers-hang-60s"])
def test_a_pause_while_no_overseer_is_there_is_missed(kind):
    lines = changed(kind, silence_s=2.6)
    assert misses(lines, lines) == [f"{kind}: 2.60 s without an acknowledgement, 2 s are allowed"]


@pytest.mark.parametrize("lacks", ["checkpoints", "compactions"])
def test_a_long_trial_has_a_checkpoint_and_a_compaction(lacks):
    kept = {"seconds": 20.1, "checkpoints": 1, "compactions": 1}
    assert misses(changed("stop-host", **kept), []) == []
    found = misses(changed("stop-host", **kept | {lacks: 0}), [])
    assert len(found) == 1
    assert f"0 {lacks}" in found[0]


def test_the_command_ends_with_1_where_a_bar_is_missed(tmp_path, capsys):
    file = tmp_path / "results.jsonl"
    for one in enough():
        append_line(file, one)
    arguments = ["--results", str(file), "--all-lines", "--check"]
    assert command.main(arguments) == 0
    assert "every bar is reached" in capsys.readouterr().out
    append_line(file, line(9999, "kill-child", "training", seconds=30.0))
    assert command.main(arguments) == 1
    assert capsys.readouterr().out.splitlines() == [
        "kill-child, seed 1, trial 9999: 30 s with 0 checkpoints and 0 compactions"
    ]


def test_quick_trials_do_not_count(tmp_path, capsys):
    file = tmp_path / "results.jsonl"
    for one in enough():
        append_line(file, one | {"quick": True})
    assert command.main(["--results", str(file), "--all-lines", "--check"]) == 1
    assert "0 trials, 500 are wanted" in capsys.readouterr().out
