"""What may come next on a line: from the command's signature and the last view. Pure but for local paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedhelm.output import FORMATS
from fedhelm_console.grammar import COMMON_FLAGS, CONFIRM, Word, split
from fedhelm_console.registry import Command, Parameter, Registry
from fedhelm_console.render import duration

if TYPE_CHECKING:
    from fedhelm_console.view import View

__all__ = ["Suggestion", "rank", "suggest"]

_MOST_PATHS = 200


@dataclass(frozen=True)
class Suggestion:
    """A word for the place of the last one: the text to insert, its offset from the cursor (<= 0), a side note."""

    text: str
    offset: int
    meta: str = ""
    display: str = ""


def rank(typed: str, word: str) -> int | None:
    """Return how well a word answers to what was typed, 0 best; None not at all.

    Best is the same beginning, then a part, then the letters in order (``lj`` for ``list_jobs``). Hyphens and dots are
    letters like others.
    """
    low, whole = typed.lower(), word.lower()
    if whole.startswith(low):
        return 0
    if low in whole:
        return 1
    at = -1
    for char in low:
        at = whole.find(char, at + 1)
        if at < 0:
            return None
    return 2


def _quoted(text: str) -> str:
    if not any(char in text for char in " \t'\"\\#"):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _ranked(typed: str, offset: int, words: Iterable[tuple[str, str]]) -> list[Suggestion]:
    found = [(score, word, meta) for word, meta in words if (score := rank(typed, word)) is not None]
    if any(score == 0 for score, _, _ in found):
        # Letters in order are for when nothing better answers.
        found = [one for one in found if one[0] < 2]
    found.sort(key=lambda one: one[0])
    return [Suggestion(_quoted(word), offset, meta, word) for _, word, meta in found]


def _jobs(parameter: Parameter, view: View) -> Iterator[tuple[str, str]]:
    for job in view.jobs:
        if parameter.arg.kind == "running" and job.finished:
            continue
        if parameter.arg.kind == "finished" and not job.finished:
            continue
        yield job.job_id, f"{job.name} {job.status} {duration(job.duration_s)}"
    yield "@last", "the last job"
    if parameter.arg.kind != "finished":
        yield "@running", "the only job that runs"
    if parameter.arg.kind != "running":
        yield "@failed", "the only job that has failed"


def _paths(typed: str, offset: int, roots: Iterable[Path], *, files: bool = False) -> list[Suggestion]:
    head, slash, tail = typed.rpartition("/")
    given = Path(head + slash).expanduser() if slash else Path()
    places = [given] if given.is_absolute() else [root / given for root in roots]
    found: dict[str, Suggestion] = {}
    for place in places:
        try:
            entries = sorted(place.iterdir())[:_MOST_PATHS]
        except OSError:
            continue
        for entry in entries:
            hidden = entry.name.startswith(".") and not tail.startswith(".")
            if hidden or not entry.name.lower().startswith(tail.lower()):
                continue
            if not entry.is_dir():
                if files:
                    text = f"{head}{slash}{entry.name}"
                    found.setdefault(text, Suggestion(_quoted(text), offset, "", entry.name))
                continue
            text = f"{head}{slash}{entry.name}/"
            meta = "job" if (entry / "job.yaml").is_file() else ""
            found.setdefault(text, Suggestion(_quoted(text), offset, meta, f"{entry.name}/"))
    return list(found.values())


def _values(parameter: Parameter, registry: Registry, view: View) -> Iterable[tuple[str, str]]:
    kind = parameter.arg.kind
    if kind in ("job", "running", "finished"):
        return _jobs(parameter, view)
    if kind == "server":
        return ((server.name, server.state) for server in view.servers)
    if kind == "member":
        members = [(server.name, server.state) for server in view.servers]
        return [*members, *((name, "site") for name in view.site_names), ("@ALL", "every site")]
    if kind == "command":
        return ((command.name, command.summary) for command in registry)
    return ((choice, "") for choice in parameter.arg.choices)


def _expected(command: Command, words: list[Word]) -> tuple[Parameter | None, str | None]:
    """Walk over the finished words: the argument that comes next, and the flag that still wants its value."""
    wanted = list(command.arguments)
    pending: str | None = None
    for word in words:
        if pending is not None:
            pending = None
        elif word.text.startswith("-") and not word.quoted:
            option = command.option(word.text)
            if (option is not None and option.takes_value) or word.text in ("-o", "--output", "--timeout", CONFIRM):
                pending = word.text
        elif wanted and not wanted[0].many:
            wanted.pop(0)
    return (wanted[0] if wanted else None), pending


def suggest(text: str, registry: Registry, view: View, roots: Callable[[], Iterable[Path]]) -> list[Suggestion]:
    """Return what may stand at the cursor.

    Args:
        text: the line up to the cursor.
        registry: the commands.
        view: jobs and servers.
        roots: folders in which a relative path is looked up.
    """
    words = split(text)
    typing = bool(words) and (words[-1].open or not text[-1].isspace())
    current = words.pop() if typing else Word("", len(text))
    offset = current.start - len(text)
    if not words:
        help_of = current.text.startswith("?") and len(current.text) > 1
        typed, offset = (current.text[1:], offset + 1) if help_of else (current.text, offset)
        return _ranked(typed, offset, ((one.name, one.summary) for one in registry))
    command = registry.find(words[0].text)
    return [] if command is None else _inside(command, words[1:], current, offset, (registry, view, roots))


def _inside(
    command: Command,
    words: list[Word],
    current: Word,
    offset: int,
    known: tuple[Registry, View, Callable[[], Iterable[Path]]],
) -> list[Suggestion]:
    """Return what may stand at the cursor after a command's name."""
    registry, view, roots = known
    argument, pending = _expected(command, words)
    if pending is None and current.text.startswith("-") and not current.quoted:
        flags = [(flag, one.arg.help) for one in command.options for flag in one.arg.flags]
        flags += [(flag, "") for flag in (*COMMON_FLAGS, *([CONFIRM] if command.grade == 3 else []))]
        return _ranked(current.text, offset, (one for one in flags if one[0].startswith("--")))
    if pending in ("-o", "--output"):
        return _ranked(current.text, offset, ((one, "") for one in FORMATS))
    wanted = argument if pending is None else command.option(pending)
    if wanted is None:
        return []
    if wanted.arg.kind in ("path", "file"):
        return _paths(current.text, offset, roots(), files=wanted.arg.kind == "file")
    return _ranked(current.text, offset, _values(wanted, registry, view))
