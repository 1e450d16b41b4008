"""``fedhelm pki``: certificates after the first kit: requested, approved, renewed, revoked; the root and its key."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedhelm.clock import SystemClock
from fedhelm.config.kit import ROLES
from fedhelm.errors import BadInput, FedhelmError, UsageError, WorkspaceExists
from fedhelm.output import CommandParser, Format, add_output_option, emit, format_of, guarded, table
from fedhelm.provision import lifetimes, rotation
from fedhelm.provision.issued import IssuedCertificate
from fedhelm.provision.passphrases import ROOT_LEAST, ask_secret, read_secret, writing_passwords
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.provision.provisioning import Secrets
from fedhelm.provision.root_passphrase import change_passphrase
from fedhelm.security.pki import load_certificate, public_key_sha256
from fedhelm.security.requests import MAX_BYTES, make_request, read_request
from fedhelm.security.retired import load_retired
from fedhelm.security.trust import expiry_warnings

__all__ = ["main"]

_ASK = Path("-")
_MOST_DAYS = 36500

_EXAMPLES = """\
  fedhelm pki list -w workspace/hospitals
  fedhelm pki renew --expiring 30 -w workspace/hospitals --passphrase-file root.pass
  fedhelm pki request site-3 --role site --org "Hospital C" --out keys     # at the site
  fedhelm pki approve site-3.csr -w workspace/hospitals                    # at the administrator's
  fedhelm pki revoke site-2 --reason "laptop stolen" -w workspace/hospitals
  fedhelm pki rotate begin -w workspace/hospitals                          # then switch, then finish
  fedhelm pki passphrase -w workspace/hospitals                            # asks for the new one

New kits are in a new prod_NN; hand them over, and `fedhelm kit install KIT ZIP` puts each in place. A passphrase or
password is the first line of a file that nobody else may read; `-` asks for it on the terminal.
"""


def _add(commands: Any, name: str, about: str, *, folder: bool = True, kits: bool = True) -> CommandParser:
    parser: CommandParser = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
    if folder:
        parser.add_argument(
            "-w", "--workspace", type=Path, required=True, metavar="DIR", help="the project's folder, workspace/PROJECT"
        )
    if folder and name != "list":
        parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="opens the root key (- asks)")
    if folder and kits:
        zips = parser.add_mutually_exclusive_group()
        zips.add_argument("--zip-password-file", type=Path, metavar="FILE", help="no zip opens without it (- asks)")
        zips.add_argument(
            "--zip-passwords", type=Path, metavar="FILE", help="make one for each zip, and write them all to a new FILE"
        )
    add_output_option(parser)
    return parser


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="fedhelm pki",
        description="Certificates of a provisioned project.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_output_option(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = _add(commands, "list", "show who has which certificate, and until when", kits=False)
    listing.add_argument("--all", action="store_true", help="also those that were replaced, revoked or have expired")
    renewal = _add(commands, "renew", "issue new certificates, and kits with them")
    which = renewal.add_mutually_exclusive_group(required=True)
    which.add_argument("names", nargs="*", default=[], metavar="NAME", help="participants")
    which.add_argument("--all", action="store_true", help="everybody but those who were revoked")
    which.add_argument("--expiring", type=_days, metavar="DAYS", help="whose certificate ends within so many days")
    revocation = _add(commands, "revoke", "take a participant's certificates back", kits=False)
    revocation.add_argument("name", metavar="NAME", help="the participant")
    revocation.add_argument("--reason", required=True, metavar="TEXT", help="in the list that everybody gets")
    revocation.add_argument("--serial", metavar="HEX", help="only this one")
    request = _add(commands, "request", "make a key, and a request for its certificate", folder=False)
    request.add_argument("name", metavar="NAME", help="the participant, as in the project file")
    request.add_argument("--role", required=True, choices=ROLES, help="as in the project file; of a client: site")
    request.add_argument("--org", required=True, metavar="ORG", help="its organisation, as in the project file")
    request.add_argument("--out", type=Path, required=True, metavar="DIR", help="made if it is not there")
    approval = _add(commands, "approve", "issue a kit without a key for a request")
    approval.add_argument("request", type=Path, metavar="CSR", help="the file that fedhelm pki request made")
    approval.add_argument(
        "--fingerprint", metavar="HEX", help="SHA-256 of its key, as the participant told it; another is refused"
    )
    rotating = _add(commands, "rotate", "change the project's root, in three steps, with nothing stopped")
    rotating.add_argument(
        "step",
        choices=("begin", "switch", "finish"),
        metavar="begin|switch|finish",
        help="begin: all trust a new root as well; switch: it signs; finish: the former one counts no longer",
    )
    rotating.add_argument(
        "--distrust",
        action="store_true",
        help="with finish, or after it: former roots are not even good for what was signed before",
    )
    changing = _add(commands, "passphrase", "encrypt the root key, or change the passphrase that opens it", kits=False)
    changing.add_argument(
        "--new-passphrase-file", type=Path, metavar="FILE", help="the new one (- asks, and so does no FILE)"
    )
    return parser


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = math.nan
    if not 0 <= days <= _MOST_DAYS:  # also nan
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days from 0 to {_MOST_DAYS}")
    return days


def _secret(path: Path | None, what: str, *, twice: bool = False) -> bytes | None:
    if path is None:
        return None
    return ask_secret(what, twice=twice) if path == _ASK else read_secret(path, what)


def _secrets(args: argparse.Namespace, folder: ProjectFolder) -> Secrets:
    passphrase = _secret(args.passphrase_file, "passphrase of the root key")
    if folder.root_is_encrypted and passphrase is None:
        passphrase = ask_secret("passphrase of the root key", option="--passphrase-file")
    password = _secret(getattr(args, "zip_password_file", None), "password of the zips", twice=True)
    return Secrets(passphrase, password, zip_passwords=args.made_passwords)


# -- one function for each command


def _list(args: argparse.Namespace, fmt: Format) -> int:
    folder, now = ProjectFolder.open(args.workspace), SystemClock().utcnow()
    issued = folder.certificates()
    unlisted = {one.serial for one in folder.unlisted()}
    newest = {one.name: one.serial for one in issued if not one.revoked and one.name in folder.kit_digests}

    def state(one: IssuedCertificate) -> str:
        if one.serial in unlisted:
            return "revoked, but a run broke off before it signed the list: fedhelm pki revoke it again"
        if one.revoked:
            return f"revoked on {(one.revoked_at or '')[:10]}: {one.reason or '-'}"
        certificate = load_certificate(one.cert_pem.encode(), one.serial)
        warning = expiry_warnings(certificate, now)
        if warning is not None:
            return warning
        return "valid" if newest.get(one.name) == one.serial else "valid, replaced"

    shown = [one for one in issued if args.all or newest.get(one.name) == one.serial or one.serial in unlisted]
    data = [dataclasses.asdict(one) | {"state": state(one)} for one in shown]
    rows = [(one.name, one.role, one.org, one.not_after[:10], one.kit_version, state(one), one.serial) for one in shown]
    head = ("name", "role", "org", "until", "kit", "state", "serial")
    return emit({"project": folder.project, "certificates": data}, fmt, lambda: table(head, rows))


def _reissued(made: Sequence[lifetimes.Reissued], fmt: Format, nothing: str, after: str = "") -> int:
    data = [dataclasses.asdict(one) | {"kit": str(one.kit), "zip": str(one.zip)} for one in made]
    if not made:
        return emit({"kits": data}, fmt, nothing)
    rows = [
        (one.name, one.role, one.not_after[:10], "its own" if one.own_key else "in the kit", one.zip) for one in made
    ]
    text = table(("name", "role", "until", "key", "kit to hand over"), rows)
    return emit({"kits": data}, fmt, f"{text}\n\nEach installs it: fedhelm kit install KIT ZIP{after}")


def _renew(args: argparse.Namespace, fmt: Format) -> int:
    folder = ProjectFolder.open(args.workspace)
    if args.all:
        names = [name for name in folder.kit_digests if folder.current(name) is not None]  # not who was revoked
    elif args.expiring is not None:
        names = lifetimes.expiring(folder, args.expiring, SystemClock().utcnow())
    else:
        names = args.names
    made = lifetimes.renew(folder, names, _secrets(args, folder)) if names else []
    nothing = "everybody was revoked" if args.all else "no certificate ends within that time"
    return _reissued(made, fmt, f"{nothing}: nothing was written")


def _revoke(args: argparse.Namespace, fmt: Format) -> int:
    folder = ProjectFolder.open(args.workspace)
    if not args.reason.isprintable() or len(args.reason) > 1024:
        raise BadInput("--reason is one printable line of at most 1024 characters")
    gone = lifetimes.revoke(folder, args.name, args.reason, _secrets(args, folder), serial=args.serial)
    version, path = folder.revocation_list().version, folder.state / "revoked.json"
    data = {
        "revoked": [{"name": one.name, "role": one.role, "serial": one.serial} for one in gone],
        "list": str(path),
        "version": version,
    }
    said = "".join(f"{one.role} {one.name}: certificate {one.serial} is revoked\n" for one in gone)
    hint = f"It counts once an administrator hands it over, in the console: revoke_certificates {path}"
    return emit(data, fmt, f"{said}The signed list of all, version {version}: {path}\n{hint}")


def _request(args: argparse.Namespace, fmt: Format) -> int:
    key, request = make_request(args.role, args.name, args.org)
    paths = args.out / f"{args.name}.key", args.out / f"{args.name}.csr"
    try:
        args.out.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, data, mode in ((paths[0], key, 0o600), (paths[1], request, 0o644)):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
    except FileExistsError as error:
        raise WorkspaceExists(f"{error.filename} exists already", hint="keys are never overwritten") from None
    except OSError as error:
        raise FedhelmError(f"{error.filename}: {error.strerror}") from error
    found = public_key_sha256(read_request(request, str(paths[1])).public_key)
    said = (
        f"{paths[0]}: the key; it stays here\n{paths[1]}: the request; hand it to the project's administrator\n"
        f"SHA-256 of the public key: {found}\nTell it to them in some other way, by telephone for example."
    )
    return emit({"key": str(paths[0]), "request": str(paths[1]), "key_sha256": found}, fmt, said)


def _approve(args: argparse.Namespace, fmt: Format) -> int:
    try:
        with args.request.open("rb") as file:
            pem = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{args.request}: {error.strerror}") from error
    request = read_request(pem, str(args.request))
    folder = ProjectFolder.open(args.workspace)
    made = lifetimes.approve(folder, request, _secrets(args, folder), fingerprint=args.fingerprint)
    after = " --key THE-KEY-OF-THE-REQUEST (a first kit: fedhelm kit unpack ZIP --key ...)"
    after += f"\nSHA-256 of the public key: {made.key_sha256}"
    if args.fingerprint is None:
        after += f"\nAsk {made.name} in some other way whether it is theirs, before you hand the kit over."
    if made.revoked:
        path = folder.state / "revoked.json"
        after += (
            f"\nRevoked, because its key was made here: {', '.join(made.revoked)}. Once the new kit is installed, hand "
            f"the list over, in the console: revoke_certificates {path}"
        )
    return _reissued([made], fmt, "", after)


def _rotate(args: argparse.Namespace, fmt: Format) -> int:
    folder = ProjectFolder.open(args.workspace)
    if args.distrust and args.step != "finish":
        raise UsageError("--distrust is an option of finish alone")
    given = _secrets(args, folder)
    if args.step == "switch":
        after = "\nOnce all have: fedhelm pki rotate finish"
        return _reissued(
            rotation.switch_root(folder, given), fmt, "every certificate is of the new root already", after
        )
    begins = args.step == "begin"
    prod = (
        rotation.begin_rotation(folder, given)
        if begins
        else rotation.finish_rotation(folder, given, distrust=args.distrust)
    )
    where = "the kits were written before, and are not here any more" if prod is None else str(prod)
    if begins:
        said = (
            f"{where}: kits that trust the next root as well. Once all are installed (fedhelm kit install KIT ZIP): "
            "fedhelm pki rotate switch"
        )
    else:
        kept = load_retired(folder.retired_roots)
        said = f"{where}: kits that trust the new root alone. Once they are installed, the rotation is over\n"
        said += _KEPT.format(number=len(kept)) if kept else _DISTRUSTED
    data = {"step": args.step, "prod": None if prod is None else str(prod)}
    return emit(data | ({} if begins else {"retired": len(load_retired(folder.retired_roots))}), fmt, said)


_KEPT = """\
Kits have {number} former root(s) in startup/retiredCA.pem, for jobs and provenance.json that were signed before, and
for nothing else. If a former root key may have been stolen: fedhelm pki rotate finish --distrust"""

_DISTRUSTED = """\
No former root counts for anything. What was signed with a certificate of one cannot be verified any more: sites refuse
jobs that were submitted before the switch and that they have not begun, so submit those again; fedhelm audit provenance
refuses the provenance.json of every model that was finished before the switch."""


def _passphrase(args: argparse.Namespace, fmt: Format) -> int:
    folder = ProjectFolder.open(args.workspace)
    old = _secrets(args, folder).passphrase
    what = "new passphrase of the root key"
    if args.new_passphrase_file in (None, _ASK):
        new = ask_secret(what, twice=True, least=ROOT_LEAST, option="--new-passphrase-file")
    else:
        new = read_secret(args.new_passphrase_file, what, least=ROOT_LEAST)
    files = change_passphrase(folder, old, new)
    said = "".join(f"{path}: encrypted under the new passphrase\n" for path in files)
    return emit({"files": [str(path) for path in files]}, fmt, said.rstrip("\n"))


_COMMANDS: dict[str, Callable[[argparse.Namespace, Format], int]] = {
    "list": _list,
    "renew": _renew,
    "revoke": _revoke,
    "request": _request,
    "approve": _approve,
    "rotate": _rotate,
    "passphrase": _passphrase,
}


def main(argv: list[str]) -> int:
    """Run ``fedhelm pki``; return its exit status."""
    fmt = format_of(argv)

    def body() -> int:
        args = _parser().parse_args(argv)
        with writing_passwords(getattr(args, "zip_passwords", None)) as args.made_passwords:
            return _COMMANDS[args.command](args, fmt)

    return guarded(body, fmt)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
