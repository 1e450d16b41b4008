from itertools import product

import pytest

from fedhelm_server.role import TRANSITIONS, WRITERS, IllegalTransitionError, Role, RoleEvent, transition


def run(*events, start=Role.STANDBY):
    role = start
    for event in events:
        role = transition(role, RoleEvent(event))
    return role


@pytest.mark.parametrize(
    ("script", "end"),
    [
        ("grant", "PROMOTING"),
        ("grant fenced_in", "ACTIVE"),
        ("grant refused", "STANDBY"),
        ("grant refused grant fenced_in", "ACTIVE"),
        ("grant foreign_fence", "FENCED"),
        ("grant fenced_in drain", "DRAINING"),
        ("grant fenced_in drain resume", "ACTIVE"),
        ("grant fenced_in drain foreign_fence", "FENCED"),
        ("grant fenced_in drain unleased", "UNLEASED"),
        ("grant fenced_in unleased", "UNLEASED"),
        ("grant fenced_in unleased leased", "ACTIVE"),
        ("grant fenced_in unleased foreign_fence", "FENCED"),
        ("grant fenced_in store_lost", "READONLY"),
        ("grant fenced_in store_lost store_back", "UNLEASED"),
        ("grant fenced_in store_lost store_back leased", "ACTIVE"),
        ("grant fenced_in unleased store_lost leased", "READONLY"),
        ("leased unleased foreign_fence drain resume store_lost store_back", "STANDBY"),
        ("grant fenced_in foreign_fence leased resume unleased store_back drain", "FENCED"),
    ],
)
def test_a_script_of_events_leads_to_the_role(script, end):
    assert run(*script.split()) is Role(end)


@pytest.mark.parametrize(
    "script",
    ["fenced_in", "grant fenced_in grant", "grant fenced_in unleased grant", "grant fenced_in fenced_in",
     "grant fenced_in foreign_fence grant", "grant fenced_in refused"],
)  # fmt: skip
def test_what_no_race_explains_is_refused(script):
    with pytest.raises(IllegalTransitionError):
        run(*script.split())


def test_active_at_most_once_over_every_sequence_of_events():
    # Breadth-first over (role, how often a fence of its own was appended): the whole reachable space.
    seen, frontier = set(), {(Role.STANDBY, 0)}
    while frontier:
        seen |= frontier
        reached = set()
        for (role, fences), event in product(frontier, RoleEvent):
            try:
                after = transition(role, event)
            except IllegalTransitionError:
                continue
            reached.add((after, fences + (event is RoleEvent.FENCED_IN)))
        frontier = reached - seen
    assert max(fences for _, fences in seen) == 1
    assert all(fences == 1 for role, fences in seen if role in WRITERS)
    assert all(fences == 0 for role, fences in seen if role is Role.STANDBY)


def test_a_fenced_child_never_writes_again():
    assert not [pair for pair in TRANSITIONS if pair[0] is Role.FENCED]
