"""Results on the site's disk until their round is closed, and the ids under which they are offered.

A result is two files below ``run/outbox/<job>/``: the tensors, then the meta file that makes it exist. Both are
durable before the script hears "accepted", so neither a killed agent nor a dead server costs a finished task.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from fedhelm.errors import BadInput, ProtocolError
from fedhelm.local.script_protocol import check_metrics
from fedhelm.plain_json import parse_plain
from fedhelm.process import atomic_write, fsync_dir
from fedhelm.v1 import fleet_pb2

__all__ = ["ContributionId", "Outbox", "Saved", "State", "id_of", "is_closed", "load_jobs"]

_log = logging.getLogger("fedhelm.client")

_KIND = re.compile(r"[a-z][a-z_]{0,31}")
_SUFFIX = ".result.json"
_TENSORS = ".safetensors"

State = Literal["saved", "held", "recorded", "gone"]
"""saved: to be offered; held: taken for its round, but not in the log (an ephemeral job's), so offered again to whoever
leads next; recorded: in the log, kept until the round is closed; gone: came too late, or was refused."""


@dataclass(frozen=True, order=True)
class ContributionId:
    """What names one contribution for ever; job and site are those of the outbox."""

    attempt: int
    step: int
    round: int
    kind: str
    sequence: int

    @property
    def key(self) -> str:
        """The id as a file's name."""
        return f"{self.attempt}-{self.step}-{self.round}-{self.kind}-{self.sequence}"


def id_of(attempt: int, task: fleet_pb2.Task) -> ContributionId:
    """Return the id of a task's contribution.

    Raises:
        BadInput: the task's kind is no plain word (it becomes part of a path).
    """
    if not _KIND.fullmatch(task.kind):
        raise BadInput(f"a task of kind {task.kind!r}")
    return ContributionId(attempt, task.step, task.round, task.kind, task.sequence)


def is_closed(contribution: ContributionId, closed: Iterable[fleet_pb2.ClosedRound]) -> bool:
    """Whether the log says that this contribution's round is over. Pure."""
    return any(
        one.step == contribution.step and one.kind == contribution.kind and contribution.round <= one.round
        for one in closed
    )


@dataclass(frozen=True)
class Saved:
    """A result on disk.

    Attributes:
        id: names it.
        file: its tensors, None if it has none.
        owner: under which its blob is uploaded.
        weight: in the average.
        metrics: names and numbers.
        lines: number of the last line that was logged before it: those go first.
        state: see :data:`State`.
        filters: what others may know of the privacy filters that were applied, in their order.
    """

    id: ContributionId
    file: Path | None
    owner: str
    weight: float
    metrics: Mapping[str, float]
    lines: int
    state: State = "saved"
    filters: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the meta file's content."""
        return {
            "v": 1,
            "id": dataclasses.asdict(self.id),
            "file": None if self.file is None else self.file.name,
            "owner": self.owner,
            "weight": self.weight,
            "metrics": dict(self.metrics),
            "lines": self.lines,
            "state": self.state,
            **({"filters": list(self.filters)} if self.filters else {}),
        }

    @classmethod
    def from_json(cls, folder: Path, data: Mapping[str, Any]) -> Saved:
        """Read a meta file's content.

        Raises:
            ValueError: it is damaged; also KeyError and TypeError.
        """
        if data["state"] not in get_args(State):
            raise ValueError(f"a state {data['state']!r:.40}")
        named, owner, weight, lines = _id_from_json(data["id"]), data["owner"], data["weight"], data["lines"]
        if data["file"] not in (None, f"{named.key}{_TENSORS}"):
            raise ValueError(f"a file {data['file']!r:.40}, which is not that of {named.key}")
        file = None if data["file"] is None else folder / f"{named.key}{_TENSORS}"
        if file is not None and not file.is_file():
            raise ValueError(f"{file.name} is missing")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not isinstance(owner, str) or not number or type(lines) is not int:
            raise ValueError("owner, weight or lines are none")
        try:
            metrics = check_metrics(data["metrics"])
        except ProtocolError as error:
            raise ValueError(error.message) from error
        filters = data.get("filters", [])
        if not isinstance(filters, list) or not all(isinstance(one, str) for one in filters):
            raise ValueError("filters are no list of texts")
        return cls(named, file, owner, weight, metrics, lines, data["state"], tuple(filters))


def _id_from_json(data: Any) -> ContributionId:
    found = ContributionId(**data)
    whole = all(type(one) is int and one >= 0 for one in (found.attempt, found.step, found.round, found.sequence))
    if not whole or not isinstance(found.kind, str) or not _KIND.fullmatch(found.kind):
        raise ValueError(f"not an id: {data!r:.80}")
    return found


class Outbox:
    """The results of one job at this site. Blocking: call it in a thread.

    Args:
        folder: ``run/outbox/<job>``; made if missing, durably, read if not.

    Attributes:
        damaged: what could not be read, for people; it was moved aside, and its task is run again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.damaged: list[str] = []
        _make_durably(folder)
        self._saved: dict[ContributionId, Saved] = {}
        self._over: set[ContributionId] = set()
        self._load()

    def _load(self) -> None:
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                saved = _read(path)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self._set_aside(path, error)
            else:
                self._saved[saved.id] = saved
        known = {saved.file for saved in self._saved.values()}
        for orphan in self._folder.glob(f"*{_TENSORS}"):
            if orphan not in known:
                orphan.unlink()  # the agent died before the meta file: its task is run again

    def _set_aside(self, meta: Path, error: Exception) -> None:
        tensors = meta.with_name(meta.name.removesuffix(_SUFFIX) + _TENSORS)
        for path in (tensors, meta):  # the meta file last: it names what is damaged
            with contextlib.suppress(FileNotFoundError):
                path.rename(path.with_name(path.name + ".damaged"))
        told = f"the result {meta.name} on this site's disk is damaged ({error}): moved aside, its task is run again"
        _log.error("%s: %s", self._folder, told)
        self.damaged.append(told)

    def __iter__(self) -> Any:
        return iter(sorted(self._saved.values(), key=lambda saved: saved.id))

    def to_offer(self) -> list[Saved]:
        """Return what no receipt was seen for, oldest first."""
        return [saved for saved in self if saved.state == "saved"]

    def held(self) -> list[Saved]:
        """Return what was taken for its round and is in no log, oldest first."""
        return [saved for saved in self if saved.state == "held"]

    def answered(self, contribution: ContributionId) -> bool:
        """Whether this task has been answered: then it is never handed out again."""
        return contribution in self._saved or contribution in self._over

    def save(self, result: Saved, source: Path | None) -> Saved:
        """Make a result durable.

        Args:
            result: its ``file`` is ignored.
            source: the script's file, on the same file system; it is moved.

        Raises:
            ProtocolError: the source is not a plain file.
            OSError: the disk is full; nothing was saved, the source is still there.
        """
        file = None
        if source is not None:
            file = self._folder / f"{result.id.key}{_TENSORS}"
            # Moved first, then looked at: here the script cannot put a link in the place of what was looked at.
            try:
                source.rename(file)
            except FileNotFoundError as error:
                raise ProtocolError(f"the result's file cannot be opened: {error.strerror}") from error
            try:
                _sync_plain_file(file)
            except BaseException:
                with contextlib.suppress(OSError):
                    file.rename(source)
                raise
            fsync_dir(self._folder)
        saved = dataclasses.replace(result, file=file)
        self._write(saved)
        return saved

    def mark(self, contribution: ContributionId, state: State) -> None:
        """Note what became of an offer. The tensors of one that is gone are deleted."""
        saved = self._saved.get(contribution)
        if saved is None:
            return
        self._write(dataclasses.replace(saved, state=state, file=None if state == "gone" else saved.file))
        if state == "gone" and saved.file is not None:
            saved.file.unlink(missing_ok=True)

    def close(self, closed: Iterable[fleet_pb2.ClosedRound]) -> list[ContributionId]:
        """Delete the results of closed rounds; return their ids."""
        closed = list(closed)
        over = [saved for saved in self if is_closed(saved.id, closed)]
        for saved in over:
            self._delete(saved)
        return [saved.id for saved in over]

    def reopen(self, task: ContributionId, *, again: bool) -> None:
        """The log asks for this task. Forget what it contradicts, which an older log said that a restore has replaced.

        Args:
            task: its round is open, and the log has no result of it from here.
            again: what is known of its result was said before: one that was recorded then is to be offered once more.
        """
        self._over.discard(task)
        known = self._saved.get(task)
        if again and known is not None and known.state == "recorded":
            self._write(dataclasses.replace(known, state="saved"))
        following = [one for one in self if _place(one.id) > _place(task)]  # of rounds that never were
        if again and known is not None and known.state == "gone":
            following.append(known)
        for saved in following:
            self._delete(saved)
            self._over.discard(saved.id)

    def clear(self) -> None:
        """Delete everything: the job is over."""
        for saved in list(self):
            self._delete(saved)

    def _delete(self, saved: Saved) -> None:
        self._over.add(saved.id)
        del self._saved[saved.id]
        (self._folder / f"{saved.id.key}{_SUFFIX}").unlink(missing_ok=True)
        if saved.file is not None:
            saved.file.unlink(missing_ok=True)

    def _write(self, saved: Saved) -> None:
        atomic_write(self._folder / f"{saved.id.key}{_SUFFIX}", json.dumps(saved.to_json()).encode())
        self._saved[saved.id] = saved


def _read(path: Path) -> Saved:
    saved = Saved.from_json(path.parent, parse_plain(path.read_bytes()))
    if path.name != f"{saved.id.key}{_SUFFIX}":
        raise ValueError(f"it is about {saved.id.key}")
    return saved


def _place(contribution: ContributionId) -> tuple[int, int, int]:
    return contribution.attempt, contribution.step, contribution.round


def _make_durably(folder: Path) -> None:
    """Make a folder and those above it that are missing, each name in its parent durable."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
        fsync_dir(one.parent)


def _sync_plain_file(path: Path) -> None:
    # The name comes from user code: a link could lead to this participant's key.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ProtocolError(f"the result's file cannot be opened: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or os.fstat(fd).st_nlink != 1:
            raise ProtocolError("the result's file is not a plain file")
        os.fsync(fd)
    finally:
        os.close(fd)


def load_jobs(outbox_dir: Path) -> list[str]:
    """Return the ids of jobs that have unfinished business on this site's disk."""
    if not outbox_dir.is_dir():
        return []
    return sorted(folder.name for folder in outbox_dir.iterdir() if folder.is_dir())
