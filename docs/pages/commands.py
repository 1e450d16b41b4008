"""commands.md: the console's commands from its registry, and ``fedhelm``'s own from their parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from docs.pages.markdown import GENERATED, anchor, code, table
from fedhelm.cli import _SUMMARIES as SUMMARIES
from fedhelm.provision.audit_cli import _parser as audit_parser
from fedhelm.provision.authz_cli import _parser as authz_parser
from fedhelm.provision.check_cli import _parser as check_parser
from fedhelm.provision.install import _parser as kit_parser
from fedhelm.provision.pki_cli import _parser as pki_parser
from fedhelm.provision.provision_cli import _parser as provision_parser
from fedhelm_console.cli import _parser as console_parser
from fedhelm_console.commands import REGISTRY
from fedhelm_console.registry import Command, Parameter
from fedhelm_lab.backup_cli import backup_parser, restore_parser
from fedhelm_lab.demo import _parser as demo_parser
from fedhelm_lab.example_jobs import _parser as examples_parser
from fedhelm_lab.fsck_cli import _parser as fsck_parser
from fedhelm_lab.poc_cli import _parser as poc_parser
from fedhelm_server.failover_cli import _parser as failover_parser

__all__ = ["page"]

_INTRO = """\
# Commands

`fedhelm COMMAND -h` and, in the console, `? COMMAND` say the same as this page.
"""

_ROLES = """\
### fedhelm overseer, fedhelm server, fedhelm client

`--kit DIR [--foreground | --background]` runs one participant from its kit, the folder that holds `startup/`. It stays
in the foreground unless told otherwise. `startup/start.sh` starts it in the background: it returns once the
participant runs, and the output goes to `log.txt`. `startup/stop_fl.sh` stops the participant and everything below it.
A kit can be run once at a time.
"""

_CONSOLE = """\
## In the console

At a terminal `fedhelm console KIT` (or the kit's `startup/fl_admin.sh`) opens a prompt. With `-c`, `-f`, or with
standard input that is no terminal, it runs commands and exits.

* Words are separated by blanks; `'...'`, `"..."` and `\\` keep them together. Options stand in any order. A line that
  begins with `#` is a comment.
* Every command takes `-o table|json` and `--timeout S`; those that ask take `--yes`.
* JOB is a job's id, a unique prefix of at least 4 characters, or `@last`, the newest job of all.
* Keys: Tab completes; F1 shows the help of the command being typed; F3 the latest events; F4 changes between emacs and
  vi keys; F5 asks for the state again; Ctrl-R searches the history; Ctrl-C clears the line, or leaves a `wait` or a
  download (the job goes on); Ctrl-D leaves.
* With `-o json` standard output carries one object for each command, `{"schema_version": 1, "status": "ok" | "error",
  "data", "error"}`, and nothing else. See [how to script it](../how-to/script-the-console.md).
"""

_GRADES = {
    0: "",
    1: "It asks `y/N` first; `--yes` answers.",
    2: "It asks for the name of what it touches first; `--yes` answers.",
    3: "It asks for the project's name and a count first; `--confirm PROJECT` answers.",
}


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list, and its help text changes by version
        if action.help == argparse.SUPPRESS or action.dest == "help":
            continue
        names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        value = str(action.metavar or "|".join(str(one) for one in action.choices or ())) if action.nargs != 0 else ""
        yield code(f"{names} {value}".strip() if action.option_strings else names), action.help or ""


def _tool(name: str, usage: str, parser: argparse.ArgumentParser, about: str = "") -> str:
    summary = SUMMARIES[name][0].upper() + SUMMARIES[name][1:]
    text = f"### fedhelm {name}\n\n{summary}.\n\n```\n{usage}\n```\n\n{about}"
    return text + table(("option", "meaning"), _options(parser))


def _group(name: str, parser: argparse.ArgumentParser, about: str) -> str:
    """Describe a command that has commands of its own."""
    summary = SUMMARIES[name][0].upper() + SUMMARIES[name][1:]
    parts = [f"### fedhelm {name}\n\n{summary}. {about}"]
    for action in parser._actions:  # noqa: SLF001  argparse shows them in no other way
        for word, one in (action.choices or {}).items() if isinstance(action, argparse._SubParsersAction) else ():  # noqa: SLF001
            said = (one.description or "").rstrip(".")
            parts.append(f"#### fedhelm {name} {word}\n\n{said[0].upper()}{said[1:]}.\n")
            parts.append(table(("argument", "meaning"), _options(one)))
    return "\n".join(parts)


_ACTIONS = (
    (
        "prepare",
        (
            "makes the workspace: certificates, a signed kit and scripts for each participant, the shared store, "
            "examples; `fedhelm poc -n 2` is short for `fedhelm poc prepare -n 2`"
        ),
    ),
    ("start", "starts what is not running, and waits until all are ready (at most 60 s)"),
    ("status", "shows each participant: process, ready or not, processes below it"),
    ("stop", "stops everything; no process stays behind"),
    ("add", "makes the kit of one more server; `start` starts it"),
    ("clean", "stops, then removes the workspace"),
)

_PORTS = """\
Ports are on 127.0.0.1. Overseer 8443, server1 8002 and 8003, server2 9002 and 9003. With `--base-port P`: overseer P,
server k P+2k-1 and P+2k.
"""

_POC_ABOUT = table(("action", "does"), ((code(name), text) for name, text in _ACTIONS)) + f"\n{_PORTS}\n"


def _parameter(one: Parameter) -> tuple[str, str]:
    names = ", ".join(one.arg.flags) + (f" {one.metavar}" if one.takes_value else "") if one.option else one.metavar
    return code(names), one.arg.help


def _command(command: Command) -> str:
    lines = [f"### {command.name}\n", f"{command.summary[0].upper()}{command.summary[1:]}.\n"]
    lines.append(f"```\n{command.usage}\n```\n")
    if command.aliases:
        lines.append(f"Also: {', '.join(code(name) for name in command.aliases)}.\n")
    if command.grade:
        lines.append(_GRADES[command.grade] + "\n")
    if command.parameters:
        lines.append(table(("argument", "meaning"), (_parameter(one) for one in command.parameters)))
    lines.append("```console\n" + "\n".join(command.examples) + "\n```\n")
    if command.errors:
        links = ", ".join(f"[{name}](errors.md#{anchor(name)})" for name in command.errors)
        lines.append(f"Errors: {links}; and those of every command.\n")
    return "\n".join(lines)


_PARTS = "(-w DIR | --kit DIR ... [--state DIR])"
_RESCUE = (
    ("backup", f"TARGET {_PARTS}", backup_parser()),
    ("restore", f"BACKUP {_PARTS} [--replace]", restore_parser()),
    ("fsck", f"{_PARTS} [--repair [--from BACKUP] [--accept-loss]]", fsck_parser()),
    ("failover", "KIT [--reason TEXT] [--gone SERVER] [--confirm PROJECT]", failover_parser()),
)


def page() -> str:
    """Return the page."""
    overview = table(
        ("command", "does"),
        ((f"[{one.name}](#{anchor(one.name)})", one.summary) for one in REGISTRY),
    )
    parts = [
        _INTRO,
        "## fedhelm\n",
        table(("command", "does"), ((code(f"fedhelm {name}"), text) for name, text in SUMMARIES.items())),
        _tool("demo", "fedhelm demo [--sites N] [--base-port P] [-w DIR] [--keep] [-o json]", demo_parser()),
        _tool(
            "poc",
            "fedhelm poc [ACTION] [-n SITES] [--servers K] [--base-port P] [-w DIR] [-o json]",
            poc_parser(),
            _POC_ABOUT,
        ),
        _tool("examples", "fedhelm examples [NAME ...] [-d DIR] [-o json]", examples_parser()),
        _tool(
            "provision",
            "fedhelm provision [-p FILE] [-w DIR] [--dry-run] [--keep-keys] [--passphrase-file FILE] "
            "[--zip-password-file FILE | --zip-passwords FILE] [-o json]",
            provision_parser(),
            "See [how to provision](../how-to/provision.md).\n\n",
        ),
        *(
            _group(name, parser, "See [keys and certificates](../how-to/keys.md).\n")
            for name, parser in (("pki", pki_parser()), ("kit", kit_parser()))
        ),
        _tool(
            "check",
            "fedhelm check [--offline] [-o json] KIT",
            check_parser(),
            "See [how to check a kit](../how-to/check-a-kit.md).\n\n",
        ),
        _tool(
            "authz",
            "fedhelm authz [--role ROLE] [--default] [-o json] [KIT [may WHO DO [job of NAME/ORG] [at SITE/ORG]]]",
            authz_parser(),
            "See [how to say who may do what](../how-to/rights.md).\n\n",
        ),
        _tool(
            "audit",
            "fedhelm audit verify WHERE [--expect NUMBER:SHA256] [--known NUMBER] [-o json]\n"
            "fedhelm audit show WHERE [-n N] [--denied] [--by NAME] [--about TEXT] [-o json]\n"
            "fedhelm audit export WHERE --to TO [--since NUMBER] [-o json]\n"
            "fedhelm audit provenance FOLDER [--kit KIT] [--revoked FILE] [--believe-time] [-o json]",
            audit_parser(),
            "See [how to see who did what](../how-to/audit.md).\n\n",
        ),
        _tool(
            "console",
            "fedhelm console [-c CMD] [-f FILE] [-o json] [--yes] [--timeout S] [--keep-going] [--ascii] [KIT]",
            console_parser(),
        ),
        *(
            _tool(name, f"fedhelm {name} {usage} [-o json]", parser, f"{parser.description or ''}\n")
            for name, usage, parser in _RESCUE
        ),
        _ROLES,
        _CONSOLE,
        overview,
        *(_command(one) for one in REGISTRY),
    ]
    return GENERATED + "\n".join(parts)
