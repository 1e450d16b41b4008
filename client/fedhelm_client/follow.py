"""Which server a site follows. Pure: events in, a new value out; no clock, no network.

A server is followed while its stream is open and it has said that *its own* fence, of the highest epoch this site
knows, is in the log. Epochs never decrease; they rise only by what a server says, because a server says so only after
the fence is in the log.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from fedhelm.errors import ProtocolError
from fedhelm.plain_json import parse_plain
from fedhelm.process import atomic_write

__all__ = ["Following", "load_epoch", "save_epoch"]

_EPOCHS = 2**63
"""More than there can be: an epoch is a 64-bit number on the wire."""

_log = logging.getLogger("fedhelm.client")


@dataclass(frozen=True)
class Following:
    """What a site knows about its servers.

    Attributes:
        cluster: the id in the signed kit.
        highest: the highest epoch that a server proved.
        proved: server -> the epoch under which it said that it leads; open streams only.
        seq: log position of the newest assignment taken, within ``highest``.
    """

    cluster: str
    highest: int = 0
    proved: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    seq: int = -1

    @property
    def leader(self) -> str | None:
        """The server to follow now, None while nobody is known to lead."""
        for server, epoch in self.proved.items():
            if epoch == self.highest:
                return server
        return None

    def welcome(self, server: str, says: str, cluster: str, epoch: int, *, leading: bool) -> Following:
        """Take a stream's first message.

        Args:
            server: whom the kit says we dialled.
            says: what the server calls itself.
            cluster: its federation.
            epoch: of the last fence it has seen in the log.
            leading: that fence is its own and it serves.

        Raises:
            ProtocolError: it belongs to another federation or is another server.
        """
        if cluster != self.cluster:
            raise ProtocolError(
                f"{server} belongs to another federation: cluster {cluster}, the kit's is {self.cluster}"
            )
        if says != server:
            raise ProtocolError(f"{server} calls itself {says}")
        return self.announce(server, epoch) if leading else self._raise(epoch).gone(server)

    def announce(self, server: str, epoch: int) -> Following:
        """Take a server's word that its fence of this epoch is in the log and that it serves."""
        # An old epoch is kept too: it is simply not the highest, so its server is not followed.
        proved = MappingProxyType({**self.proved, server: epoch})
        return dataclasses.replace(self._raise(epoch), proved=proved)

    def gone(self, server: str) -> Following:
        """The stream to this server has ended."""
        return dataclasses.replace(
            self, proved=MappingProxyType({name: epoch for name, epoch in self.proved.items() if name != server})
        )

    def assignment(self, server: str, epoch: int, seq: int) -> tuple[Following, bool]:
        """Decide whether an assignment counts: only the primary's, and none that is older than one already taken."""
        if epoch < self.highest:
            return self, False
        view = self.announce(server, epoch)
        if seq < view.seq:
            return view, False
        return dataclasses.replace(view, seq=seq), True

    def _raise(self, epoch: int) -> Following:
        if epoch <= self.highest:
            return self
        return dataclasses.replace(self, highest=epoch, seq=-1)


def load_epoch(path: Path, project: str, cluster: str) -> int:
    """Return the highest epoch this site has seen in this federation; 0 if the file is missing or of another one."""
    try:
        data = parse_plain(path.read_bytes())
        if data["project"] != project or data["cluster"] != cluster:
            return 0
        if type(epoch := data["epoch"]) is int and 0 <= epoch < _EPOCHS:
            return epoch
        _log.warning("%s has no epoch: the servers will say it again", path)
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError):
        _log.warning("%s cannot be read: the servers will say the epoch again", path)
    return 0


def save_epoch(path: Path, project: str, cluster: str, epoch: int) -> None:
    """Remember the highest epoch for the next start."""
    atomic_write(path, json.dumps({"project": project, "cluster": cluster, "epoch": epoch}).encode())
