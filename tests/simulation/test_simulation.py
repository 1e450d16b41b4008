"""Many seeds of the whole federation, and the mutants that it must notice (docs/ha.md, section 9).

The seeds run in a process of their own: with the hash seed that a replay from the command line has, too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.federation import simulate
from tests.simulation.mutants import MUTANTS

ROOT = Path(__file__).parents[2]
WAN_SEED = 32
ENOUGH = 15  # a machine so slow that it gets no further shows nothing

pytestmark = pytest.mark.timeout(300)


def run(*arguments, limit):
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=limit, check=False)


def test_a_printed_seed_replays():
    first, second = (run("12", "-v", limit=60) for _ in range(2))
    assert first.stdout == second.stdout
    assert re.search(r"trace [0-9a-f]{16}", first.stdout)
    assert run("13", limit=60).stdout != first.stdout


def test_a_seed_at_the_times_of_wan_replays():
    first, second = simulate(WAN_SEED), simulate(WAN_SEED)
    assert ", wan: " in first.plan
    assert (first.digest, first.failures) == (second.digest, ())


def test_a_seed_is_the_same_with_and_without_its_trace():
    assert simulate(14, keep=True).digest == simulate(14).digest


def found_wanting(federation, kind, first):
    """The first seed, of 60, whose run breaks a promise."""
    for seed in range(first, first + 60):
        outcome = simulate(seed, kind=kind, federation=federation)
        if outcome.failures:
            return outcome
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_noticed(name):
    federation, kind, first = MUTANTS[name]
    outcome = found_wanting(federation, kind, first)
    assert outcome is not None
    # The rule, and not the seed, is what breaks the promise.
    assert simulate(outcome.seed, kind=kind).failures == ()


def test_300_seeds_or_60_seconds():
    done = run("--seeds", "1..300", "--minutes", "1", limit=115)
    told = re.search(r"^(\d+) seeds in", done.stdout, re.MULTILINE)
    sys.stdout.write(done.stdout)
    assert told is not None, done.stderr
    assert done.returncode == 0, done.stdout
    assert int(told[1]) >= ENOUGH, f"only {told[1]} seeds could be run in a minute"


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_20_000_seeds():
    done = run("--seeds", "1..20000", "--quiet", limit=6 * 3600 - 60)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout
