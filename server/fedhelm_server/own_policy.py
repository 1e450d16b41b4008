"""The policy of a running server: the signed one of its kit, tightened by its own file, which may change meanwhile."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from fedhelm.errors import FedhelmError
from fedhelm.security.authorization import Policy
from fedhelm.security.gates import AUTHORIZATION_FILE, read_local_policy, read_signed_policy

__all__ = ["OwnPolicy"]

_log = logging.getLogger("fedhelm.server")

_Stamp = tuple[int, int, int] | None


class OwnPolicy:
    """Both files, read; and the second one once more whenever it changes.

    The signed file is read where the kit was just verified and not again: nobody has looked at it since.

    Args:
        root: the kit's folder, verified.

    Attributes:
        policy: The one in force.
        problem: Why the file that lies in ``local/`` now is not in force; None while it is.

    Raises:
        BadInput: a mistake in one of the files, with file, line and column.
        KitError: a file cannot be read, or the signed one is missing.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._path = root, root / "local" / AUTHORIZATION_FILE
        self.problem: str | None = None
        self._gone = False
        self._seen = self._stamp()
        self._signed = read_signed_policy(root)
        self.policy = self._with_own()

    def look(self) -> Policy | None:
        """Look whether the file in ``local/`` has changed; return the policy if it is another one now. Blocking.

        A file with a mistake in it leaves the policy of before in force. One that is gone counts only when it is gone
        at the next look too: some editors take it away for a moment.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            self._gone = False
            return None
        if stamp is None and not self._gone:
            self._gone = True
            return None
        self._gone = False
        try:
            policy = self._with_own()
        except FedhelmError as error:
            problem = f"{error}; the policy of before stays in force"
            if problem != self.problem:
                _log.error("%s", problem)
            self.problem = problem  # tried again at the next look: it may be on its way still
            return None
        self.problem, self._seen, self.policy = None, stamp, policy
        _log.info(
            "%s is %s now", self._path, "not there, and the kit's policy alone counts" if stamp is None else "in force"
        )
        return policy

    def _with_own(self) -> Policy:
        own = read_local_policy(self._root)
        return self._signed if own is None else self._signed.tightened_by(own)

    def _stamp(self) -> _Stamp:
        with contextlib.suppress(FileNotFoundError):
            status = self._path.stat()
            return status.st_mtime_ns, status.st_ino, status.st_size
        return None
