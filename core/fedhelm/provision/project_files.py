"""The files of a provisioned project: where they lie, and how each is read and replaced."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhelm.errors import KitError
from fedhelm.process import atomic_write, fsync_dir
from fedhelm.security.retired import RETIRED_FILE

__all__ = ["ProjectFiles"]

_PROD = re.compile(r"prod_([0-9]{2,6})")


class ProjectFiles:
    """The files below ``workspace/<project>``. Every one of ``state/`` is replaced atomically.

    Attributes:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def state(self) -> Path:
        """What must not be lost, and what nobody else may read."""
        return self.root / "state"

    @property
    def resources(self) -> Path:
        """The project file as it was used, and what belongs to the project as a whole."""
        return self.root / "resources"

    @property
    def project_file(self) -> Path:
        """The project file as the last run used it."""
        return self.resources / "project.yml"

    @property
    def trust(self) -> Path:
        """The root certificate; two while the root is rotated, the signing one first."""
        return self.state / "rootCA.pem"

    @property
    def retired_roots(self) -> bytes:
        """Root certificates (PEM) that were rotated away and are still good for what was signed before."""
        try:
            return (self.state / RETIRED_FILE).read_bytes()
        except FileNotFoundError:
            return b""

    def write_retired_roots(self, pem: bytes) -> None:
        """Replace them; nothing: there are none."""
        path = self.state / RETIRED_FILE
        if pem:
            atomic_write(path, pem, mode=0o644)
        else:
            path.unlink(missing_ok=True)
            fsync_dir(self.state)

    def prod(self, number: int) -> Path:
        """Return the path of ``prod_NN``, which need not exist."""
        return self.root / f"prod_{number:02d}"

    @property
    def prods(self) -> list[Path]:
        """The ``prod_NN`` that are there, oldest first."""
        found = {int(match[1]): path for path in self.root.iterdir() if (match := _PROD.fullmatch(path.name))}
        return [found[number] for number in sorted(found)]

    # -- the root, and what it signed

    @property
    def root_is_encrypted(self) -> bool:
        """Whether the root key needs a passphrase."""
        return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in self._read_bytes("rootCA.key")

    def revocations(self) -> bytes | None:
        """Return the signed list, or None where nothing was ever revoked."""
        try:
            return (self.state / "revoked.json").read_bytes()
        except FileNotFoundError:
            return None

    def write_revocations(self, data: bytes) -> None:
        """Replace the signed list."""
        atomic_write(self.state / "revoked.json", data, mode=0o644)

    # -- keys that somebody asked to keep

    def kept_key(self, name: str) -> bytes | None:
        """Return a participant's private key (PEM, as it was kept), or None."""
        try:
            return (self.state / "keys" / f"{name}.key").read_bytes()
        except FileNotFoundError:
            return None

    def keep_key(self, name: str, pem: bytes) -> None:
        """Keep a participant's private key, which the caller has encrypted where the root's is."""
        (self.state / "keys").mkdir(mode=0o700, exist_ok=True)
        atomic_write(self.state / "keys" / f"{name}.key", pem, mode=0o600)

    def forget_key(self, name: str) -> None:
        """Remove a key that was kept, if one was: its participant has another now that only it knows."""
        (self.state / "keys" / f"{name}.key").unlink(missing_ok=True)

    # -- files

    def _read_bytes(self, name: str) -> bytes:
        path = self.state / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise KitError(f"{path}: {error.strerror}", hint="restore the project's state from a backup") from error

    def _write(self, name: str, body: Mapping[str, Any]) -> None:
        atomic_write(self.state / name, json.dumps(body, indent=2).encode() + b"\n", mode=0o600)
