"""``fedhelm provision``: a project file into signed kits."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedhelm.clock import SystemClock
from fedhelm.errors import ExitStatus, FedhelmError, NotFound, Refused, UsageError
from fedhelm.output import CommandParser, Format, add_output_option, emit, format_of, guarded, harmless, table
from fedhelm.provision.flare import notes_as_lines
from fedhelm.provision.issued import IssuedCertificate
from fedhelm.provision.passphrases import LEAST, ROOT_LEAST, ask_secret, read_secret, writing_passwords
from fedhelm.provision.plan import Happens, Plan, make_plan
from fedhelm.provision.project_file import ProjectFile, read_project_file
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.provision.provisioning import Secrets, provision
from fedhelm.provision.sample import SAMPLE

__all__ = ["main"]

_ABOUT = """\
Makes a federation from one project file: WORKSPACE/PROJECT/prod_NN/PARTICIPANT/{startup,local}, a zip of each kit to
hand over, resources/ (Dockerfile, Compose file, systemd units) and state/ (root key, what was issued: keep it safe).
Run it again after a change: root and certificates are used again, in a new prod_NN. A run that changes nothing writes
nothing. Without arguments it reads ./project.yml, and offers to write a sample where there is none.
"""

_EXAMPLES = """\
  fedhelm provision                                # writes a sample project.yml, if you say so
  fedhelm provision -p project.yml --dry-run       # what would change?
  fedhelm provision -p project.yml --passphrase-file root.pass --zip-password-file zip.pass

A passphrase or password is the first line of a file that nobody else may read; `-` asks for it on the terminal.

Exit statuses: 0 done, 1 failed, 2 usage or a mistake in the file, 4 root key not opened.
"""

_DEFAULT = Path("project.yml")
_ASK = Path("-")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="fedhelm provision",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-p", "--project-file", type=Path, metavar="FILE", help="default: project.yml")
    parser.add_argument(
        "-w", "--workspace", type=Path, default=Path("workspace"), metavar="DIR", help="default: ./workspace"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would change, write nothing")
    parser.add_argument(
        "--passphrase-file", type=Path, metavar="FILE", help="the root key is encrypted under it (- asks)"
    )
    zips = parser.add_mutually_exclusive_group()
    zips.add_argument("--zip-password-file", type=Path, metavar="FILE", help="no zip opens without it (- asks)")
    zips.add_argument(
        "--zip-passwords", type=Path, metavar="FILE", help="make one for each zip, and write them all to a new FILE"
    )
    parser.add_argument(
        "--keep-keys", action="store_true", help="keep participants' private keys in state/, encrypted as the root's"
    )
    add_output_option(parser)
    return parser


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stderr.write(harmless(line) + "\n")
    sys.stderr.flush()


def _offer_sample(fmt: Format) -> ExitStatus:
    """Ask FLARE's question; write the sample on a yes."""
    if fmt == "json":
        raise NotFound("no project.yml in the current folder", hint="fedhelm provision -p FILE")
    sys.stderr.write("No project.yml found in current folder. Is it OK to generate one for you? (y/N) ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        sys.stderr.write("\n")
    if answer.strip().lower() not in ("y", "yes"):
        raise Refused("project.yml was not written", hint="fedhelm provision -p FILE")
    try:
        with _DEFAULT.open("x", encoding="utf-8") as file:
            file.write(SAMPLE)
    except OSError as error:
        raise FedhelmError(f"{_DEFAULT.absolute()}: {error.strerror}") from error
    return emit(None, human=f"project.yml was written. Edit it, then: fedhelm provision -p {_DEFAULT}")


def _secret(path: Path | None, what: str, option: str, *, new: bool, least: int = LEAST) -> bytes | None:
    if path is None:
        return None
    return (
        ask_secret(what, twice=new, least=least, option=option)
        if path == _ASK
        else read_secret(path, what, least=least)
    )


def _found(workspace: Path, project: str) -> ProjectFolder | None:
    try:
        return ProjectFolder.open(workspace / project)
    except NotFound:
        return None


def _secrets(args: argparse.Namespace, folder: ProjectFolder | None, plan: Plan) -> Secrets:
    """Return what the run needs; asks only for what it will use."""
    if folder is not None and not plan.signs:
        return Secrets()
    what, option, new = "passphrase of the root key", "--passphrase-file", folder is None
    passphrase = _secret(args.passphrase_file, what, option, new=new, least=ROOT_LEAST if new else LEAST)
    if folder is not None and folder.root_is_encrypted and passphrase is None:
        passphrase = ask_secret(what, option=option)
    if folder is not None and passphrase is not None and not folder.root_is_encrypted:
        raise UsageError(
            f"{folder.state / 'rootCA.key'} is not encrypted, so --passphrase-file opens nothing",
            hint="leave it out; a key is encrypted when it is made",
        )
    password = (
        None if plan.empty else _secret(args.zip_password_file, "password of the zips", "--zip-password-file", new=True)
    )
    return Secrets(passphrase, password, args.keep_keys)


def _body(args: argparse.Namespace, fmt: Format) -> ExitStatus:
    if args.project_file is None and not _DEFAULT.exists():
        return _offer_sample(fmt)
    file = read_project_file(args.project_file or _DEFAULT)
    notes = notes_as_lines(file.notes)
    if fmt == "table":
        _say(f"note: {line}" for line in notes)
    folder = _found(args.workspace, file.project.name)
    plan = make_plan(file.project, folder, SystemClock().utcnow())
    given = Secrets()
    if not args.dry_run:
        given = _secrets(args, folder, plan)
        with writing_passwords(args.zip_passwords) as passwords:
            given = dataclasses.replace(given, zip_passwords=passwords)
            folder, plan = provision(file.project, file.source, args.workspace, given)
        if fmt == "table" and plan.number == 0 and not plan.empty and given.passphrase is None:
            _say([f"note: {folder.state / 'rootCA.key'} is not encrypted: who reads it can make certificates"])
    place = (args.workspace / file.project.name).absolute()
    return emit(_data(file, plan, place, args, notes), fmt, lambda: _human(file, plan, place, args, given))


def _data(file: ProjectFile, plan: Plan, place: Path, args: argparse.Namespace, notes: list[str]) -> dict[str, Any]:
    prod = place / f"prod_{plan.number:02d}"

    def row(change: Any) -> dict[str, Any]:
        body = dataclasses.asdict(change) | {"happens": str(change.happens)}
        del body["cert"], body["again"]
        left_out = (Happens.REMOVED, Happens.REVOKED, Happens.WAITS)
        made = not plan.empty and not args.dry_run and change.happens not in left_out
        kit = prod / change.name
        return body | {"kit": str(kit) if made else None, "zip": f"{kit}.zip" if made else None}

    return {
        "project": file.project.name,
        "folder": str(place),
        "prod": None if plan.empty else prod.name,
        "dry_run": args.dry_run,
        "changed": not plan.empty,
        "participants": [row(one) for one in plan.changes],
        "revoked": [{"name": one.name, "serial": one.serial, "reason": reason} for one, reason in _revoked(plan)],
        "notes": notes,
    }


def _revoked(plan: Plan) -> list[tuple[IssuedCertificate, str]]:
    """Return what this run puts on the signed list, and why."""
    return [*plan.revoke, *((one, one.reason or "") for one in plan.unlisted)]


def _human(file: ProjectFile, plan: Plan, place: Path, args: argparse.Namespace, given: Secrets) -> str:
    rows = [(one.name, one.role, str(one.happens), one.why or None) for one in plan.changes]
    shown = table(("name", "role", "kit", "why"), rows)
    last = os.path.relpath(place / f"prod_{plan.number:02d}")
    if plan.empty:
        return "\n".join(
            [shown, "", "No kit has changed: there is no new prod folder.", *_hand_over(plan, place, args)]
        )
    if args.dry_run:
        return f"{shown}\n\nNothing was written. Without --dry-run this would be in {last}."
    encrypted = given.zip_password is not None or given.zip_passwords is not None
    zips = "encrypted zips" if encrypted else "zips without a password"
    lines = [shown, "", f"Kits and {zips} of project {file.project.name}: {last}"]
    if args.zip_passwords is not None:
        lines += [f"The password of each zip is in {args.zip_passwords}: send none of them the way its zip goes."]
    if plan.number == 0:
        first = file.project.of("server")[0].name
        lines += [
            f"Next: hand each zip to its participant; start the overseer, then {first} for the first time:",
            f"  {first}/startup/start.sh --found-store     # makes the store in {file.project.store}",
            "then the others with startup/start.sh.",
        ]
    else:
        lines += ["Next: hand over the kits that are new; the others' former kits go on as well."]
    waiting = ", ".join(one.name for one in plan.changes if one.happens is Happens.WAITS)
    if waiting:
        lines += [f"No kit yet for {waiting}: fedhelm pki request there, then here fedhelm pki approve."]
    return "\n".join([*lines, *_hand_over(plan, place, args)])


def _hand_over(plan: Plan, place: Path, args: argparse.Namespace) -> list[str]:
    names = ", ".join(dict.fromkeys(one.name for one, _ in _revoked(plan)))
    if not names:
        return []
    if args.dry_run:
        return [f"The list of revoked certificates would be signed anew: {names}."]
    path = os.path.relpath(place / "state" / "revoked.json")
    return [f"Revoked: {names}. Hand the list over, in the console: revoke_certificates {path}"]


def main(argv: list[str]) -> int:
    """Run ``fedhelm provision ARGV``; return its exit status."""
    fmt = format_of(argv)
    return guarded(lambda: _body(_parser().parse_args(argv), fmt), fmt)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
