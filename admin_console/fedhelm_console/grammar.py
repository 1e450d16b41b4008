"""The language of a line: shell-like words, options in any order, types from the command's signature. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedhelm.errors import UsageError
from fedhelm.output import FORMATS, Format
from fedhelm_console.registry import Command, Parameter, Registry

__all__ = ["COMMON_FLAGS", "CONFIRM", "Call", "Word", "parse", "split"]

COMMON_FLAGS = ("-o", "--output", "--timeout", "--yes")
"""Understood by every command."""

CONFIRM = "--confirm"
"""Understood by commands of grade 3."""


@dataclass(frozen=True)
class Word:
    """One word of a line, unquoted, with where it begins; ``open`` when its quote is not closed."""

    text: str
    start: int
    quoted: bool = False
    open: bool = False


@dataclass(frozen=True)
class Call:
    """A line that was understood."""

    command: Command
    positional: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    output: Format | None = None
    timeout: float | None = None
    yes: bool = False
    confirm: str | None = None


def split(line: str) -> list[Word]:
    """Cut a line into words: blanks separate, ``'...'``, ``"..."`` and a backslash keep them together.

    An open quote ends with the line and is marked, so that completion can go on there.
    """
    words: list[Word] = []
    text: list[str] = []
    start: int | None = None
    quote = ""
    quoted = False
    escape = False
    for position, char in enumerate(line):
        if start is None and not char.isspace():
            start = position
        if escape:
            text.append(char)
            escape = False
        elif char == "\\" and quote != "'":
            escape = True
        elif quote:
            quote, text = ("", text) if char == quote else (quote, [*text, char])
        elif char in "'\"":
            quote, quoted = char, True
        elif char.isspace():
            if start is not None:
                words.append(Word("".join(text), start, quoted))
            text, start, quoted = [], None, False
        else:
            text.append(char)
    if start is not None:
        words.append(Word("".join(text), start, quoted, open=bool(quote) or escape))
    return words


def parse(line: str, registry: Registry) -> Call | None:
    """Understand a line; None for an empty one or a comment.

    Raises:
        UnknownCommand: no such command.
        UsageError: wrong arguments; the hint is the command's usage.
    """
    words = split(line)
    if not words or words[0].text.startswith("#"):
        return None
    if words[-1].open:
        raise UsageError("a quote is not closed")
    name, rest = words[0].text, words[1:]
    if name.startswith("?") and len(name) > 1:
        # "?submit_job" as well as "? submit_job"
        rest = [Word(name[1:], words[0].start + 1), *rest]
        name = "?"
    return _Binder(registry.get(name)).bind(rest)


class _Binder:
    def __init__(self, command: Command) -> None:
        self._command = command
        self._plain: list[str] = []
        self._options: dict[str, Any] = {}
        self._common: dict[str, Any] = {}

    def _wrong(self, message: str) -> UsageError:
        return UsageError(f"{self._command.name}: {message}", hint=f"usage: {self._command.usage}")

    def bind(self, words: list[Word]) -> Call:
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word.quoted or not word.text.startswith("-") or word.text == "-":
                self._plain.append(word.text)
            elif word.text == "--":
                self._plain += [one.text for one in rest]
                rest = []
            else:
                self._flag(word.text, rest)
        return Call(command=self._command, positional=self._arguments(), options=self._options, **self._common)

    def _flag(self, text: str, rest: list[Word]) -> None:
        flag, equals, value = text.partition("=")
        given = value if equals else None
        if not flag.startswith("--") and len(flag) > 2 and given is None:
            # -n5, -ojson
            flag, given = flag[:2], flag[2:]
        option = self._command.option(flag)
        confirm = flag == CONFIRM and self._command.grade == 3
        if option is None and flag not in COMMON_FLAGS and not confirm:
            raise self._wrong(f"no option {flag}")
        if flag == "--yes" or (option is not None and not option.takes_value):
            if given is not None:
                raise self._wrong(f"{flag} takes no value")
            (self._common if option is None else self._options)["yes" if option is None else option.name] = True
            return
        if given is None:
            if not rest:
                raise self._wrong(f"{flag} needs a value")
            given = rest.pop(0).text
        if option is not None:
            self._options[option.name] = self._value(option, given)
        elif confirm:
            self._common["confirm"] = given
        elif flag == "--timeout":
            self._common["timeout"] = self._seconds(given)
        else:
            self._common["output"] = self._format(given)

    def _format(self, text: str) -> Format:
        for known in FORMATS:
            if text == known:
                return known
        raise self._wrong(f"-o is one of {', '.join(FORMATS)}, not {text!r}")

    def _arguments(self) -> tuple[Any, ...]:
        wanted = self._command.arguments
        values: list[Any] = []
        left = list(self._plain)
        for parameter in wanted:
            if parameter.many:
                if parameter.required and not left:
                    raise self._wrong(f"{parameter.metavar} is missing")
                values += [self._value(parameter, one) for one in left]
                left = []
            elif left:
                values.append(self._value(parameter, left.pop(0)))
            elif parameter.required:
                raise self._wrong(f"{parameter.metavar} is missing")
            else:
                break
        if left:
            raise self._wrong(f"{left[0]!r} is one argument too many")
        return tuple(values)

    def _value(self, parameter: Parameter, text: str) -> Any:
        if parameter.arg.choices and text not in parameter.arg.choices:
            raise self._wrong(f"{parameter.metavar} is one of {', '.join(parameter.arg.choices)}, not {text!r}")
        if parameter.type is int:
            if not text.isdecimal() or len(text) > 9:
                raise self._wrong(f"{parameter.metavar} is a whole number, not {text!r}")
            return int(text)
        if not text and parameter.required:
            raise self._wrong(f"{parameter.metavar} is empty")
        return text

    def _seconds(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1e9:
            raise self._wrong(f"--timeout is a number of seconds, not {text!r}")
        return value
