"""One download across broken lines and failovers: where the bytes come from; ``transfer`` is where they go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedhelm.admin.deadline import Deadline
from fedhelm.admin.follow import Follower
from fedhelm.admin.network import AdminCalls
from fedhelm.admin.transfer import Meter, Progress, Staging
from fedhelm.errors import BadInput, Corrupt, NotFound
from fedhelm.v1 import admin_pb2

__all__ = ["Download"]

_LIMIT = 120.0
_DAMAGED = 2
_STALE = 5


class Download:
    """Fetches the files of one job.

    Args:
        follower: to ask the primary.
        deadline: for everything together.
        progress: is told (bytes done, bytes in all).
    """

    def __init__(self, follower: Follower, deadline: Deadline, progress: Progress | None = None) -> None:
        self._follower = follower
        self._deadline = deadline
        self._progress = progress

    def run(self, job: str, folder: Path) -> Path:
        """Fetch until everything is there; return ``folder/<job>``.

        Args:
            job: the whole id.
            folder: made if it does not exist.

        Raises:
            Corrupt: a file arrived damaged again and again.
            BadInput: the folder cannot be written.
        """
        stale = 0
        while True:
            manifest = self._prepare(job)
            try:
                staging = Staging(folder, job)
                self._fetch(staging, manifest)
                return staging.finish(manifest)
            except NotFound:
                # The server cannot serve this manifest any more (it was made elsewhere): ask for a new one.
                stale += 1
                if stale > _STALE:
                    raise
                self._deadline.check()
            except OSError as error:
                raise BadInput(f"{error.filename or folder}: {error.strerror}") from error

    def _prepare(self, job: str) -> admin_pb2.DownloadManifest:
        request = admin_pb2.JobRequest(job=job)
        return self._follower.ask(
            self._deadline, lambda stub, left: stub.prepare_download(request, timeout=left), limit=_LIMIT
        )

    def _fetch(self, staging: Staging, manifest: admin_pb2.DownloadManifest) -> None:
        damaged = 0
        while wanted := list(staging.wanted(manifest)):
            meter = Meter(sum(entry.size for entry in manifest.files), self._progress)
            meter.missing(sum(entry.size - offset for entry, offset in wanted))
            try:
                for entry, offset in wanted:
                    request = admin_pb2.DownloadFileRequest(
                        job=manifest.job, seq=manifest.seq, path=entry.path, offset=offset
                    )
                    if not self._fetch_file(staging, entry, request, meter.moved):
                        break
            except Corrupt:
                damaged += 1
                if damaged > _DAMAGED:
                    raise

    def _fetch_file(
        self,
        staging: Staging,
        entry: admin_pb2.DownloadEntry,
        request: admin_pb2.DownloadFileRequest,
        moved: Callable[[int], None],
    ) -> bool:
        """Go on with one file; False when the line broke before its end."""

        def receive(stub: AdminCalls, limit: float) -> None:
            staging.receive(entry, request.offset, stub.download_file(request, timeout=limit), moved)

        return self._follower.attempt(self._deadline, receive, limit=_LIMIT)
