"""The jobs that have ended at this site: none of them runs here again, whatever a server says later.

``run/ended_jobs.txt`` has one line for each, its id and when it ended. A site that takes an ended job again would train
on what is wanted by nobody who submitted it; so only this site's own operator allows it, by deleting the line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Final

from fedhelm.clock import Clock, iso
from fedhelm.config.kit import Kit
from fedhelm.errors import BadInput, BadSignature, FedhelmError, NotAuthorised
from fedhelm.ids import JOB_ID
from fedhelm.process import atomic_write, fsync_dir
from fedhelm.security.statements import moment
from fedhelm_client.folders import JobFolder, outbox_dir

__all__ = ["ENDED_FILE", "MOST", "EndedJobs", "ended_before"]

_log = logging.getLogger("fedhelm.client")

ENDED_FILE: Final = "ended_jobs.txt"
"""Name of the file in ``run/``."""

MOST: Final = 100_000
"""Jobs that are remembered by name when an agent starts. Of older ones the time is kept: what was signed before it is
not taken in."""

_FLOOR: Final = "before"
_SAMPLE: Final = "k7m3tq4w2zpx 2026-11-22T15:04:05.123Z"


class EndedJobs:
    """One site's. :meth:`add` may be called in a thread.

    Args:
        path: the file; missing, it is taken for empty. A last line that a power cut tore off is no line.
        clock: for the time of an end.
        most: jobs that are remembered by name.

    Raises:
        FedhelmError: the file is there and cannot be read; or a line of it is none: ``BadInput`` says which.
    """

    def __init__(self, path: Path, clock: Clock, most: int = MOST) -> None:
        self._path = path
        self._clock = clock
        self._most = most
        self._ended: dict[str, str] = {}
        self._floor = ""
        self._pending: dict[str, str] = {}
        self._writing = threading.Lock()
        try:
            text = path.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise FedhelmError(f"{path} cannot be read: {error.strerror}") from error
        self._read(text)

    def _read(self, text: str) -> None:
        lines = text.splitlines()
        torn = bool(text) and not text.endswith("\n")
        for number, line in enumerate(lines, start=1):
            name, _, time = line.strip().partition(" ")
            if moment(time) is not None and name == _FLOOR:
                self._floor = max(self._floor, time)
            elif moment(time) is not None and JOB_ID.fullmatch(name):
                self._ended[name] = time
            elif torn and number == len(lines):
                _log.warning("%s: the last line was torn off and counts for nothing", self._path)
            elif name:  # what it said must not be forgotten in silence
                raise BadInput(
                    f"{self._path}:{number}: {line!r:.80} is not a job and a time, such as {_SAMPLE}",
                    hint="put it right; or delete the line, and that job may run here once more",
                )
        if torn or len(self._ended) > self._most:
            with contextlib.suppress(OSError):  # the next agent tries again
                self._shorten()

    def _shorten(self) -> None:
        """Forget the oldest names, and take nothing that was signed before the newest of these ended."""
        by_age = sorted(self._ended.items(), key=lambda one: one[1])
        gone = by_age[: max(0, len(by_age) - self._most)]
        floor = max([self._floor, *(time for _, time in gone)])
        kept = dict(by_age[len(gone) :])
        lines = [f"{_FLOOR} {floor}\n"] if floor else []
        lines += [f"{job} {time}\n" for job, time in kept.items()]
        atomic_write(self._path, "".join(lines).encode())
        self._ended, self._floor, self._pending = kept, floor, {}

    def begin(self, jobs: Collection[str]) -> None:
        """Make the file, with the jobs of which it is known otherwise that they have ended. Blocking.

        Raises:
            FedhelmError: it cannot be written.
        """
        time = iso(self._clock.utcnow())
        self._ended |= dict.fromkeys(jobs, time)
        try:
            self._shorten()
        except OSError as error:
            raise FedhelmError(f"{self._path} cannot be written: {error.strerror}") from error

    def __contains__(self, job: str) -> bool:
        return job in self._ended

    def add(self, job: str) -> None:
        """Remember an end. It counts at once, and across any crash from when this returns. Blocking.

        Raises:
            OSError: it cannot be written: it counts until this agent ends, and is written with the next one.
        """
        with self._writing:
            if job not in self._ended:
                self._ended[job] = self._pending[job] = iso(self._clock.utcnow())
            if self._pending:
                _append(self._path, "".join(f"{one} {time}\n" for one, time in self._pending.items()).encode())
                self._pending = {}

    def check(self, job: str) -> None:
        """Let a job pass that has not ended here.

        Raises:
            NotAuthorised: it has; the message says when, the hint what the site's operator can do.
        """
        time = self._ended.get(job)
        if time is not None:
            raise NotAuthorised(
                f"job {job} ended at this site at {time} and is not run again",
                hint=f"after a restore of the store: delete its line in {self._path} and restart this site",
            )

    def check_age(self, job: str, signed: str) -> None:
        """Let a job pass that was signed since this site remembers which ones have ended.

        Args:
            job: its id.
            signed: when its submitter signed it, ISO 8601.

        Raises:
            BadSignature: it is older.
        """
        if self._floor and signed <= self._floor:
            raise BadSignature(
                f"job {job} was signed at {signed}; this site has forgotten which jobs ended before {self._floor}",
                hint="submit it again",
            )


def ended_before(kit: Kit) -> list[str]:
    """Return the jobs that ended here as far as their folders tell: code was there, and no outbox is left; blocking.

    For a site that was upgraded: its agent of before left the bundle of a job that was over, which looks like one that
    was admitted.
    """
    jobs = kit.run / "jobs"
    if not jobs.is_dir():
        return []
    outbox = outbox_dir(kit)
    names = sorted(path.name for path in jobs.iterdir() if JOB_ID.fullmatch(path.name))
    over = [JobFolder.of(kit, name) for name in names if not (outbox / name).exists()]
    return [one.root.name for one in over if one.bundle.exists() or one.log.exists()]


def _append(path: Path, line: bytes) -> None:
    """Add a line durably, or nothing."""
    fresh = not path.exists()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    before = os.fstat(fd).st_size
    try:
        rest = line
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, before)
        raise
    finally:
        os.close(fd)
    if fresh:
        fsync_dir(path.parent)
