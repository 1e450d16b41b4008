"""The policy of a running participant: the signed one of its kit, tightened by its own file. Both may change."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from fedhelm.errors import FedhelmError, KitError
from fedhelm.security.authorization import Policy
from fedhelm.security.gates import AUTHORIZATION_FILE, read_local_policy, read_signed_policy

__all__ = ["OwnPolicy"]

_log = logging.getLogger("fedhelm.kit")

_Stamp = tuple[int, int, int] | None


class OwnPolicy:
    """Both files, read; and the second one once more whenever it changes.

    The signed file is read where the kit was just verified and not again: nobody has looked at it since.

    Args:
        root: the kit's folder, verified.
        missing: what a kit without the signed file goes by; None: there is none.

    Attributes:
        policy: The one in force.
        problem: Why the file that lies in ``local/`` now is not in force; None while it is.

    Raises:
        BadInput: a mistake in one of the files, with file, line and column.
        KitError: a file cannot be read, or the signed one is missing.
    """

    def __init__(self, root: Path, *, missing: Policy | None = None) -> None:
        self._root, self._path = root, root / "local" / AUTHORIZATION_FILE
        self._missing = missing
        self._lock = threading.Lock()
        self.problem: str | None = None
        self._gone = False
        self._seen = self._stamp()
        self._signed = read_signed_policy(root, missing=missing)
        self._own = read_local_policy(root)
        self.policy = self._both()

    def take(self) -> None:
        """Read both files again: another kit, verified, has taken the place of the former one in the same folder.

        Raises:
            KitError: a file cannot be read, or the signed one is missing.
            BadInput: a mistake in a file. What it said before stays in force; the other one counts as it is now.
        """
        with self._lock:
            self._signed = read_signed_policy(self._root, missing=self._missing)
            self.policy = self._both()
            stamp = self._stamp()
            self._own = read_local_policy(self._root)
            self.problem, self._seen, self._gone, self.policy = None, stamp, False, self._both()

    def look(self) -> Policy | None:
        """Look whether the file in ``local/`` has changed; return the policy if it is another one now. Blocking.

        A file with a mistake in it leaves the policy of before in force. One that is gone counts only when it is gone
        at the next look too: some editors take it away for a moment.
        """
        with self._lock:
            try:
                return self._look()
            except FedhelmError as error:
                problem = f"{error}; the policy of before stays in force"
                if problem != self.problem:
                    _log.error("%s", problem)
                self.problem = problem  # tried again at the next look: it may be on its way still
                return None

    def _look(self) -> Policy | None:
        stamp = self._stamp()
        gone, self._gone = self._gone, False
        if stamp == self._seen:
            self.problem = None
            return None
        if stamp is None and not gone:
            self._gone = True
            return None
        self._own = read_local_policy(self._root)
        self.problem, self._seen, self.policy = None, stamp, self._both()
        _log.info(
            "%s is %s now", self._path, "not there, and the kit's policy alone counts" if stamp is None else "in force"
        )
        return self.policy

    def _both(self) -> Policy:
        return self._signed if self._own is None else self._signed.tightened_by(self._own)

    def _stamp(self) -> _Stamp:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:  # not the same as no file: what it said stays in force
            raise KitError(f"{self._path}: cannot be read: {error.strerror}") from error
        return status.st_mtime_ns, status.st_ino, status.st_size
