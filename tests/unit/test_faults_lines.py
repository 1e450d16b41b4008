"""Results of the fault laboratory: resumed, planned, shown; a failure never goes away."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

import bench.faults.__main__ as command
from bench.faults.kinds import BOUNDS, CLASSES, KINDS
from bench.faults.lines import PER_PHASE, SAMPLES, append_line, deck, done_trials, missing, read_lines
from bench.faults.phases import PHASES
from bench.faults.table import BEGIN, END, percentile, table, write_readme


def line(trial=0, kind="kill-child", phase="training", gap=0.1, **more):
    return {
        "commit": "a" * 40,
        "dirty": False,
        "machine": "A CPU, 2 cores",
        "seed": 1,
        "trial": trial,
        "kind": kind,
        "class": KINDS[kind].klass,
        "phase": phase,
        "gap_s": gap,
        "verdict": "ok",
        "findings": [],
        "load": 1.0,
        **more,
    }


def test_every_kind_has_a_class_and_phases():
    assert len(KINDS) >= 20
    for kind in KINDS.values():
        assert kind.klass in CLASSES
        assert set(kind.phases) <= set(PHASES)
        assert kind.fault.__doc__, kind.name


def test_lines_accumulate_and_one_that_was_cut_off_does_no_harm(tmp_path):
    file = tmp_path / "results.jsonl"
    assert read_lines(file) == []
    for trial in range(2):
        append_line(file, line(trial))
    with file.open("a") as half:
        half.write('{"seed": 1, "tri')
    assert [one["trial"] for one in read_lines(file)] == [0, 1]


def test_only_trials_of_the_code_as_it_is_are_skipped():
    lines = [line(0), line(1, dirty=True), {"mends": {"commit": "b", "seed": 1, "trial": 2}, "by": "c"}]
    assert done_trials(lines, lambda one: not one["dirty"]) == {(1, 0)}


def test_a_deck_follows_from_its_seed_and_holds_every_kind_in_every_phase():
    kinds = list(KINDS.values())
    size = sum(kind.weight * len(kind.phases) for kind in kinds)
    first = list(itertools.islice(deck(1, kinds), 2 * size))
    assert first == list(itertools.islice(deck(1, kinds), 2 * size))
    assert first != list(itertools.islice(deck(2, kinds), 2 * size))
    assert Counter((kind.name, phase) for kind, phase in first[:size]) == {
        (kind.name, phase): kind.weight for kind in kinds for phase in kind.phases
    }


def test_the_plan_counts_phases_that_were_met_and_gaps_that_were_seen():
    kinds = [KINDS["kill-agent"], KINDS["kill-child"]]
    before = missing([], kinds)
    assert before["kill-agent", "training"] == PER_PHASE
    assert sum(n for (name, _), n in before.items() if name == "kill-child") == SAMPLES
    met = [line(k, "kill-agent", "training", phase_wanted="closing") for k in range(2)]
    assert missing(met, kinds)["kill-agent", "training"] == PER_PHASE - 2
    gaps = [line(k, phase=PHASES[k % 5]) for k in range(SAMPLES)]
    assert not [name for name, _ in missing(gaps, kinds) if name == "kill-child"]
    unseen = [line(k, phase=PHASES[k % 5], gap=None) for k in range(SAMPLES)]
    assert sum(n for (name, _), n in missing(unseen, kinds).items() if name == "kill-child") == SAMPLES


def test_percentile_is_a_value_that_was_measured():
    assert percentile([float(n) for n in range(1, 201)], 99) == 198
    assert percentile([3.0], 99) == 3.0


def test_table_has_classes_kinds_and_phases():
    lines = [
        line(0, gap=0.2),
        line(1, phase="closing", gap=0.4),
        line(2, "kill-host", gap=3.0),
        line(3, "store-full", verdict="not run", reason="mounting needs root"),
    ]
    text = table(lines, lines)
    assert "3 trials of 2 kinds, 0 failed" in text
    assert "| process crash | 2 | 0.30 s | 0.40 s | 0.40 s | 1 s |" in text
    assert "| `kill-child` | 2 | 0 | 0 | 0 | 0 | 1/0/0/0/1 | 0.30 / 0.40 s |" in text
    assert "* `store-full`: mounting needs root" in text
    assert set(BOUNDS) < set(CLASSES)


@pytest.mark.parametrize(
    ("finding", "column"),
    [
        ("I2: line 7 of site-1 is lost", 0),
        ("I7: accepted job x is not in the log", 0),
        ("I3: contribution (1,) is recorded twice, again in slot 4", 1),
        ("I1: epoch 3 has two writers: a and b in slot 9", 2),
        ("site-1 trained round 2 again, whose result it had finished", 3),
    ],
)
def test_findings_are_counted_by_what_they_cost(finding, column):
    bad = line(0, verdict="failed", findings=[finding])
    row = next(one for one in table([bad], [bad]).splitlines() if one.startswith("| `kill-child`"))
    assert [cell.strip() for cell in row.split("|")][3:7] == ["1" if n == column else "0" for n in range(4)]


def test_a_failure_stays_listed_with_the_commit_that_mended_it():
    bad = line(4, verdict="failed", findings=["I2: line 7 of site-1 is lost"])
    assert "| open |" in table([line(5)], [bad, line(5)])
    mend = {"mends": {"commit": "a" * 40, "seed": 1, "trial": 4}, "by": "c" * 40}
    text = table([line(5)], [bad, line(5), mend])
    assert "| I2: line 7 of site-1 is lost | cccccccccccc |" in text


def test_readme_gets_the_table_between_its_markers(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_readme(page, "new")
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the lines"):
        write_readme(page, "new")


def test_the_command_shows_plan_and_table_and_notes_what_was_mended(tmp_path, capsys):
    file = tmp_path / "results.jsonl"
    append_line(file, line(0))
    common = ["--results", str(file), "--all-lines"]
    assert command.main([*common, "--plan", "--kinds", "kill-agent"]) == 0
    assert "kill-agent" in capsys.readouterr().out
    assert command.main([*common, "--table"]) == 0
    assert "1 trials of 1 kinds" in capsys.readouterr().out
    assert command.main([*common, "--mended", "a" * 40, "1", "0", "b" * 40]) == 0
    assert json.loads(file.read_text().splitlines()[-1])["by"] == "b" * 40


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="unknown kinds nonsense"):
        command.main(["--results", str(tmp_path / "r"), "--kinds", "nonsense", "--plan"])
