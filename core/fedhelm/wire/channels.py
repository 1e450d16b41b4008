"""Channels to servers, and typed stubs that raise Fedhelm's own errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import grpc
import grpc.aio

import fedhelm.wire
from fedhelm.config.kit import Kit
from fedhelm.errors import NotPrimary
from fedhelm.security.tls import read_credentials
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.alive import keep_alive
from fedhelm.wire.faults import decode_error, epoch_of

__all__ = ["AdminStub", "EpochGuard", "FleetStub", "aio_channel", "sync_channel"]

assert fedhelm.wire  # imported before grpc, for the environment it sets

MAX_MESSAGE = 4 * 1024 * 1024


class EpochGuard:
    """Remembers the highest epoch that a server proved; an answer with an older one is rejected."""

    def __init__(self, highest: int = 0) -> None:
        self.highest = highest

    def observe(self, epoch: int | None, where: str) -> None:
        """Take note of a reply's epoch.

        Raises:
            NotPrimary: it is older than one already seen, so its sender no longer leads.
        """
        if epoch is None:
            return
        if epoch < self.highest:
            raise NotPrimary(f"{where} answered with epoch {epoch}, epoch {self.highest} is known")
        self.highest = epoch


def _options(name: str) -> list[tuple[str, Any]]:
    return [
        ("grpc.ssl_target_name_override", name),
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
        *keep_alive(),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 200),
        # In grpc this is the time-out of one connection attempt, handshake included.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]


def _credentials(kit: Kit) -> grpc.ChannelCredentials:
    read = read_credentials(kit)
    return grpc.ssl_channel_credentials(read.ca, read.key, read.cert)


def aio_channel(kit: Kit, host: str, port: int, name: str) -> grpc.aio.Channel:
    """Open an asyncio channel that accepts only a server whose certificate names ``name``."""
    return grpc.aio.secure_channel(f"{host}:{port}", _credentials(kit), options=_options(name))


def sync_channel(kit: Kit, host: str, port: int, name: str) -> grpc.Channel:
    """Open a blocking channel that accepts only a server whose certificate names ``name``."""
    return grpc.secure_channel(f"{host}:{port}", _credentials(kit), options=_options(name))


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


class FleetStub:
    """The Fleet service over an asyncio channel.

    Args:
        channel: from :func:`aio_channel`.
        where: the server's name, for messages.
        guard: shared by all stubs of one site; None: epochs are not checked.
    """

    def __init__(self, channel: grpc.aio.Channel, where: str = "the server", guard: EpochGuard | None = None) -> None:
        self._channel = channel
        self._where = where
        self._guard = guard

    async def _unary(self, method: str, request: Any, reply: Any, timeout: float) -> Any:
        call = self._channel.unary_unary(f"/fedhelm.v1.Fleet/{method}", _serialize, reply.FromString)(
            request, timeout=timeout
        )
        return await self._finish(call)

    async def _finish(self, call: Any) -> Any:
        try:
            answer = await call
            metadata = await call.trailing_metadata()
        except grpc.aio.AioRpcError as error:
            raise decode_error(error.code(), error.details(), error.trailing_metadata(), self._where) from None  # type: ignore[arg-type]
        if self._guard is not None:
            self._guard.observe(epoch_of(metadata), self._where)
        return answer

    async def connect(self, messages: AsyncIterator[fleet.SiteMessage]) -> AsyncIterator[fleet.ServerMessage]:
        """Open the long stream; it ends with an error of :mod:`fedhelm.errors` when the connection does."""
        call = self._channel.stream_stream("/fedhelm.v1.Fleet/Connect", _serialize, fleet.ServerMessage.FromString)(
            messages
        )
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise decode_error(error.code(), error.details(), error.trailing_metadata(), self._where) from None  # type: ignore[arg-type]
        finally:
            call.cancel()

    async def missing_chunks(self, request: common.MissingChunksRequest, timeout: float) -> common.MissingChunksReply:
        """Ask which chunks of a blob the store does not have."""
        return await self._unary("MissingChunks", request, common.MissingChunksReply, timeout)  # type: ignore[no-any-return]

    async def put_blob(self, messages: AsyncIterator[bytes], timeout: float | None = None) -> common.BlobRef:
        """Send a header and chunks; the reply comes once all are durable."""
        call = self._channel.stream_unary("/fedhelm.v1.Fleet/PutBlob", None, common.BlobRef.FromString)(
            messages, timeout=timeout
        )
        return await self._finish(call)  # type: ignore[no-any-return]

    async def get_manifest(self, blob: common.BlobRef, timeout: float) -> common.Manifest:
        """Return the manifest of a blob."""
        return await self._unary("GetManifest", blob, common.Manifest, timeout)  # type: ignore[no-any-return]

    async def get_blob(self, request: common.GetBlobRequest) -> AsyncIterator[bytes]:
        """Stream a blob's bytes from an offset."""
        call = self._channel.unary_stream("/fedhelm.v1.Fleet/GetBlob", _serialize, None)(request)
        try:
            async for piece in call:
                yield piece
        except grpc.aio.AioRpcError as error:
            raise decode_error(error.code(), error.details(), error.trailing_metadata(), self._where) from None  # type: ignore[arg-type]
        finally:
            call.cancel()

    async def contribute(self, request: fleet.Contribution, timeout: float) -> common.Receipt:
        """Offer a result; the receipt proves that it is in the log."""
        return await self._unary("Contribute", request, common.Receipt, timeout)  # type: ignore[no-any-return]

    async def push_lines(self, request: fleet.LineBatch, timeout: float) -> fleet.LineAck:
        """Offer metric and log lines; the answer says up to which number they are in the log."""
        return await self._unary("PushLines", request, fleet.LineAck, timeout)  # type: ignore[no-any-return]

    async def report_failure(self, request: fleet.FailureReport, timeout: float) -> common.Receipt:
        """Report a job process that died."""
        return await self._unary("ReportFailure", request, common.Receipt, timeout)  # type: ignore[no-any-return]


class AdminStub:
    """The Admin service over a blocking channel.

    Args:
        channel: from :func:`sync_channel`.
        where: the server's name, for messages.
        guard: shared by all stubs of one session; None: epochs are not checked.
    """

    def __init__(self, channel: grpc.Channel, where: str = "the server", guard: EpochGuard | None = None) -> None:
        self._channel = channel
        self._where = where
        self._guard = guard

    def _error(self, error: Any) -> Exception:
        return decode_error(error.code(), error.details(), error.trailing_metadata(), self._where)

    def _unary(self, method: str, request: Any, reply: Any, timeout: float) -> Any:
        call = self._channel.unary_unary(f"/fedhelm.v1.Admin/{method}", _serialize, reply.FromString)
        try:
            answer, state = call.with_call(request, timeout=timeout)
        except grpc.RpcError as error:
            raise self._error(error) from None
        self._observe(state)
        return answer

    def _observe(self, state: Any) -> None:
        if self._guard is not None:
            self._guard.observe(epoch_of(state.trailing_metadata()), self._where)

    def _stream(self, method: str, request: Any, parse: Any, timeout: float | None) -> Iterator[Any]:
        call: Any = self._channel.unary_stream(f"/fedhelm.v1.Admin/{method}", _serialize, parse)(
            request, timeout=timeout
        )
        try:
            yield from call
            self._observe(call)
        except grpc.RpcError as error:
            raise self._error(error) from None
        finally:
            call.cancel()

    def challenge(self, timeout: float) -> admin.ChallengeReply:
        """Ask for a nonce to sign."""
        return self._unary("Challenge", common.Empty(), admin.ChallengeReply, timeout)  # type: ignore[no-any-return]

    def login(self, request: admin.LoginRequest, timeout: float) -> admin.LoginReply:
        """Prove the key; learn who leads and what is running."""
        return self._unary("Login", request, admin.LoginReply, timeout)  # type: ignore[no-any-return]

    def missing_chunks(self, request: common.MissingChunksRequest, timeout: float) -> common.MissingChunksReply:
        """Ask which chunks of a blob the store does not have."""
        return self._unary("MissingChunks", request, common.MissingChunksReply, timeout)  # type: ignore[no-any-return]

    def put_blob(self, messages: Iterable[bytes], timeout: float | None = None) -> common.BlobRef:
        """Send a header and chunks; the reply comes once all are durable."""
        call = self._channel.stream_unary("/fedhelm.v1.Admin/PutBlob", None, common.BlobRef.FromString)
        try:
            answer, state = call.with_call(iter(messages), timeout=timeout)
        except grpc.RpcError as error:
            raise self._error(error) from None
        self._observe(state)
        return answer  # type: ignore[no-any-return]

    def submit_job(self, request: admin.SubmitJobRequest, timeout: float) -> admin.SubmitJobReply:
        """Submit an uploaded bundle as a job."""
        return self._unary("SubmitJob", request, admin.SubmitJobReply, timeout)  # type: ignore[no-any-return]

    def list_jobs(self, request: admin.ListJobsRequest, timeout: float) -> admin.ListJobsReply:
        """Return jobs, newest first."""
        return self._unary("ListJobs", request, admin.ListJobsReply, timeout)  # type: ignore[no-any-return]

    def show_job(self, request: admin.JobRequest, timeout: float) -> admin.JobDetail:
        """Return one job with its sites and rounds."""
        return self._unary("ShowJob", request, admin.JobDetail, timeout)  # type: ignore[no-any-return]

    def watch_job(self, request: admin.JobRequest, timeout: float | None = None) -> Iterator[admin.JobDetail]:
        """Stream one job's state on every change until it has finished."""
        return self._stream("WatchJob", request, admin.JobDetail.FromString, timeout)

    def abort_job(self, request: admin.AbortJobRequest, timeout: float) -> admin.JobSummary:
        """Abort a job."""
        return self._unary("AbortJob", request, admin.JobSummary, timeout)  # type: ignore[no-any-return]

    def delete_job(self, request: admin.DeleteJobRequest, timeout: float) -> common.Empty:
        """Delete what a job that has ended left behind."""
        return self._unary("DeleteJob", request, common.Empty, timeout)  # type: ignore[no-any-return]

    def operate(self, request: admin.OperateRequest, timeout: float) -> admin.OperateReply:
        """Shut down or restart sites, or restart this server; answers when it is in the log."""
        return self._unary("Operate", request, admin.OperateReply, timeout)  # type: ignore[no-any-return]

    def prepare_download(self, request: admin.JobRequest, timeout: float) -> admin.DownloadManifest:
        """Return the list of a job's files."""
        return self._unary("PrepareDownload", request, admin.DownloadManifest, timeout)  # type: ignore[no-any-return]

    def download_file(self, request: admin.DownloadFileRequest, timeout: float | None = None) -> Iterator[bytes]:
        """Stream one file from an offset."""
        return self._stream("DownloadFile", request, None, timeout)

    def check_status(self, timeout: float) -> admin.StatusReply:
        """Return the server's own state and the sites connected to it."""
        return self._unary("CheckStatus", common.Empty(), admin.StatusReply, timeout)  # type: ignore[no-any-return]
