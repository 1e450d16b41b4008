"""What sites may ask of a server (``Fleet`` in ``proto/fedhelm/v1/fleet.proto``)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from fedhelm.clock import iso
from fedhelm.errors import BadInput, NotAuthorised, NotFound, ProtocolError, WrongStore
from fedhelm.ids import check_job_id
from fedhelm.tasks import cancel, spawn
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.bulk import receive_blob, ref_from_proto, ref_to_proto, stream_blob
from fedhelm.wire.chain import Call
from fedhelm_server import decisions
from fedhelm_server.assignments import assignment
from fedhelm_server.job_book import JobState, finished
from fedhelm_server.ledger import Placement
from fedhelm_server.places import sites_owner
from fedhelm_server.runtime import Runtime
from fedhelm_server.streams import SiteStream

__all__ = ["WIRE_VERSIONS", "FleetService"]

_log = logging.getLogger("fedhelm.server")

WIRE_VERSIONS = (1,)
"""What this server speaks, newest last."""

MAX_LINE_BYTES = 1024 * 1024
MAX_LINES = 1000  # in one batch; a site sends at most 500
MAX_METRICS_BYTES = 512 * 1024
MAX_TRACEBACK = 16 * 1024


class FleetService:
    """The handlers; each runs behind the chain of :mod:`fedhelm.wire.chain`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    # -- the long stream ----------------------------------------------------------------------------------------------

    async def connect(self, messages: AsyncIterator[fleet.SiteMessage], call: Call) -> AsyncIterator[Any]:
        """Serve one site's stream: welcome, then an announcement and assignments while this server leads."""
        first = await anext(aiter(messages), None)
        if first is None or first.WhichOneof("message") != "hello":
            raise ProtocolError("a stream does not begin with a hello")
        version = self._check_hello(first.hello)
        stream = SiteStream(call.principal.name, first.hello.incarnation)
        stream.hold(list(first.hello.jobs))
        self._runtime.streams.open(stream)
        self._runtime.site_changed(stream.site, connected=True)
        reader = spawn(self._read(stream, messages), f"stream of {stream.site}")
        try:
            yield self._welcome(version)
            while not stream.replaced and not reader.done():
                for message in self._next(stream):
                    yield message
                await stream.wait()
        finally:
            await cancel(reader)
            if self._runtime.streams.close(stream):
                self._runtime.site_changed(stream.site, connected=False)

    def _check_hello(self, hello: fleet.Hello) -> int:
        if hello.cluster != self._runtime.kit.cluster:
            raise WrongStore(f"the site's kit is of cluster {hello.cluster!r:.40}, this server's of another")
        common_versions = set(WIRE_VERSIONS) & set(hello.wire_versions)
        if not common_versions:
            raise ProtocolError(f"wire versions {list(hello.wire_versions)}: this server speaks {list(WIRE_VERSIONS)}")
        return max(common_versions)

    def _welcome(self, version: int) -> fleet.ServerMessage:
        fence = self._runtime.book.fence
        welcome = fleet.Welcome(
            server=self._runtime.kit.name,
            cluster=self._runtime.kit.cluster,
            wire_version=version,
            incarnation=self._runtime.incarnation,
            primary=fence.name if fence else "",
            epoch=self._runtime.epoch,
            leading=self._runtime.leads,
        )
        return fleet.ServerMessage(welcome=welcome)

    async def _read(self, stream: SiteStream, messages: AsyncIterator[fleet.SiteMessage]) -> None:
        try:
            async for message in messages:
                if message.WhichOneof("message") == "beat":
                    stream.hold(list(message.beat.jobs))
        finally:
            stream.wake()

    def _next(self, stream: SiteStream) -> list[fleet.ServerMessage]:
        runtime = self._runtime
        if not runtime.leads:
            return []
        messages = []
        if stream.announced != runtime.epoch:
            stream.announced = runtime.epoch
            messages.append(fleet.ServerMessage(announce=fleet.Announce(epoch=runtime.epoch)))
        now = assignment(runtime.book, stream.site, runtime.epoch, stream.held)
        now_seq, now.seq = now.seq, 0
        if stream.last is None or now != stream.last:
            stream.last = fleet.Assignment.FromString(now.SerializeToString())
            for job in now.jobs:
                stream.held.setdefault(job.job, job.status)
            now.seq = now_seq
            messages.append(fleet.ServerMessage(assignment=now))
        return messages

    # -- blobs --------------------------------------------------------------------------------------------------------

    def _member_job(self, job_id: str, site: str) -> JobState:
        job = self._runtime.book.jobs.get(check_job_id(job_id))
        if job is None or site not in job.sites:
            raise NotAuthorised(f"{site} is no member of job {job_id}")
        return job

    def _check_upload(self, owner: str, site: str) -> None:
        parts = owner.split("/")
        if len(parts) != 4 or parts[0] != "jobs" or parts[3] != "sites":
            raise NotAuthorised(f"a site may not write to {owner!r:.80}")
        job = self._member_job(parts[1], site)
        rounds = {(entry["step"], entry["round"]) for entry in job.closed}
        if job.open is not None:
            rounds.add((job.open.step, job.open.round))
        if parts[2] not in {f"{step}-{round_}" for step, round_ in rounds}:
            raise NotAuthorised(f"job {job.job} has no round {parts[2]!r:.40}")

    def _check_fetch(self, owner: str, site: str) -> None:
        parts = owner.split("/")
        if len(parts) < 3 or parts[0] != "jobs" or parts[-1] not in ("bundle", "model"):
            raise NotAuthorised(f"a site may not read {owner!r:.80}")
        self._member_job(parts[1], site)

    async def missing_chunks(self, request: common.MissingChunksRequest, call: Call) -> common.MissingChunksReply:
        """Tell which chunks an upload need not send."""
        await self._runtime.check_leads()
        self._check_upload(request.owner, call.principal.name)
        return await self._runtime.missing_chunks(request)

    async def put_blob(self, messages: AsyncIterator[bytes], call: Call) -> common.BlobRef:
        """Store an upload."""
        await self._runtime.check_leads()
        ref = await receive_blob(
            messages, self._runtime.store.blobs, lambda owner: self._check_upload(owner, call.principal.name)
        )
        return ref_to_proto(ref)

    async def get_manifest(self, request: common.BlobRef, call: Call) -> common.Manifest:
        """Return the manifest of a bundle or a model."""
        await self._runtime.check_leads()
        self._check_fetch(request.owner, call.principal.name)
        manifest = await asyncio.to_thread(self._runtime.store.blobs.manifest, ref_from_proto(request))
        return common.Manifest(size=manifest.size, chunk_size=manifest.chunk_size, chunks=manifest.chunks)

    async def get_blob(self, request: common.GetBlobRequest, call: Call) -> AsyncIterator[bytes]:
        """Stream a bundle or a model."""
        await self._runtime.check_leads()
        self._check_fetch(request.blob.owner, call.principal.name)
        async for piece in stream_blob(self._runtime.store.blobs, ref_from_proto(request.blob), request.offset):
            yield piece

    # -- results, lines, failures -------------------------------------------------------------------------------------

    async def contribute(self, request: fleet.Contribution, call: Call) -> common.Receipt:
        """Record a contribution, once; answer when it is in the log."""
        await self._runtime.check_leads()
        item = self._contribution(request, call.principal.name)
        if item["blob"] is not None:
            await self._check_blob(request)
        key = (item["job"], *(item[name] for name in decisions.CONTRIBUTION_KEY))
        answer = await self._runtime.ledger.propose("contribution", decisions.contribute(item), key=key, size=1024)
        if isinstance(answer, Placement):
            return common.Receipt(seq=answer.seq, index=answer.index, epoch=answer.epoch)
        assert isinstance(answer, decisions.ContributionAnswer)
        if answer.placed is None:
            return common.Receipt(gone=True)
        placed = answer.placed
        return common.Receipt(seq=placed.seq, index=placed.index, epoch=placed.epoch, superseded=answer.superseded)

    def _contribution(self, request: fleet.Contribution, site: str) -> dict[str, Any]:
        if request.site != site:
            raise NotAuthorised(f"{site} may not contribute for {request.site!r:.80}")
        self._member_job(request.job, site)  # before its blob is looked for: others learn nothing of what is stored
        if len(request.metrics_json) > MAX_METRICS_BYTES:
            raise BadInput(f"metrics of {len(request.metrics_json)} bytes are larger than {MAX_METRICS_BYTES}")
        blob = None
        if request.HasField("blob"):
            if request.blob.owner != sites_owner(check_job_id(request.job), request.step, request.round):
                raise ProtocolError("a contribution refers to a blob of another round")
            blob = ref_from_proto(request.blob).to_json()
        return {
            "job": check_job_id(request.job),
            "attempt": request.attempt,
            "step": request.step,
            "round": request.round,
            "kind": request.kind,
            "site": site,
            "sequence": request.sequence,
            "blob": blob,
            "weight": request.weight,
            "metrics": _json_object(request.metrics_json, "metrics"),
            "time": iso(self._runtime.clock.utcnow()),
        }

    async def _check_blob(self, request: fleet.Contribution) -> None:
        blobs = self._runtime.store.blobs
        manifest = await asyncio.to_thread(blobs.manifest, ref_from_proto(request.blob))
        if await asyncio.to_thread(blobs.missing, request.blob.owner, manifest):
            raise NotFound("chunks of the contribution's blob are missing: upload it again")

    async def push_lines(self, request: fleet.LineBatch, call: Call) -> fleet.LineAck:
        """Record metric and log lines; answer with the highest number in the log."""
        await self._runtime.check_leads()
        site = call.principal.name
        job = self._member_job(request.job, site).job
        # Bounds first: what follows runs on the loop, and a loop that stands still for T/2 costs this server its lease.
        if len(request.lines) > MAX_LINES:
            raise BadInput(f"a batch of {len(request.lines)} lines has more than {MAX_LINES}")
        size = sum(len(line.json) for line in request.lines)
        if size > MAX_LINE_BYTES:
            raise BadInput(f"a batch of lines of {size} bytes is larger than {MAX_LINE_BYTES}")
        numbers = [line.number for line in request.lines]
        if not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] < 1:
            raise ProtocolError("lines are not numbered one after the other")
        new = [_json_object(line.json, "a line") for line in request.lines]
        decide = decisions.lines(job, site, numbers[0], new)
        answer = await self._runtime.ledger.propose("metrics", decide, key=(job, site), size=size)
        if isinstance(answer, Placement):
            return fleet.LineAck(acknowledged=numbers[-1])
        return fleet.LineAck(acknowledged=int(answer))

    async def report_failure(self, request: fleet.FailureReport, call: Call) -> common.Receipt:
        """Record that a site's job process died."""
        await self._runtime.check_leads()
        site = call.principal.name
        self._member_job(request.job, site)
        item = {
            "job": request.job,
            "attempt": request.attempt,
            "site": site,
            "round": request.round,
            "reason": request.reason[:500],
            "traceback": request.traceback[-MAX_TRACEBACK:],
            "time": iso(self._runtime.clock.utcnow()),
        }
        answer = await self._runtime.ledger.propose("site_failed", decisions.fail_site(item), key=(request.job, site))
        if isinstance(answer, Placement):
            return common.Receipt(seq=answer.seq, index=answer.index, epoch=answer.epoch)
        job = self._runtime.book.jobs[request.job]
        if answer is None or finished(job.status):
            return common.Receipt(gone=True)
        return common.Receipt(seq=answer["seq"], epoch=answer["epoch"])


def _json_object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{what}: not JSON") from error
    if not isinstance(value, dict):
        raise BadInput(f"{what}: not a JSON object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # the log holds canonical JSON, which has no NaN
