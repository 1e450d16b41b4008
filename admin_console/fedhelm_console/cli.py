"""``fedhelm console KIT``: a prompt at a terminal, commands from ``-c``, ``-f`` or standard input elsewhere."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedhelm.errors import BadInput, FedhelmError, UsageError
from fedhelm.output import CommandParser, Format, add_output_option, format_of, guarded

if TYPE_CHECKING:
    from fedhelm.config.kit import Kit

__all__ = ["main"]


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="fedhelm console", description="The admin console: a prompt, or commands for scripts.", allow_abbrev=False
    )
    parser.add_argument("kit", nargs="?", metavar="KIT", help="the admin's folder, the one that holds startup/")
    parser.add_argument(
        "-c", dest="commands", action="append", metavar="CMD", help="run this and exit; may be repeated"
    )
    parser.add_argument("-f", dest="file", metavar="FILE", help="run the commands in a file, one a line; - is stdin")
    add_output_option(parser)
    parser.add_argument("--yes", action="store_true", help="confirmations are answered with yes")
    parser.add_argument("--confirm", metavar="PROJECT", help="the same for what ends the whole system")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="seconds for each command (default 60; no limit for wait, download_job)",
    )
    parser.add_argument("--keep-going", action="store_true", help="go on after a command that failed")
    parser.add_argument("--ascii", action="store_true", help="no characters beyond ASCII")
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"a number of seconds is wanted, not {text!r}")
    return value


def _kit_folder(given: str | None) -> Path:
    if given is not None:
        return Path(given)
    if Path("startup").is_dir():
        return Path()
    raise UsageError("which kit? Name the admin's folder, the one that holds startup/", hint="fedhelm console -h")


def _lines(arguments: argparse.Namespace) -> Iterable[str] | None:
    """Return the commands to run; None for a prompt."""
    if arguments.commands and arguments.file:
        raise UsageError("-c and -f exclude each other")
    if arguments.commands:
        commands: list[str] = arguments.commands
        return commands
    if arguments.file and arguments.file != "-":
        try:
            return Path(arguments.file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{arguments.file}: {getattr(error, 'strerror', None) or error}") from error
    if arguments.file or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return sys.stdin
    return None


def _is_command(word: str) -> bool:
    from fedhelm_console.commands import REGISTRY

    return REGISTRY.find(word) is not None


def _arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the arguments.

    Raises:
        UsageError: they are wrong; of a command that was typed without ``-c`` the hint shows it with it.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    words = rest if arguments.kit is None or Path(arguments.kit).exists() else [arguments.kit, *rest]
    if words and _is_command(words[0]):
        kit = "KIT" if words[0] == arguments.kit or arguments.kit is None else arguments.kit
        line = shlex.join(words)
        raise UsageError(
            f"a command stands behind -c: {words[0]} does not", hint=f"fedhelm console {kit} -c {shlex.quote(line)}"
        )
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _expiring(kit: Kit) -> Iterator[str]:
    """Say which certificate of the kit ends soon: who works at a console alone is told nowhere else."""
    from fedhelm.clock import SystemClock
    from fedhelm.security.pki import load_certificate, load_roots
    from fedhelm.security.trust import NEW_KIT, expiry_warnings

    now = SystemClock().utcnow()
    found = [("your certificate", load_certificate(kit.cert.read_bytes(), str(kit.cert)))]
    found += [("the project's root certificate", one) for one in load_roots(kit.ca.read_bytes(), str(kit.ca))]
    for what, certificate in found:
        warning = expiry_warnings(certificate, now)
        if warning is not None:
            yield f"{what} {warning}: {NEW_KIT}"


def _run(argv: list[str], fmt: Format) -> int:
    arguments = _arguments(argv)
    lines = _lines(arguments)
    from fedhelm.config.kit import ADMIN_ROLES
    from fedhelm.security.kit import open_kit

    kit = open_kit(_kit_folder(arguments.kit), role=ADMIN_ROLES)
    from fedhelm_console.terminal import Talk, make_console

    talk = Talk(sys.stderr)
    console = make_console(kit, talk, timeout=arguments.timeout, yes=arguments.yes, ascii_only=arguments.ascii)
    console = replace(console, confirmed=arguments.confirm)
    for warning in _expiring(kit):
        talk.say(warning)
    try:
        if lines is None:
            from fedhelm_console.repl import run_prompt

            return run_prompt(console, talk, fmt)
        from fedhelm_console.batch import run_lines

        return run_lines(console, lines, fmt, keep_going=arguments.keep_going)
    finally:
        talk.finish()
        console.session.close()


def main(argv: list[str]) -> int:
    """Run the console; return its exit status."""
    fmt = format_of(argv)
    try:
        return guarded(lambda: _run(argv, fmt), fmt)
    except BrokenPipeError:
        # Whoever read our output has gone; nothing more can be said, and Python must not try at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FedhelmError.exit_status
    except SystemExit as done:
        return int(done.code or 0)  # -h
