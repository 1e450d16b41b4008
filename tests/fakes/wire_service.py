"""A service behind the real chain, over real TLS, on a free loopback port."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future

from grpc._cython import cygrpc

import fedhelm.wire
from fedhelm.errors import AuditUnavailable
from fedhelm.persist.blobs import Manifest
from fedhelm.security.audit import AuditFigures
from fedhelm.security.authorization import Object, default_policy
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.bulk import receive_blob, ref_from_proto, ref_to_proto, stream_blob
from fedhelm.wire.chain import ServiceHandlers
from fedhelm.wire.server_certificate import ServerCertificate
from fedhelm.wire.serving import new_server

assert fedhelm.wire

SERVER_STOPPED = cygrpc._ServerStoppedError  # what grpc raises where a call's messages are read while its server stops
FLEET = fleet.DESCRIPTOR.services_by_name["Fleet"]
ADMIN = admin.DESCRIPTOR.services_by_name["Admin"]


class FleetDesk:
    """Serves blobs from a store as a server does; everything else as the test says."""

    def __init__(self, blobs=None):
        self.blobs = blobs
        self.calls = []
        self.raises = None
        self.reply = common.Receipt(seq=1)
        self.received = 0
        self.cut_upload_after = None  # bytes
        self.cut_fetch_after = None
        self.damage = False

    async def _counted(self, messages):
        count = 0
        async for piece in messages:
            yield piece
            count += len(piece)
            self.received = count
            if self.cut_upload_after is not None and count > self.cut_upload_after:
                raise ConnectionError("cut")

    async def connect(self, messages, call):
        self.calls.append(call)
        async for message in messages:
            if self.raises is not None:
                raise self.raises
            yield fleet.ServerMessage(announce=fleet.Announce(epoch=message.hello.highest_epoch))

    async def missing_chunks(self, request, call):
        call.passage.admit(Object())
        if self.raises is not None:
            raise self.raises
        manifest = Manifest(request.manifest.size, request.manifest.chunk_size, tuple(request.manifest.chunks))
        return common.MissingChunksReply(indices=self.blobs.missing(request.owner, manifest))

    async def put_blob(self, messages, call):
        call.passage.admit(Object())
        if self.raises is not None:
            raise self.raises
        self.received = 0
        return ref_to_proto(await receive_blob(self._counted(messages), self.blobs, lambda owner: None))

    async def get_manifest(self, request, call):
        manifest = self.blobs.manifest(ref_from_proto(request))
        return common.Manifest(size=manifest.size, chunk_size=manifest.chunk_size, chunks=manifest.chunks)

    async def get_blob(self, request, call):
        self.calls.append(request)
        sent = 0
        async for piece in stream_blob(self.blobs, ref_from_proto(request.blob), request.offset):
            yield bytes(len(piece)) if self.damage else piece
            sent += len(piece)
            if self.cut_fetch_after is not None and sent >= self.cut_fetch_after:
                raise ConnectionError("cut")

    async def contribute(self, request, call):
        self.calls.append(call)
        if self.raises is not None:
            raise self.raises
        return self.reply

    async def push_lines(self, request, call):
        raise NotImplementedError

    async def report_failure(self, request, call):
        raise NotImplementedError


class AdminDesk:
    """Every method answers with an empty message, or raises. ``about``: what it asks the policy; None: it does not."""

    about = Object()

    def __init__(self, raises=None):
        self.raises = raises
        self.calls = []
        self.received = 0

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        replies = {
            "challenge": admin.ChallengeReply,
            "login": admin.LoginReply,
            "missing_chunks": common.MissingChunksReply,
            "put_blob": common.BlobRef,
            "submit_job": admin.SubmitJobReply,
            "list_jobs": admin.ListJobsReply,
            "show_job": admin.JobDetail,
            "abort_job": admin.JobSummary,
            "prepare_download": admin.DownloadManifest,
            "check_status": admin.StatusReply,
        }

        def ask(call):
            self.calls.append(call)
            if self.about is not None:
                call.passage.admit(self.about)

        async def answer(request, call):
            ask(call)
            if self.raises is not None:
                raise self.raises
            if name == "put_blob":
                async for piece in request:
                    self.received += len(piece)
            return replies[name]()

        async def stream(request, call):
            ask(call)
            yield admin.JobDetail(round=1) if name == "watch_job" else b"abc"
            if self.raises is not None:
                raise self.raises

        return answer if name in replies else stream


class Noted:
    """An audit trail that is a list."""

    def __init__(self):
        self.entries, self.problem = [], None

    @property
    def figures(self):
        return AuditFigures(self.problem)

    def note(self, entry):
        self.entries.append(entry)

    def ready(self):
        return self._future()

    def write(self, entry):
        self.entries.append(entry)
        return self._future()

    def _future(self):
        future = Future()
        if self.problem is None:
            future.set_result(None)
        else:
            future.set_exception(AuditUnavailable(self.problem))
        return future


@contextlib.asynccontextmanager
async def serving(kit, service, implementation, *, project="poc", epoch=lambda: 1, handlers=None, **gates):
    """Serve; yield the port. ``gates``: what `ServiceHandlers` takes besides; or the handlers themselves."""
    if handlers is None:
        gates = {"policy": default_policy(), **gates}
        handlers = ServiceHandlers(service, implementation, project=project, epoch=epoch, **gates)
    server = new_server([handlers])
    credentials = ServerCertificate(kit).credentials()
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)
