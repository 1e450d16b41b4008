"""The one printer of every command: data on stdout as text or as one JSON envelope, errors with code and hint.

The envelope: ``{"schema_version": 1, "status": "ok"|"error", "data": ..., "error": {"code", "message", "hint"}}``.
With ``-o json`` stdout carries exactly one such object per command and nothing else, usage errors included.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

from fedhelm.errors import ExitStatus, FedhelmError, Interrupted, UsageError

__all__ = [
    "FORMATS",
    "SCHEMA_VERSION",
    "CommandParser",
    "Format",
    "add_output_option",
    "emit",
    "emit_error",
    "envelope",
    "error_line",
    "format_of",
    "guarded",
    "harmless",
    "one_line",
    "plain_lines",
    "table",
]

SCHEMA_VERSION = 1

Format = Literal["table", "json"]
FORMATS: tuple[Format, ...] = ("table", "json")


def envelope(data: Any = None, error: FedhelmError | None = None) -> dict[str, Any]:
    """Return the JSON object that stands for a result, or for an error (then ``data`` is null)."""
    if error is None:
        return {"schema_version": SCHEMA_VERSION, "status": "ok", "data": data, "error": None}
    body = {"code": error.code, "message": error.message, "hint": error.hint}
    return {"schema_version": SCHEMA_VERSION, "status": "error", "data": None, "error": body}


# All that moves the cursor, names the window or turns the direction of writing; colours (SGR) are the program's own.
_CONTROL = re.compile(
    "\x1b(?!\\[[0-9;]*m)|\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)


def harmless(text: str) -> str:
    """Return text that a terminal only shows: names, reasons and tracebacks come from other people's scripts."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """Return text from elsewhere as part of a line: it can begin no other line, and gives a terminal no order."""
    return _NOT_IN_A_LINE.sub("\N{REPLACEMENT CHARACTER}", text)


def plain_lines(text: str) -> str:
    """Return text from elsewhere that may have several lines, such as a traceback; it has no colours either."""
    return "\n".join(one_line(line) for line in text.replace("\r\n", "\n").expandtabs().split("\n"))


def _write_json(body: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(body, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def emit(data: Any, fmt: Format = "table", human: Callable[[], str] | str | None = None) -> ExitStatus:
    """Print a result and return ``ExitStatus.OK``.

    Args:
        data: what the command returns; anything ``json`` can write.
        fmt: ``json`` prints the envelope, ``table`` prints for people.
        human: the text for people, or a function that makes it; nothing is printed where it is None or empty.
    """
    if fmt == "json":
        _write_json(envelope(data))
        return ExitStatus.OK
    text = human() if callable(human) else human
    if text:
        text = harmless(text)
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    return ExitStatus.OK


def error_line(error: FedhelmError) -> str:
    """Return ``error[CODE]: message (hint: ...)``."""
    hint = f" (hint: {error.hint})" if error.hint else ""
    return f"error[{error.code}]: {error.message}{hint}"


def emit_error(error: FedhelmError, fmt: Format = "table") -> ExitStatus:
    """Print an error (JSON on stdout, a line for people on stderr) and return the exit status that belongs to it."""
    if fmt == "json":
        _write_json(envelope(error=error))
    else:
        sys.stderr.write(plain_lines(error_line(error)) + "\n")
        sys.stderr.flush()
    return error.exit_status


def guarded(body: Callable[[], int], fmt: Format = "table") -> int:
    """Run a command's body; print what it raises and return the exit status.

    A ``FedhelmError`` is printed as such, Ctrl-C ends with 130, anything else is a mistake in the program and is
    printed as ``INTERNAL`` (with ``FEDHELM_DEBUG`` set, it is raised on).
    """
    try:
        return int(body())
    except FedhelmError as error:
        return emit_error(error, fmt)
    except KeyboardInterrupt:
        return emit_error(Interrupted("interrupted"), fmt)
    except Exception as error:  # a script that reads JSON must get JSON whatever breaks
        if os.environ.get("FEDHELM_DEBUG"):
            raise
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return emit_error(FedhelmError(message, hint="set FEDHELM_DEBUG=1 for the traceback"), fmt)


class CommandParser(argparse.ArgumentParser):
    """``argparse`` that raises ``UsageError`` where it would exit, so that usage errors get the envelope too."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and exiting."""
        raise UsageError(message, hint=f"{self.prog} -h")


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """Add ``-o table|json`` (also ``--output``); the attribute ``output`` is absent when not given (levels combine)."""
    parser.add_argument(
        "-o",
        "--output",
        choices=FORMATS,
        default=argparse.SUPPRESS,
        help="table for people (default), json for programs: one object on stdout",
    )


def format_of(argv: Sequence[str]) -> Format:
    """Find ``-o json`` in arguments that may not parse: an error must be printed in the format that was asked for."""
    found: Format = "table"
    for index, word in enumerate(argv):
        value = None
        if word in ("-o", "--output"):
            value = argv[index + 1] if index + 1 < len(argv) else None
        elif word.startswith("--output="):
            value = word.partition("=")[2]
        elif word.startswith("-o") and not word.startswith("--"):
            value = word[2:].lstrip("=")
        if value in FORMATS:
            found = "json" if value == "json" else "table"
    return found


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as aligned columns under upper-case headers; None is shown as ``-``; no cell begins a new line."""
    cells = [[header.upper() for header in headers]]
    cells += [["-" if value is None else one_line(str(value)) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)
