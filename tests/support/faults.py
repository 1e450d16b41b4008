"""Every kind of fault of the laboratory as a test: the trial that ``make faults`` runs, with the shortest freezes."""

from __future__ import annotations

import pytest

import bench.faults.__main__
from bench.faults.federations import Federations, costs
from bench.faults.kinds import KINDS
from bench.faults.trial import Spec

assert bench.faults.__main__  # imports all faults, which enters them into the table

SEED = 3


def specs(*variants):
    """One trial of each kind on these variants, its phase by turns, in the order that needs the fewest federations."""
    numbered = enumerate(sorted(KINDS.values(), key=lambda kind: kind.name))
    found = [
        Spec(SEED, number, kind, kind.phases[number % len(kind.phases)], quick=True)
        for number, kind in numbered
        if kind.variant in variants
    ]
    return sorted(found, key=costs)


def parametrized(*variants):
    return pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.kind.name) for spec in specs(*variants)])


def check(federations: Federations, spec: Spec) -> None:
    outcome = federations.run(spec)
    if outcome["verdict"] == "not run":
        pytest.skip(outcome["reason"])
    assert outcome["findings"] == [], outcome


@pytest.fixture(scope="module")
def federations(tmp_path_factory):
    """One federation after the other for a module's trials; that of a failed one stays in pytest's folder."""
    with Federations(tmp_path_factory.mktemp("faults") / "broken") as made:
        yield made
