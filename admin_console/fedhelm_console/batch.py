"""Run lines: one result or one error each, on stdout; everything else on stderr."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fedhelm.errors import ExitStatus
from fedhelm.output import Format, emit, format_of, guarded
from fedhelm_console.context import Console
from fedhelm_console.grammar import parse, split

__all__ = ["Outcome", "run_line", "run_lines"]


@dataclass(frozen=True)
class Outcome:
    """A line's exit status, and whether the console is to be left."""

    status: int
    leave: bool = False


def run_line(console: Console, line: str, fmt: Format) -> Outcome:
    """Run one line and print what comes of it.

    Args:
        console: to run it in.
        line: a command.
        fmt: the format where the line itself does not say another.
    """
    words = [word.text for word in split(line)]
    # Also for a line that does not parse: its error is printed in the format that it asks for.
    said = format_of(words) if any(word.startswith(("-o", "--output")) for word in words) else fmt
    leave = False

    def body() -> int:
        nonlocal leave
        call = parse(line, console.registry)
        if call is None:
            return ExitStatus.OK
        bound = console.for_call(call)
        if said != "table":
            bound = replace(bound, live=None)
        if call.command.grade:
            bound.check_confirmable(call.command.name, call.command.grade)
        try:
            result = call.command.run(bound, *call.positional, **call.options)
        finally:
            if console.settle is not None:
                console.settle()
        leave = result.leave
        emit(result.data, said, result.human)
        return result.status

    return Outcome(guarded(body, said), leave)


def run_lines(console: Console, lines: Iterable[str], fmt: Format, *, keep_going: bool = False) -> int:
    """Run one line after the other; stop at the first failure, return its exit status.

    Empty lines and those that begin with ``#`` are skipped.

    Args:
        console: to run them in.
        lines: the commands.
        fmt: table or json.
        keep_going: run the rest after a failure, too; the first failure's status is still returned.
    """
    first = int(ExitStatus.OK)
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        outcome = run_line(console, line.rstrip("\n"), fmt)
        first = first or outcome.status
        if outcome.leave or outcome.status == ExitStatus.INTERRUPTED or (outcome.status and not keep_going):
            break
    return first
