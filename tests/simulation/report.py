"""Runs seeds and says what came of them."""

from __future__ import annotations

import sys
import time
from collections import defaultdict

from tests.simulation.federation import simulate

__all__ = ["Tally", "run_range", "run_seed"]


class Tally:
    """Counts over many seeds."""

    def __init__(self):
        self.seeds = 0
        self.failed = []
        self.virtual_s = 0.0
        self.fences = 0
        self.acks = 0
        self.gaps = defaultdict(list)
        self.service = []
        self.began = time.monotonic()

    def add(self, outcome):
        self.seeds += 1
        self.virtual_s += outcome.virtual_s
        self.fences += outcome.facts.get("fences", 0)
        self.acks += outcome.facts.get("acks", 0)
        if outcome.facts.get("gap") is not None:
            self.gaps[outcome.facts["fault"]].append(outcome.facts["gap"])
        if "service_s" in outcome.facts:
            self.service.append(outcome.facts["service_s"])
        if outcome.failures:
            self.failed.append(outcome)

    def describe(self):
        seconds = time.monotonic() - self.began
        lines = [
            (
                f"{self.seeds} seeds in {seconds:.1f} s ({self.virtual_s / 3600:.2f} h of virtual time): "
                f"{self.fences} fences, {self.acks} receipts; {len(self.failed)} seeds failed"
            )
        ]
        if self.service:
            lines.append(f"service after the last heal: longest {max(self.service):.2f} s")
        for fault, gaps in sorted(self.gaps.items()):
            lines.append(
                f"  {fault:42} n={len(gaps):4}  median {sorted(gaps)[len(gaps) // 2]:5.2f}  max {max(gaps):5.2f}"
            )
        return "\n".join(lines)


def tell(outcome):
    sys.stdout.write(f"seed {outcome.seed} ({outcome.plan}) FAILS\n")
    for failure in outcome.failures[:5]:
        sys.stdout.write(f"    {failure}\n")
    sys.stdout.write(f"    replay: .venv/bin/python -m tests.simulation {outcome.seed} -v\n")
    sys.stdout.flush()


def run_seed(seed, kind, *, verbose):
    outcome = simulate(seed, keep=verbose, kind=kind)
    for line in outcome.trace:
        sys.stdout.write(line + "\n")
    sys.stdout.write(
        f"seed {seed}: {outcome.plan}; {outcome.virtual_s:.0f} s, {outcome.records} records, {outcome.steps} steps, "
        f"trace {outcome.digest[:16]}\n{outcome.facts}\n"
    )
    for failure in outcome.failures:
        sys.stdout.write(f"FAILS {failure}\n")
    return 1 if outcome.failures else 0


def run_range(first, last, kind, end, *, quiet):
    tally = Tally()
    for seed in range(first, last + 1):
        if end is not None and time.monotonic() >= end:
            break
        outcome = simulate(seed, kind=kind)
        tally.add(outcome)
        if outcome.failures:
            if quiet:
                sys.stdout.write(f"seed {seed}: {outcome.failures[0]}\n")
                sys.stdout.flush()
            else:
                tell(outcome)
    sys.stdout.write(tally.describe() + "\n")
    return 1 if tally.failed else 0
