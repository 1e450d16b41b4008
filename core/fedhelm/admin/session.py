"""A session with a federation: the same verbs and defaults as the console, for scripts and notebooks."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fedhelm.admin import decode
from fedhelm.admin.deadline import Deadline
from fedhelm.admin.follow import Note
from fedhelm.admin.models import Job, JobDetail, SignedIn
from fedhelm.admin.network import AdminCalls, Network, WireNetwork
from fedhelm.admin.system import TIMEOUT, SystemCalls
from fedhelm.clock import Clock, SystemClock
from fedhelm.errors import DeadlineExceeded, JobNotFound, Unreachable
from fedhelm.ids import JOB_ID, new_job_id, new_request_id

if TYPE_CHECKING:
    from fedhelm.admin.transfer import Progress
    from fedhelm.config.kit import Kit

__all__ = ["TIMEOUT", "JobHandle", "Session", "connect"]

_WATCH_LIMIT = 15.0
_SUBMIT_LIMIT = 15.0
_PREFIX = re.compile(r"[2-7a-z]{4,12}")


def _ignore(_note: Note) -> None:
    """Tell nobody."""


def connect(
    kit: str | Path, *, timeout: float | None = TIMEOUT, notice: Callable[[Note], None] | None = None
) -> Session:
    """Open an admin's kit, find the primary, log in by certificate.

    Args:
        kit: the admin's folder, the one that holds ``startup/``.
        timeout: seconds to wait for a primary; None for ever.
        notice: is told what happens while a call waits (following, electing).

    Raises:
        KitError: the kit is not what was provisioned.
        BadCertificate: expired, not valid yet, of another project.
        Unreachable: nobody answers.
        DeadlineExceeded: nobody led in time.
    """
    from fedhelm.config.kit import ADMIN_ROLES
    from fedhelm.security.kit import open_kit

    session = Session(open_kit(Path(kit), role=ADMIN_ROLES), notice=notice)
    try:
        session.sign_in(timeout=timeout)
    except BaseException:
        session.close()
        raise
    return session


class Session(SystemCalls):
    """Calls to a federation, each with one deadline, across failovers.

    Reads are asked again at the new primary; writes are repeated there with the same request id, so nothing happens
    twice. A ``timeout`` is in seconds and None means no limit; past it :class:`fedhelm.errors.DeadlineExceeded` is
    raised. Every call may also raise ``Unreachable`` (nobody answers at all) and ``NotAuthorised``. A job is named by
    its id or by a unique prefix of at least 4 characters.

    Args:
        kit: an opened admin's kit. Nothing is connected before the first call that needs it.
        network: for tests.
        clock: for tests.
        notice: is told what happens while a call waits.
        pause: waits so many seconds; for tests.
    """

    def __init__(
        self,
        kit: Kit,
        *,
        network: Network | None = None,
        clock: Clock | None = None,
        notice: Callable[[Note], None] | None = None,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        super().__init__(
            kit,
            network or WireNetwork(kit),
            clock or SystemClock(),
            pause=pause or threading.Event().wait,
            notice=notice or _ignore,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; ends ``events``."""
        self._follower.close()
        self._network.close()

    @property
    def signed_in(self) -> SignedIn | None:
        """What the primary said at login; None while there is no connection."""
        current = self._follower.current
        return None if current is None else current.signed_in

    def sign_in(self, *, timeout: float | None = TIMEOUT) -> SignedIn:
        """Log in now rather than at the first call."""
        return self._follower.connect(Deadline(self._clock, timeout)).signed_in

    # Jobs

    def submit(
        self, folder: str | Path, *, timeout: float | None = TIMEOUT, progress: Progress | None = None
    ) -> JobHandle:
        """Check a job's folder, upload it, sign it and make it a job: one job, however often the line breaks.

        Args:
            folder: the one that holds ``job.yaml``.
            timeout: seconds.
            progress: is told (bytes done, bytes in all); may be called from another thread.

        Raises:
            BadInput: the folder or its ``job.yaml`` is wrong; nothing was sent.
        """
        from fedhelm.admin.transfer import Meter
        from fedhelm.v1 import admin_pb2

        deadline = Deadline(self._clock, timeout)
        job, request_id = new_job_id(), new_request_id()
        # In the kit, so that what an interrupt leaves behind goes when the kit does.
        self.kit.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="submit-", dir=self.kit.run) as scratch:
            bundle = Path(scratch) / "bundle"
            name, digest = self._network.pack(Path(folder), bundle)

            def write(stub: AdminCalls, limit: float) -> str:
                meter = Meter(bundle.stat().st_size, progress)
                meter.missing(bundle.stat().st_size)
                ref = self._network.upload(stub, f"jobs/{job}/bundle", bundle, meter.moved)
                signed = self._network.sign_job(job, name, digest)  # each time: a server takes what is fresh
                request = admin_pb2.SubmitJobRequest(request_id=request_id, job=job, bundle=ref, submission=signed)
                return stub.submit_job(request, timeout=limit).job

            return JobHandle(self, self._follower.ask(deadline, write, limit=_SUBMIT_LIMIT))

    def jobs(self, *, prefix: str = "", limit: int = 0, timeout: float | None = TIMEOUT) -> list[Job]:
        """Return jobs, newest first.

        Args:
            prefix: only those whose id begins with it.
            limit: at most so many; 0 for all.
            timeout: seconds.
        """
        from fedhelm.v1 import admin_pb2

        request = admin_pb2.ListJobsRequest(limit=limit, prefix=prefix)
        reply = self._follower.ask(
            Deadline(self._clock, timeout), lambda stub, left: stub.list_jobs(request, timeout=left)
        )
        return [decode.job(message) for message in reply.jobs]

    def job(self, job: str, *, timeout: float | None = TIMEOUT) -> JobDetail:
        """Return everything known of one job.

        Raises:
            JobNotFound: no job has this id or prefix.
            Ambiguous: more than one has.
        """
        return self._show(_checked(job), Deadline(self._clock, timeout))

    def handle(self, job: str, *, timeout: float | None = TIMEOUT) -> JobHandle:
        """Return a handle on a job that exists."""
        return JobHandle(self, self._resolve(job, Deadline(self._clock, timeout)))

    def wait(
        self,
        job: str,
        *,
        timeout: float | None = None,
        changed: Callable[[JobDetail], None] | None = None,
    ) -> JobDetail:
        """Wait until a job has finished, however it ended.

        Args:
            job: id or prefix.
            timeout: seconds; none by default.
            changed: is called with each new state.
        """
        deadline = Deadline(self._clock, timeout)
        seen: JobDetail | None = None
        while True:
            state = self._show(_checked(job if seen is None else seen.job_id), deadline)
            if changed is not None and state != seen:
                changed(state)
            seen = state
            if state.finished:
                return state
            for newer in self._watch(state.job_id, deadline):
                if changed is not None and newer != seen:
                    changed(newer)
                seen = newer
                if newer.finished:
                    return newer

    def abort(self, job: str, *, reason: str = "", timeout: float | None = TIMEOUT) -> Job:
        """Abort a job; its state after that."""
        from fedhelm.v1 import admin_pb2

        deadline = Deadline(self._clock, timeout)
        request = admin_pb2.AbortJobRequest(
            request_id=new_request_id(), job=self._resolve(job, deadline), reason=reason
        )
        return decode.job(self._follower.ask(deadline, lambda stub, left: stub.abort_job(request, timeout=left)))

    def delete_job(self, job: str, *, timeout: float | None = TIMEOUT) -> str:
        """Delete the results and blobs of a job that has ended; return its id, which stays taken for ever.

        Raises:
            Conflict: it has not ended.
        """
        from fedhelm.v1 import admin_pb2

        deadline = Deadline(self._clock, timeout)
        request = admin_pb2.DeleteJobRequest(request_id=new_request_id(), job=self._resolve(job, deadline))
        self._follower.ask(deadline, lambda stub, left: stub.delete_job(request, timeout=left))
        return request.job

    def download(
        self,
        job: str,
        folder: str | Path | None = None,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Fetch a job's files into ``folder/<job_id>`` and return that path, absolute.

        The folder appears when everything is there and checked. What was fetched before an interruption is kept next
        to it and is not fetched again.

        Args:
            job: id or prefix.
            folder: where; the kit's ``transfer/`` if not given.
            timeout: seconds; none by default.
            progress: is told (bytes done, bytes in all).
        """
        from fedhelm.admin.download import Download

        deadline = Deadline(self._clock, timeout)
        target = Path(folder).absolute() if folder is not None else self.kit.transfer
        return Download(self._follower, deadline, progress).run(self._resolve(job, deadline), target)

    # Steps

    def _show(self, job: str, deadline: Deadline) -> JobDetail:
        from fedhelm.v1 import admin_pb2

        request = admin_pb2.JobRequest(job=job)
        return decode.detail(self._follower.ask(deadline, lambda stub, left: stub.show_job(request, timeout=left)))

    def _resolve(self, job: str, deadline: Deadline) -> str:
        if JOB_ID.fullmatch(job):
            return job
        return self._show(_checked(job), deadline).job_id

    def _watch(self, job: str, deadline: Deadline) -> Iterator[JobDetail]:
        """Yield changes for a while. Ends without an error when the line breaks: the caller asks for the state."""
        from fedhelm.v1 import admin_pb2

        connection = self._follower.connect(deadline)
        request = admin_pb2.JobRequest(job=job)
        try:
            for message in connection.stub.watch_job(request, timeout=deadline.within(_WATCH_LIMIT)):
                yield decode.detail(message)
        except DeadlineExceeded:
            deadline.check("the job has not finished")
        except Unreachable as lost:
            self._follower.lost(connection, lost, deadline)


class JobHandle:
    """One job of a session.

    Args:
        session: to ask.
        job_id: the whole id.
    """

    def __init__(self, session: Session, job_id: str) -> None:
        self._session = session
        self.job_id = job_id

    def __repr__(self) -> str:
        return f"JobHandle({self.job_id!r})"

    def status(self, *, timeout: float | None = TIMEOUT) -> JobDetail:
        """Return the job's present state."""
        return self._session.job(self.job_id, timeout=timeout)

    def wait(self, *, timeout: float | None = None) -> JobDetail:
        """Wait until it has finished, however it ended."""
        return self._session.wait(self.job_id, timeout=timeout)

    def abort(self, *, reason: str = "", timeout: float | None = TIMEOUT) -> Job:
        """Abort it."""
        return self._session.abort(self.job_id, reason=reason, timeout=timeout)

    def download(self, folder: str | Path | None = None, *, timeout: float | None = None) -> Path:
        """Fetch its files."""
        return self._session.download(self.job_id, folder, timeout=timeout)


def _checked(job: str) -> str:
    """Return a job's id or prefix if it can be one.

    Raises:
        JobNotFound: too short, or with other characters.
    """
    if not _PREFIX.fullmatch(job):
        raise JobNotFound(f"no job matches {job}", hint="list_jobs shows ids; their first 4 characters are enough")
    return job
