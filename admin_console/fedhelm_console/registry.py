"""Commands as typed functions: parsing, completion, help and confirmation follow from a signature and its metadata."""

from __future__ import annotations

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from fedhelm.errors import ExitStatus, UnknownCommand

__all__ = ["Arg", "Command", "Grade", "Kind", "Parameter", "Registry", "Result"]

_OUTSIDE = frozenset({"audit", "authz", "check", "kit", "pki", "provision"})
"""Commands about kits and files on a disk: `fedhelm` has them, and whoever sits here may look for them."""

Kind = Literal[
    "job", "running", "finished", "server", "member", "path", "file", "command", "status", "text", "number", "part"
]
"""What an argument names; decides what completion offers."""

Grade = Literal[0, 1, 2, 3]
"""How a command is confirmed: not at all, by y/N, by typing the name of what it touches, by typing the project's name
and how much of it goes; ``--yes`` is an answer to the first two only."""


@dataclass(frozen=True)
class Arg:
    """Metadata of one parameter, put into ``Annotated``. Keyword-only parameters with ``flags`` are options."""

    kind: Kind
    help: str = ""
    flags: tuple[str, ...] = ()
    metavar: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a command returns.

    ``data`` is what JSON shows, ``human`` the text for people; ``status`` is the exit status of a command that did its
    work and has bad news; ``leave`` ends the console.
    """

    data: Any = None
    human: str | Callable[[], str] = ""
    status: ExitStatus = ExitStatus.OK
    leave: bool = False


@dataclass(frozen=True)
class Parameter:
    """One argument or option of a command, as read from its signature."""

    name: str
    arg: Arg
    type: type
    required: bool
    many: bool

    @property
    def option(self) -> bool:
        """Given by a flag, not by its place."""
        return bool(self.arg.flags)

    @property
    def takes_value(self) -> bool:
        """False for a switch."""
        return self.type is not bool

    @property
    def metavar(self) -> str:
        """How help calls the value."""
        return self.arg.metavar or self.name.upper().replace("_", "-")

    @property
    def usage(self) -> str:
        """How the usage line shows it."""
        if self.option:
            return f"[{self.arg.flags[0]}{' ' + self.metavar if self.takes_value else ''}]"
        text = self.metavar + ("..." if self.many else "")
        return text if self.required else f"[{text}]"


@dataclass(frozen=True)
class Command:
    """One command of the console."""

    name: str
    run: Callable[..., Result]
    summary: str
    examples: tuple[str, str]
    aliases: tuple[str, ...] = ()
    grade: Grade = 0
    errors: tuple[str, ...] = field(default=())

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Arguments and options, read from the signature when they are first needed."""
        hints = typing.get_type_hints(self.run, include_extras=True)
        found = list(inspect.signature(self.run).parameters.values())[1:]
        return tuple(_parameter(one, hints[one.name]) for one in found)

    @property
    def arguments(self) -> tuple[Parameter, ...]:
        """Those given by their place."""
        return tuple(one for one in self.parameters if not one.option)

    @property
    def options(self) -> tuple[Parameter, ...]:
        """Those given by a flag."""
        return tuple(one for one in self.parameters if one.option)

    @property
    def usage(self) -> str:
        """The usage line."""
        return " ".join([self.name, *(one.usage for one in self.arguments), *(one.usage for one in self.options)])

    def option(self, flag: str) -> Parameter | None:
        """Return the option with this flag."""
        return next((one for one in self.options if flag in one.arg.flags), None)


def _parameter(parameter: inspect.Parameter, hint: Any) -> Parameter:
    value, *metadata = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    arg = next(one for one in metadata if isinstance(one, Arg))
    if isinstance(value, types.UnionType):
        value = next(one for one in typing.get_args(value) if one is not type(None))
    many = parameter.kind is inspect.Parameter.VAR_POSITIONAL
    return Parameter(
        name=parameter.name,
        arg=arg,
        type=value,
        required=parameter.default is inspect.Parameter.empty and (not many or "at least one" in arg.help),
        many=many,
    )


class Registry:
    """The commands by name and alias."""

    def __init__(self, commands: Iterable[Command]) -> None:
        self._commands = tuple(commands)
        self._by_name = {name: one for one in self._commands for name in (one.name, *one.aliases)}

    def __iter__(self) -> Iterator[Command]:
        return iter(self._commands)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name and alias."""
        return tuple(self._by_name)

    def find(self, name: str) -> Command | None:
        """Return the command of that name or alias."""
        return self._by_name.get(name)

    def get(self, name: str) -> Command:
        """Return the command of that name or alias.

        Raises:
            UnknownCommand: there is none; the hint proposes the nearest. Nothing is ever run instead.
        """
        if (command := self.find(name)) is not None:
            return command
        near = difflib.get_close_matches(name, self.names, n=2, cutoff=0.7)
        if name in _OUTSIDE:
            raise UnknownCommand(f"no command {name!r} in the console", hint=f"outside of it: fedhelm {name} -h")
        hint = f"did you mean {' or '.join(near)}?" if near else "help lists the commands"
        raise UnknownCommand(f"no command {name!r}", hint=hint)
