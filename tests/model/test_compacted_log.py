"""Every behaviour of a log that is shortened keeps its invariants, and every rule is needed."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache

import pytest

from tests.model.compacted_log import CHECKPOINT, WRONGS, CompactedLog, Rules, Scope, newest, wrong
from tests.model.explorer import explore
from tests.model.slot_log import ACTIVE, FENCE, PUT

THREE = Scope(checkpoints=3, longest_log=7)
SILENT = Scope(silences=1)
TWICE_THE_SAME = Scope(epochs=1, names=("server1", "server1"), lives=2)
SCOPES = {
    "a silence": SILENT,
    "three checkpoints": THREE,
    "one server twice, and second lives": TWICE_THE_SAME,
}

GOALS = {
    "a ghost was made": lambda world: bool(world.ghosts),
    "the fence of a promoting server landed below the mark": lambda world: any(
        server.created and server.request.entry.kind == FENCE and server.request.slot < newest(world).low_water
        for server in world.servers
    ),
    "a contribution landed below the mark": lambda world: any(
        server.created and server.request.entry.kind == PUT and server.request.slot < newest(world).low_water
        for server in world.servers
    ),
    "a mark was made between a create and the look at it": lambda world: any(
        server.created and world.log[server.request.slot] == server.request.entry
        and server.request.slot < newest(world).low_water
        for server in world.servers
        if server.created and server.request.slot < len(world.log)
    ),
    "a successor leads a log whose beginning is gone": lambda world: (
        len({entry.epoch for entry in world.log}) > 1
        and 0 in world.deleted
        and sum(server.role == ACTIVE for server in world.servers) == 2
    ),
    "a checkpoint's record landed below the mark": lambda world: any(
        one.entry.kind == CHECKPOINT for one in world.ghosts
    ),
    "a second mark was made": lambda world: len(world.marks) > 1,
    "a request without an answer became a ghost": lambda world: any(
        ghost.entry == server.request.entry and not server.created
        for ghost in world.ghosts
        for server in world.servers
        if server.request
    ),
}  # fmt: skip


def search(rules, scope, is_wrong=wrong, goals=None):
    model = CompactedLog(rules, scope)
    return explore(model.initial(), model.steps, is_wrong, goals)


@cache
def whole(scope):
    return search(Rules(), scope, goals=GOALS)


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
def test_the_protocol_holds(scope):
    result = whole(scope)
    assert result.violation is None, result.story()
    assert result.states > 5_000


def test_the_model_reaches_what_it_is_about():
    reached = [whole(scope).reached for scope in (SILENT, THREE)]
    assert {name: any(one[name] for one in reached) for name in GOALS} == dict.fromkeys(GOALS, True)


LOST = "an acknowledged contribution is lost"
OTHER_VIEW = "a server holds for the log what is not in it"
UNREADABLE = "the log cannot be read any more"
BACKWARDS = "the epoch went backwards"
TWO_WRITERS = "two writers in one epoch"
TWICE = "a contribution was recorded twice"
MARK_BACK = "the mark went back"


@pytest.mark.parametrize(
    ("broken", "scope", "damage"),
    [
        ("exclusive_create", Scope(), LOST),
        ("mark_after_create", Scope(), OTHER_VIEW),
        ("mark_after_create", Scope(contributions="ab"), LOST),
        ("mark_after_own", SILENT, OTHER_VIEW),
        ("mark_after_read", SILENT, OTHER_VIEW),
        ("marks_numbered", THREE, UNREADABLE),
        ("marks_rise", THREE, MARK_BACK),
        ("mark_before_deletion", Scope(), UNREADABLE),
        ("mark_at_older", Scope(), UNREADABLE),
        ("blob_before_record sound_before_mark", Scope(), UNREADABLE),
        ("blobs_by_mark", THREE, UNREADABLE),
        ("decide_again", Scope(), BACKWARDS),
        ("decide_again", Scope(epochs=1), TWO_WRITERS),
        ("decide_again", Scope(contributions="ab"), TWICE),
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
