"""``fedhelm kit unpack``: a participant's first kit out of its zip, encrypted or not, and checked."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from fedhelm.config.kit import ADMIN_ROLES, Kit, read_kit
from fedhelm.errors import FedhelmError, KitError, WorkspaceExists
from fedhelm.process import fsync_dir
from fedhelm.provision.kit_source import read_startup
from fedhelm.provision.kit_texts import local_texts
from fedhelm.provision.kits import file_mode
from fedhelm.security.pki import load_certificate, load_key
from fedhelm.security.signing import verify_startup

__all__ = ["unpack"]


def unpack(source: Path, into: Path, password: str | None = None, *, key: Path | None = None) -> Kit:
    """Write the kit of a zip into ``into/<participant>``, all of it or nothing; return it.

    Its files are those that its root signed, each of them. Whose root that is, nobody here can know: the zip has to
    come from somebody who is trusted.

    Args:
        source: the zip, or an unpacked kit.
        into: the folder to make it in, which exists.
        password: of the zip.
        key: the private key that belongs into a kit that was made without one.

    Raises:
        NotFound: there is no such zip.
        KitError: no kit, damaged, changed, or the password is missing or wrong; or the key does not belong into it.
        WorkspaceExists: the participant's folder is there already.
        FedhelmError: the operating system refuses.
    """
    files = read_startup(source, password)
    draft = into / f".kit.{secrets.token_hex(4)}.tmp"
    try:
        startup = draft / "startup"
        startup.mkdir(mode=0o700, parents=True)
        draft.chmod(0o700)
        for name, data in files.items():
            _write(startup / name, data, file_mode(name))
        kit = read_kit(draft)
        verify_startup(startup)
        if key is not None:
            _write(kit.key, _own_key(kit, key), 0o600)
        (draft / "local").mkdir(mode=0o700)
        if kit.role in ADMIN_ROLES:
            (draft / "transfer").mkdir(mode=0o700)
        for name, text in local_texts(kit.name, kit.role).items():
            _write(draft / "local" / name, text.encode(), 0o644)
        return _in_place(draft, into / kit.name)
    except OSError as error:
        raise FedhelmError(f"{error.filename or into}: {error.strerror}", hint="nothing was left half done") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _own_key(kit: Kit, path: Path) -> bytes:
    if kit.key.exists():
        raise KitError(f"the kit of {kit.name} has its key", hint="leave --key out")
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise KitError(f"{path}: {error.strerror}") from error
    certificate = load_certificate(kit.cert.read_bytes(), kit.cert.name)
    if load_key(pem, str(path)).public_key() != certificate.public_key():
        raise KitError(f"{path} does not belong to {kit.cert.name} of the kit of {kit.name}")
    return pem


def _in_place(draft: Path, root: Path) -> Kit:
    if root.exists():
        raise WorkspaceExists(f"{root} exists", hint=f"fedhelm kit install {root} ZIP puts a newer kit in place")
    fsync_dir(draft)
    draft.rename(root)
    fsync_dir(root.parent)
    return read_kit(root)


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask
        file.write(data)
        file.flush()
        os.fsync(descriptor)
