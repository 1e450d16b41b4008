"""An exhaustive search over all behaviours of a small protocol.

A model is an initial state, a function that yields every step possible in a state, and a function that says what is
wrong with a state. States are hashable values. The search is breadth first, so a counterexample is a shortest one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)


@dataclass(frozen=True)
class Exploration(Generic[State]):
    """What the search found.

    Attributes:
        states: How many states were reached.
        violation: What is wrong with the first bad state; None if there is none.
        trace: The steps that lead there.
        reached: For every goal whether some state satisfies it: a model that reaches nothing proves nothing.
    """

    states: int
    violation: str | None = None
    trace: tuple[str, ...] = ()
    reached: Mapping[str, bool] = field(default_factory=dict)

    def story(self) -> str:
        """The counterexample, a step a line."""
        return "\n".join([*self.trace, f"=> {self.violation}"])


def explore(
    initial: State,
    steps: Callable[[State], Iterable[tuple[str, State]]],
    wrong: Callable[[State], str | None],
    goals: Mapping[str, Callable[[State], bool]] | None = None,
    limit: int = 2_000_000,
) -> Exploration[State]:
    """Search every state that can be reached from ``initial``.

    Args:
        initial: Where it begins.
        steps: Every (label, next state) of a state.
        wrong: What is wrong with a state, None if nothing is.
        goals: Interesting things that should be possible.
        limit: More states than this are not "exhaustive": RuntimeError.
    """
    came_from: dict[State, tuple[State, str] | None] = {initial: None}
    queue = deque([initial])
    reached = dict.fromkeys(goals or {}, False)
    while queue:
        state = queue.popleft()
        for name, is_reached in (goals or {}).items():
            reached[name] = reached[name] or bool(is_reached(state))
        if violation := wrong(state):
            return Exploration(len(came_from), violation, _trace(came_from, state), reached)
        for label, following in steps(state):
            if following not in came_from:
                came_from[following] = (state, label)
                queue.append(following)
        if len(came_from) > limit:
            raise RuntimeError(f"more than {limit} states")
    return Exploration(len(came_from), reached=reached)


def _trace(came_from: Mapping[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    labels = []
    while (step := came_from[state]) is not None:
        state, label = step
        labels.append(label)
    return tuple(reversed(labels))
