"""Commands that ask nobody."""

from __future__ import annotations

from typing import Annotated, Any

from fedhelm_console.context import Console
from fedhelm_console.registry import Arg, Command, Parameter, Result

__all__ = ["LOCAL_COMMANDS", "help_of"]


def _flag_line(parameter: Parameter) -> tuple[str, str]:
    if not parameter.option:
        return parameter.metavar, parameter.arg.help
    names = ", ".join(parameter.arg.flags)
    return (f"{names} {parameter.metavar}" if parameter.takes_value else names), parameter.arg.help


def help_of(command: Command) -> str:
    """Return one line, the usage, arguments and options, two examples, and the errors it can give."""
    lines = [command.summary, "", f"usage: {command.usage}"]
    if command.aliases:
        lines.append(f"also:  {', '.join(command.aliases)}")
    rows = [
        *(_flag_line(one) for one in command.parameters),
        ("-o table|json", "for people, or for programs"),
        ("--timeout S", "give up after so many seconds"),
    ]
    if command.grade == 3:
        rows.append(("--confirm PROJECT", "do not ask"))
    elif command.grade:
        rows.append(("--yes", "do not ask"))
    width = max(len(left) for left, _ in rows)
    lines += ["", *(f"  {left.ljust(width)}  {right}" for left, right in rows)]
    lines += ["", "examples:", *(f"  {example}" for example in command.examples)]
    if command.errors:
        lines += ["", f"errors: {', '.join(command.errors)}"]
    return "\n".join(lines)


def _entry(command: Command) -> dict[str, Any]:
    return {
        "name": command.name,
        "aliases": list(command.aliases),
        "usage": command.usage,
        "summary": command.summary,
        "examples": list(command.examples),
    }


def show_help(console: Console, command: Annotated[str | None, Arg("command", "a command's name")] = None) -> Result:
    """List the commands, or show the usage of one."""
    if command is not None:
        found = console.registry.get(command)
        return Result(_entry(found), help_of(found))
    width = max(len(one.name) for one in console.registry)
    lines = [
        f"{one.name.ljust(width)}  {one.summary}" + (f" ({', '.join(one.aliases)})" if one.aliases else "")
        for one in console.registry
    ]
    lines += ["", '"? cmdName" shows usage and examples of a command.']
    return Result([_entry(one) for one in console.registry], "\n".join(lines))


def clear(console: Console) -> Result:
    """Empty the screen; off a terminal nothing happens."""
    if console.clear is not None:
        console.clear()
    return Result()


def bye(console: Console) -> Result:
    """Leave the console; jobs go on."""
    del console
    return Result(leave=True)


LOCAL_COMMANDS = (
    Command("help", show_help, "list the commands, or show the usage of one", ("help", "help submit_job"), ("?",)),
    Command("clear", clear, "empty the screen", ("clear", "cls"), ("cls",)),
    Command("bye", bye, "leave the console; jobs go on", ("bye", "quit"), ("quit", "exit")),
)
