"""Every behaviour of the log protocol keeps its invariants, and every rule is needed."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from tests.model.explorer import explore
from tests.model.slot_log import ACTIVE, CLOSE, FENCE, FENCED, PUT, WRONGS, Rules, Scope, SlotLog, recorded, wrong

SCOPES = {
    "two contributions": Scope(),
    "many silences": Scope(contributions="a", silences=3),
    "three epochs": Scope(contributions="a", epochs=3),
    "one server twice": Scope(contributions="a", names=("server1", "server1")),
    "second lives": Scope(contributions="a", lives=2, silences=1),
    "three servers": Scope(contributions="a", names=("server1", "server2", "server3"), silences=1),
}

GOALS = {
    "a round was closed after a failover": lambda world: (
        [entry.kind for entry in world.log if entry.kind != PUT] == [FENCE, FENCE, CLOSE] and recorded(world.log)
    ),
    "a contribution was acknowledged by each of two servers": lambda world: (
        world.acknowledged and len({entry.author for entry in world.log if entry.kind == PUT}) == 2
    ),
    "a server serves that lost its lead, unknowing": lambda world: (
        sum(server.role == ACTIVE for server in world.servers) > 1
    ),
    "a server knows that it is fenced": lambda world: any(server.role == FENCED for server in world.servers),
    "a request without an answer is still under way": lambda world: world.under_way,
}


def search(rules: Rules, scope: Scope, is_wrong=wrong, goals=None):
    model = SlotLog(rules, scope)
    return explore(model.initial(), model.steps, is_wrong, goals)


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
def test_the_protocol_holds(scope):
    result = search(Rules(), scope)
    assert result.violation is None, result.story()
    assert result.states > 5_000


def test_the_model_reaches_what_it_is_about():
    assert search(Rules(), Scope(silences=1), goals=GOALS).reached == dict.fromkeys(GOALS, True)


LOST = "an acknowledged contribution is lost"
BACKWARDS = "the epoch went backwards"
TWO_WRITERS = "two writers in one epoch"
TWICE = "a contribution was recorded twice"
OVERTAKEN = "a server wrote after its successor had opened for service"
OTHER_SET = "a round was closed with another set than was recorded"
CLOSED_TWICE = "a round was closed twice"
REFUSED = "a server refused because of its own fence"
TWO_FENCES = "two fences in one epoch"
TWICE_THE_SAME = ("server1", "server1")


@pytest.mark.parametrize(
    ("broken", "scope", "damage"),
    [
        ("exclusive_create", Scope(), LOST),
        ("exclusive_create", Scope(epochs=1), TWO_WRITERS),
        ("fence", Scope(), OVERTAKEN),
        ("fence", Scope(epochs=1), TWO_WRITERS),
        ("epoch_check", Scope(), BACKWARDS),
        ("epoch_check", Scope(), OVERTAKEN),
        ("equal_epoch_fences", Scope(epochs=1), TWO_WRITERS),
        ("incarnation_counts", Scope(epochs=1, names=TWICE_THE_SAME), TWO_WRITERS),
        ("incarnation_counts", Scope(contributions="a", lives=2), TWO_WRITERS),
        ("decide_again", Scope(), BACKWARDS),
        ("decide_again", Scope(), TWICE),
        ("decide_again", Scope(), OTHER_SET),
        ("decide_again", Scope(contributions="a"), CLOSED_TWICE),
        ("know_own_record", Scope(), REFUSED),
        ("know_own_record decide_again", Scope(epochs=1), TWO_FENCES),
        ("know_own_record decide_again", Scope(epochs=1, names=("server1",)), TWICE),
        ("know_own_record decide_again", Scope(epochs=1, names=("server1",)), CLOSED_TWICE),
        ("answer_before_ack", Scope(), LOST),
        ("answer_before_ack", Scope(epochs=1, names=("server1",)), LOST),
        ("fence epoch_check decide_again", Scope(), TWICE),
    ],
)
def test_without_a_rule_there_is_damage(broken, scope, damage):
    rules = replace(Rules(), **dict.fromkeys(broken.split(), False))
    result = search(rules, scope, lambda world: damage if WRONGS[damage](world) else None)
    assert result.violation == damage
    assert result.trace


def test_every_rule_is_broken_by_a_mutant_and_every_damage_can_be_seen():
    (cases,) = (mark.args[1] for mark in test_without_a_rule_there_is_damage.pytestmark)
    assert {rule for broken, _, _ in cases for rule in broken.split()} == {rule.name for rule in fields(Rules)}
    assert {damage for _, _, damage in cases} == set(WRONGS)
