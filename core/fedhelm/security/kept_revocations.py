"""The list of revoked certificates as one participant keeps it: the newest it ever saw, verified, on disk.

Overseers hand lists on; nobody has to trust them for it. What the root did not sign, what is of another project
or is older than the one in force is refused, and the one in force stays.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from fedhelm.config.kit import Kit
from fedhelm.errors import BadCertificate, FedhelmError, KitError
from fedhelm.process import atomic_write
from fedhelm.security.revocation import MAX_BYTES, RevocationList

__all__ = ["REVOKED_FILE", "KeptRevocations"]

REVOKED_FILE: Final = "revoked.json"
"""Name of the file in ``run/`` that holds the list in force, as it was signed."""


class KeptRevocations:
    """The list in force at one participant. Methods may be called from several threads.

    Args:
        kit: the participant's kit: its project, its root, its ``run/``.

    Attributes:
        problem: Why the file that was found at start is not in force; None where it is, or there was none. The list in
            force is an empty one then, until somebody offers a newer one.
    """

    def __init__(self, kit: Kit) -> None:
        self._path = kit.run / REVOKED_FILE
        self._project, self._cluster = kit.project, kit.cluster
        self._roots = _read(kit.ca)
        self._lock = threading.Lock()
        self.problem: FedhelmError | None = None
        self._list, self._data = RevocationList(kit.project, kit.cluster), b""
        self._load()

    def _load(self) -> None:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            self.problem = KitError(f"{self._path} cannot be read: {error.strerror}")
            return
        try:
            self._list, self._data = self._parse(data), data
        except KitError as error:
            self.problem = KitError(f"{self._path}: {error}")

    def _parse(self, data: bytes) -> RevocationList:
        return RevocationList.parse(data, self._roots, self._project, self._cluster)

    @property
    def current(self) -> RevocationList:
        """The list in force; of version 0 where none was ever seen."""
        return self._list

    @property
    def signed(self) -> bytes:
        """The list in force as it was signed, to be handed on; empty where none was ever seen."""
        return self._data

    def trust(self, kit: Kit) -> None:
        """Verify with the roots of this kit from now on: it took the place of the former one."""
        roots = _read(kit.ca)
        with self._lock:
            self._roots = roots

    def offer(self, data: bytes) -> tuple[str, ...]:
        """Take a list that somebody handed on, if it is newer than the one in force; it is on disk when this returns.

        Returns:
            The serials that are revoked now and were not before: calls of theirs have to end.

        Raises:
            KitError: it is not a list that this project's root signed.
            FedhelmError: it cannot be written. It is in force all the same, until the participant ends.
        """
        with self._lock:
            added = self._take(data)
            if self._data != data:
                return ()
            try:
                self._path.parent.mkdir(mode=0o700, exist_ok=True)
                atomic_write(self._path, data, mode=0o644)
            except OSError as error:
                raise FedhelmError(f"{self._path} cannot be written: {error.strerror}") from error
        return added

    def read_again(self) -> tuple[str, ...]:
        """Take the list that another process of this participant has written, if it is newer than the one in force.

        Returns:
            As :meth:`offer`.

        Raises:
            KitError: the file cannot be read, or holds no list that this project's root signed.
        """
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise KitError(f"{self._path} cannot be read: {error.strerror}") from error
        with self._lock:
            try:
                return self._take(data)
            except KitError as error:
                raise KitError(f"{self._path}: {error}") from error

    def _take(self, data: bytes) -> tuple[str, ...]:
        new, former = self._parse(data), self._list
        if not new.newer_than(former):
            return ()
        self._list, self._data, self.problem = new, data, None
        return tuple(one.serial for one in new.entries if former.revoked(one.serial) is None)

    def check(self, serial: str) -> None:
        """Let a certificate pass that counts.

        Args:
            serial: hex, lower case, as ``Principal.serial``.

        Raises:
            BadCertificate: it was revoked; the message says of whom, when and why.
        """
        entry = self._list.revoked(serial)
        if entry is not None:
            reason = f": {entry.reason}" if entry.reason else ""
            raise BadCertificate(f"the certificate of {entry.role} {entry.name} was revoked on {entry.at[:10]}{reason}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}") from error
