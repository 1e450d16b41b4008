"""The passphrase of a project's private keys: given to a root key that had none, or changed."""

from __future__ import annotations

import contextlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fedhelm.errors import KitError
from fedhelm.process import atomic_write
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.security.pki import key_to_pem, load_key

__all__ = ["change_passphrase"]


def change_passphrase(folder: ProjectFolder, old: bytes | None, new: bytes) -> list[Path]:
    """Encrypt every private key of the project's state under a new passphrase.

    The root key comes last: a run that was broken off is done again with the same two passphrases.

    Args:
        folder: the project.
        old: what opens the root key now; None where it is not encrypted.
        new: what is to open it.

    Returns:
        The files that were written.

    Raises:
        KitError: ``old`` does not open the root key; nothing is written then.
    """
    with folder.locked():
        root = folder.state / "rootCA.key"
        load_key(root.read_bytes(), str(root), old)
        kept = sorted((folder.state / "keys").glob("*.key"))
        following = folder.state / "rootCA.next.key"
        paths = [*kept, *([following] if following.is_file() else []), root]
        keys = [(path, _opened(path, old, new)) for path in paths]
        encrypted = [(path, key_to_pem(key, new)) for path, key in keys if key is not None]
        for path, pem in encrypted:
            atomic_write(path, pem, mode=0o600)
    return [path for path, _ in encrypted]


def _opened(path: Path, *passphrases: bytes | None) -> ec.EllipticCurvePrivateKey | None:
    """Return the key; None for one that was kept under a passphrase of long ago, which stays as it is."""
    pem = path.read_bytes()
    for one in passphrases:
        with contextlib.suppress(KitError):
            return load_key(pem, str(path), one)
    return None
