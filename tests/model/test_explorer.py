"""The explorer itself: it finds the shortest way, reaches everything, and says when it did not."""

from __future__ import annotations

import pytest

from tests.model.explorer import explore


def jugs(state):
    """Jugs of 3 and 5 litres: fill, empty, pour."""
    three, five = state
    yield "fill 3", (3, five)
    yield "fill 5", (three, 5)
    yield "empty 3", (0, five)
    yield "empty 5", (three, 0)
    yield "3 into 5", (max(0, three + five - 5), min(5, three + five))
    yield "5 into 3", (min(3, three + five), max(0, three + five - 3))


def test_the_shortest_way_is_found():
    result = explore((0, 0), jugs, lambda state: "four litres" if 4 in state else None)
    assert result.trace == ("fill 5", "5 into 3", "empty 3", "5 into 3", "fill 5", "5 into 3")
    assert result.story().endswith("=> four litres")


def test_every_state_is_reached_once_where_nothing_is_wrong():
    result = explore(
        (0, 0), jugs, lambda _: None, {"four": lambda state: 4 in state, "nine": lambda state: sum(state) == 9}
    )
    assert (result.states, result.violation) == (16, None)
    assert result.reached == {"four": True, "nine": False}


def test_a_search_that_is_cut_short_says_so():
    with pytest.raises(RuntimeError, match="10"):
        explore(0, lambda number: [("more", number + 1)], lambda _: None, limit=10)
