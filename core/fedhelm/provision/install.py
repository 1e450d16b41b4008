"""``fedhelm kit install``: put a newer kit in the place of the one that is there, while its participant runs.

The new ``startup/`` is written beside the old one, verified, and exchanged with it in one step of the file system. A
crash at any point leaves the old one or the new one. ``local/``, ``run/`` and all else stay as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import getpass
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fedhelm.clock import Clock
from fedhelm.config.kit import CERT_STEM, Kit, read_kit
from fedhelm.errors import Conflict, FedhelmError, KitError, Refused
from fedhelm.output import CommandParser, add_output_option, emit, format_of, guarded
from fedhelm.process import fsync_dir
from fedhelm.provision.kit_source import read_startup
from fedhelm.provision.unpack import unpack
from fedhelm.security.kit import open_kit, remember_version
from fedhelm.security.pki import load_certificate, load_key
from fedhelm.security.reloading import KitMark, check_successor, replaces
from fedhelm.security.signing import SIGNATURE_FILE

__all__ = ["Installed", "exchange", "install", "main"]

_DRAFT: Final = ".startup.new"
_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100


@dataclasses.dataclass(frozen=True)
class Installed:
    """What an installation did: the kit that lies there now, and the versions before and after."""

    kit: Kit
    before: int
    after: int

    @property
    def changed(self) -> bool:
        """Whether another kit lies there now."""
        return self.before != self.after


def exchange(one: Path, other: Path) -> None:
    """Exchange two folders in one step, so that each name is there at any time.

    Where the file system cannot do that (NFS), two renames do it: a crash between them leaves ``one`` without a folder,
    and the next installation puts it right.

    Raises:
        OSError: it cannot be done; both are where they were.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP):
        raise OSError(number, os.strerror(number), str(one))
    aside = other.with_name(other.name + ".former")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"{root}: another installation is on its way") from None
        yield
    finally:
        os.close(folder)


def install(
    root: Path,
    source: Path,
    *,
    password: str | None = None,
    key: Path | None = None,
    clock: Clock | None = None,
    swap: Callable[[Path, Path], None] = exchange,
) -> Installed:
    """Replace the ``startup/`` of the kit at ``root`` by that of ``source``.

    Args:
        root: the participant's folder.
        source: the new kit: its zip, or its folder.
        password: of the zip.
        key: the private key of the new certificate, where neither the new kit nor the old one has it.
        clock: for the certificates' validity.
        swap: exchanges two folders.

    Raises:
        KitError: the new kit is damaged, older, of somebody else, not signed by the root that is trusted here, or no
            key belongs to its certificate.
        BadCertificate: its certificate is not valid.
        Refused: a kit of the same version with other contents lies here.
        NotFound: there is nothing at ``source``.
        Conflict: another installation is on its way.
    """
    if not root.is_dir():
        raise KitError(f"{root} is no folder", hint="a first kit is unpacked there")
    files = read_startup(source, password)
    with _alone(root):
        _recover(root)
        old = read_kit(root)
        before = KitMark.of(old)
        draft = old.root / _DRAFT
        try:
            _write_draft(draft / "startup", _with_key(files, old, key))
            new = open_kit(draft, clock=clock)
            check_successor(new, old.ca.read_bytes())
            after = KitMark.of(new)
            if replaces(after, before):
                if after.version == before.version:
                    raise Refused(f"{root}: another kit of the same version, {after.version}, lies there already")
                swap(old.startup, draft / "startup")
                fsync_dir(old.root)
        except OSError as error:
            raise FedhelmError(f"{error.filename or draft}: {error.strerror}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        kit = read_kit(root)
        remember_version(kit, after.version)
    return Installed(kit, before.version, after.version)


def _recover(root: Path) -> None:
    """Finish what a crash between two renames left: the former folder goes back, the new one is installed again."""
    former = root / _DRAFT / "startup.former"
    if not (root / "startup").exists() and former.is_dir():
        former.rename(root / "startup")
    shutil.rmtree(root / _DRAFT, ignore_errors=True)


def _with_key(files: dict[str, bytes], old: Kit, key: Path | None) -> dict[str, bytes]:
    """Add the key of a kit that was made without one: the one that was named, or else the one that is there."""
    stem = CERT_STEM[old.role]
    name = f"{stem}.key"
    if name in files or f"{stem}.crt" not in files:
        return files
    path = key or old.key
    certificate = load_certificate(files[f"{stem}.crt"], f"{stem}.crt of the new kit")
    try:
        pem = path.read_bytes()
    except OSError as error:
        hint = "--key FILE names the key that fedhelm pki request made"
        raise KitError(f"the new kit has no key, and {path}: {error.strerror}", hint=hint) from error
    if load_key(pem, str(path)).public_key() != certificate.public_key():
        hint = "--key FILE names the key that fedhelm pki request made"
        raise KitError(f"the new kit has no key, and {path} does not belong to its certificate", hint=hint)
    return {**files, name: pem}


def _write_draft(folder: Path, files: dict[str, bytes]) -> None:
    folder.parent.mkdir(mode=0o700)
    folder.mkdir(mode=0o700)
    for name, data in files.items():
        path = folder / name
        mode = {".key": 0o600, ".pfx": 0o600, ".sh": 0o755}.get(path.suffix, 0o644)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    if SIGNATURE_FILE not in files:
        raise KitError(f"the new kit has no {SIGNATURE_FILE}")
    fsync_dir(folder)


def _parser() -> CommandParser:
    parser = CommandParser(prog="fedhelm kit", description="Unpack or replace a participant's kit.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser(
        "install",
        help="put a newer kit in place; the participant may run",
        description="Verify a newer kit of the same participant and put it in place of the one that is there.",
        allow_abbrev=False,
    )
    one.add_argument("kit", type=Path, metavar="KIT", help="the participant's folder")
    one.add_argument("source", type=Path, metavar="ZIP|FOLDER", help="the new kit")
    first = commands.add_parser(
        "unpack",
        help="make a participant's first kit of its zip",
        description="Check a kit's zip, encrypted or not, and write it into DIR/PARTICIPANT.",
        allow_abbrev=False,
    )
    first.add_argument("source", type=Path, metavar="ZIP", help="the kit")
    first.add_argument(
        "-w", "--workspace", type=Path, default=Path(), metavar="DIR", help="default: the current folder"
    )
    for each in (one, first):
        each.add_argument("--password-file", type=Path, metavar="FILE", help="its first line is the zip's password")
        each.add_argument("--ask-password", action="store_true", help="ask for the zip's password")
        each.add_argument("--key", type=Path, metavar="FILE", help="the key that fedhelm pki request made")
    for each in (one, first, parser):
        add_output_option(each)
    return parser


def _password(args: argparse.Namespace) -> str | None:
    if args.password_file is not None:
        try:
            return str(args.password_file.read_text().partition("\n")[0])
        except (OSError, UnicodeDecodeError) as error:
            raise KitError(f"{args.password_file} cannot be read as text") from error
    return getpass.getpass("Password of the zip: ", sys.stderr) if args.ask_password else None


def main(argv: list[str]) -> int:
    """Run ``fedhelm kit``; return its exit status."""
    fmt = format_of(argv)

    def body() -> int:
        args = _parser().parse_args(argv)
        if args.command == "unpack":
            kit = unpack(args.source, args.workspace, _password(args), key=args.key)
            said = f"{kit.name}: its kit is in {kit.root}{_about(args.source, kit)}"
            return emit({"kit": str(kit.root), "name": kit.name, "role": kit.role}, fmt, said)
        done = install(args.kit, args.source, password=_password(args), key=args.key)
        data = {
            "kit": str(done.kit.root),
            "name": done.kit.name,
            "role": done.kit.role,
            "before": done.before,
            "after": done.after,
        }
        said = (
            f"{done.kit.name}: version {done.after} of its kit is in {done.kit.root} now (it was {done.before})"
            if done.changed
            else f"{done.kit.name}: version {done.after} of its kit is in {done.kit.root} already"
        )
        return emit(data, fmt, said + _about(args.source, done.kit))

    return guarded(body, fmt)


def _about(source: Path, kit: Kit) -> str:
    """Return a line about what stays behind, for a person; nothing where that is not secret."""
    if source.is_dir() or not kit.key.exists():
        return ""
    return f"\n{source} may hold the same private key: delete it, or keep it where no job's script can read it"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
