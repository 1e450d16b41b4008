"""The seam between the admin library's decisions and the wire: servers, overseers, and the kit's key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fedhelm.config.kit import Kit, ServerAddress
    from fedhelm.v1 import admin_pb2, common_pb2
    from fedhelm.wire.overseer_api import OperateRequest

__all__ = ["AdminCalls", "Network", "OverseerCalls", "WireNetwork"]


class AdminCalls(Protocol):
    """The Admin service of one server. Errors are those of ``fedhelm.errors``; timeouts are seconds."""

    def challenge(self, timeout: float) -> admin_pb2.ChallengeReply:
        """Ask for a nonce to sign."""

    def login(self, request: admin_pb2.LoginRequest, timeout: float) -> admin_pb2.LoginReply:
        """Prove the key."""

    def missing_chunks(self, request: common_pb2.MissingChunksRequest, timeout: float) -> common_pb2.MissingChunksReply:
        """Ask which chunks the store does not have."""

    def put_blob(self, messages: Any, timeout: float | None = None) -> common_pb2.BlobRef:
        """Send a header and chunks."""

    def submit_job(self, request: admin_pb2.SubmitJobRequest, timeout: float) -> admin_pb2.SubmitJobReply:
        """Make an uploaded bundle a job; the same request id again gives the same answer."""

    def list_jobs(self, request: admin_pb2.ListJobsRequest, timeout: float) -> admin_pb2.ListJobsReply:
        """Return jobs, newest first."""

    def show_job(self, request: admin_pb2.JobRequest, timeout: float) -> admin_pb2.JobDetail:
        """Return one job, by its id or a unique prefix."""

    def watch_job(self, request: admin_pb2.JobRequest, timeout: float | None = None) -> Iterator[admin_pb2.JobDetail]:
        """Yield a job's state on every change, until it has finished."""

    def abort_job(self, request: admin_pb2.AbortJobRequest, timeout: float) -> admin_pb2.JobSummary:
        """Abort a job; the same request id again gives the same answer."""

    def delete_job(self, request: admin_pb2.DeleteJobRequest, timeout: float) -> common_pb2.Empty:
        """Delete a job that has ended; the same request id again does no harm."""

    def operate(self, request: admin_pb2.OperateRequest, timeout: float) -> admin_pb2.OperateReply:
        """Restart or shut down sites, or restart the server; the same request id again does nothing more."""

    def prepare_download(self, request: admin_pb2.JobRequest, timeout: float) -> admin_pb2.DownloadManifest:
        """Return the files of a job."""

    def download_file(self, request: admin_pb2.DownloadFileRequest, timeout: float | None = None) -> Iterator[bytes]:
        """Yield a file's bytes from an offset."""

    def check_status(self, timeout: float) -> admin_pb2.StatusReply:
        """Return the server's view of itself."""


class OverseerCalls(Protocol):
    """What an admin asks of the overseers; the models are those of ``fedhelm.wire.overseer_api``."""

    def primary(self, timeout: float | None = None) -> Any:
        """The ``PrimaryView``; NoPrimary while nobody leads, Unreachable when no overseer answers."""

    def servers(self, timeout: float | None = None) -> Iterable[Any]:
        """Each server as a ``ServerView``."""

    def history(self, timeout: float | None = None) -> Iterable[Any]:
        """The epochs, as ``HistoryEntry``."""

    def recent(self, limit: int, timeout: float | None = None) -> Iterable[Any]:
        """The last events that the overseer keeps, oldest first."""

    def promote(self, target: str, request_id: str, timeout: float | None = None) -> Any:
        """Ask for a planned switchover."""

    def explain(self, server: str, timeout: float | None = None) -> Any:
        """The ``ExplainView`` of a server."""

    def system(self, timeout: float | None = None) -> Any:
        """The ``SystemView``."""

    def pause(self, request: OperateRequest, timeout: float | None = None) -> None:
        """Pause failover."""

    def resume(self, request: OperateRequest, timeout: float | None = None) -> None:
        """Resume it."""

    def shutdown(self, request: OperateRequest, timeout: float | None = None) -> None:
        """Have every server shut down."""

    def remove(self, server: str, request: OperateRequest, timeout: float | None = None) -> None:
        """Forget a server that is down."""

    def revoke(self, data: bytes, timeout: float | None = None) -> Iterable[Any]:
        """Hand the list of revoked certificates to every overseer; a ``HandedOver`` of each."""

    def events(self, after: int | None = None) -> Iterator[Any]:
        """Yield each ``Event`` after this id (None: from now on), across lost connections, until ``close``."""

    def close(self) -> None:
        """Close the connections; ends ``events``."""


class Network(Protocol):
    """Everything outside this process, and the key that signs a login, a job or an order."""

    def dial(self, server: ServerAddress) -> tuple[AdminCalls, Any]:
        """Return the service of a server and the channel to close when it is no longer used."""

    def overseer(self) -> OverseerCalls:
        """Return the one client of the overseers."""

    def upload(
        self, stub: AdminCalls, owner: str, path: Path, moved: Callable[[int], None] | None = None
    ) -> common_pb2.BlobRef:
        """Send what the server does not have yet of a file; ``moved`` is told the bytes of each message."""

    def pack(self, folder: Path, target: Path) -> tuple[str, str]:
        """Check a job's folder and write its archive; BadInput names file, line and key.

        Returns:
            The job's name, and the digest of the archive's manifest: what is signed is what this side computed.
        """

    def close(self) -> None:
        """Close the overseers' client."""

    def sign(self, data: bytes) -> bytes:
        """Sign with the certificate's key."""

    def sign_job(self, job: str, name: str, digest: str) -> bytes:
        """Return the signed submission of a job with this id, name and digest of its bundle, as of now."""

    def sign_order(self, order: str, action: str, sites: tuple[str, ...], reason: str) -> bytes:
        """Return the signed order of this id to sites, as of now."""


class WireNetwork:
    """The real one. Everything heavy is imported where it is first used: a short command must start fast."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._overseer: OverseerCalls | None = None
        self._guard: Any = None

    def dial(self, server: ServerAddress) -> tuple[AdminCalls, Any]:
        """Open a channel to the server's admin port, with its name as the TLS name."""
        from fedhelm.wire import channels

        if self._guard is None:
            self._guard = channels.EpochGuard()
        channel = channels.sync_channel(self._kit, server.host, server.admin_port, server.name)
        return channels.AdminStub(channel, server.name, self._guard), channel

    def overseer(self) -> OverseerCalls:
        """Return the client, made at the first call."""
        if self._overseer is None:
            from fedhelm.wire.overseer_console import OverseerConsoleClient

            self._overseer = OverseerConsoleClient(self._kit)
        return self._overseer

    def upload(
        self, stub: AdminCalls, owner: str, path: Path, moved: Callable[[int], None] | None = None
    ) -> common_pb2.BlobRef:
        """Send the chunks that the server does not have."""
        from fedhelm.wire.bulk import ref_to_proto, upload_sync

        return ref_to_proto(upload_sync(stub, owner, path, moved))

    def pack(self, folder: Path, target: Path) -> tuple[str, str]:
        """Validate, pack, hash."""
        from fedhelm.job import bundle, load_job
        from fedhelm.wire.bulk import manifest_of

        name = load_job(folder).config.name
        bundle.pack(folder, target)
        return name, manifest_of(target).digest

    def sign(self, data: bytes) -> bytes:
        """Sign with the kit's key."""
        from fedhelm.security.pki import sign

        return sign(self._kit.key, data)

    def sign_job(self, job: str, name: str, digest: str) -> bytes:
        """Sign with the kit's key; the certificate travels with it."""
        from fedhelm.security.job_signing import sign_submission

        return sign_submission(self._kit, job, name, digest)

    def sign_order(self, order: str, action: str, sites: tuple[str, ...], reason: str) -> bytes:
        """Sign with the kit's key; the certificate travels with it."""
        from fedhelm.security.order_signing import SiteOrder, sign_order

        return sign_order(self._kit, SiteOrder(self._kit.project, self._kit.cluster, order, action, sites, reason))

    def close(self) -> None:
        """Close the overseers' client, if there is one."""
        if self._overseer is not None:
            self._overseer.close()
