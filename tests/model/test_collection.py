"""No behaviour of collectors, sleepers and late uploads takes a blob away that is needed; and every rule is needed."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from tests.model.collection import CLOSE, Collection, Entry, Rules, World, lost_blob
from tests.model.explorer import explore

LOST = "a blob that is needed is gone"
GOALS = {
    "a server sleeps with a deletion that it decided on": lambda world: any(
        server.deleting == 0 and len(world.log) > 2 for server in world.servers
    ),
    "an upload came after its owner was closed": lambda world: (
        Entry(CLOSE, 0) in world.log and any(0 in one.uploaded and one.read == 0 for one in world.servers)
    ),
    "all rounds are closed and nothing is left": lambda world: (
        Entry(CLOSE, 1) in world.log and not world.blobs and all(one.uploaded for one in world.servers)
    ),
}


def search(rules, goals=None):
    model = Collection(rules)

    def wrong(world):
        return LOST if any(lost_blob(world, model.owner(number), number) for number in range(2)) else None

    return explore(World(), model.steps, wrong, goals)


def test_nothing_that_is_needed_is_collected():
    result = search(Rules(), GOALS)
    assert result.violation is None, result.story()
    assert result.states > 1_000
    assert result.reached == dict.fromkeys(GOALS, True)


@pytest.mark.parametrize("rule", [rule.name for rule in fields(Rules)])
def test_without_a_rule_something_is(rule):
    result = search(replace(Rules(), **{rule: False}))
    assert result.violation == LOST
    assert result.trace
