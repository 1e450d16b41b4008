"""What sites may ask of a server (``Fleet`` in ``proto/fedhelm/v1/fleet.proto``)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fedhelm.clock import iso
from fedhelm.errors import (
    BadInput,
    Conflict,
    Corrupt,
    FedhelmError,
    NotAuthorised,
    NotFound,
    ProtocolError,
    RoundOver,
    StoreUnavailable,
    WrongStore,
)
from fedhelm.ids import check_job_id
from fedhelm.persist.blobs import Manifest
from fedhelm.security.identity import Principal
from fedhelm.tasks import cancel, spawn
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.bulk import receive_blob, ref_from_proto, ref_to_proto, stream_blob
from fedhelm.wire.chain import Call, is_stop
from fedhelm_server import decisions
from fedhelm_server.assignments import assignment
from fedhelm_server.disk_budget import DiskBudget
from fedhelm_server.job_book import JobState, finished
from fedhelm_server.ledger import Placement
from fedhelm_server.places import sites_owner
from fedhelm_server.runtime import Runtime
from fedhelm_server.scheduler import EPHEMERAL_WIRE
from fedhelm_server.streams import SiteStream
from fedhelm_server.uploads import announced, counted_down

__all__ = ["ORDERS_WIRE", "WIRE_VERSIONS", "FleetService"]

_log = logging.getLogger("fedhelm.server")

WIRE_VERSIONS = (2, 1)
"""What this server speaks, newest first."""

MAX_UPLOADS = 4
"""Uploads of one site that are read at once."""

MAX_RESULTS = 3
"""Results that one site may begin to upload to one round: a task that is run again gives another one."""

RESULT_FACTOR = 8
RESULT_SLACK = 64 * 1024 * 1024
"""A result has at most 8 times the bytes of the round's model (a script may answer with wider types), and 64 MiB."""

MAX_FIRST_RESULT = 64 * 1024**3
"""Bytes of a result where the round has no model."""

_LARGER = "a job whose first results are larger needs an initial_model"

ORDERS_WIRE = 2
"""The first wire version whose sites take orders."""

MAX_LINE_BYTES = 1024 * 1024
MAX_LINES = 1000  # in one batch; a site sends at most 500
MAX_METRICS_BYTES = 512 * 1024
MAX_TRACEBACK = 16 * 1024
MAX_FILTERS = 80
MAX_FILTER = 200


class FleetService:
    """The handlers; each runs behind the chain of :mod:`fedhelm.wire.chain`.

    Args:
        runtime: role and ledger.
        disk: of the store, asked about every upload; None: one of its own.
    """

    def __init__(self, runtime: Runtime, disk: DiskBudget | None = None) -> None:
        self._runtime, self._disk = runtime, disk or DiskBudget(runtime.store.blobs)
        self._uploads: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MAX_UPLOADS))
        self._results: dict[tuple[str, str], set[str]] = {}

    # -- the long stream ----------------------------------------------------------------------------------------------

    async def connect(self, messages: AsyncIterator[fleet.SiteMessage], call: Call) -> AsyncIterator[Any]:
        """Serve one site's stream: welcome, then an announcement and assignments while this server leads."""
        first = await anext(aiter(messages), None)
        if first is None or first.WhichOneof("message") != "hello":
            raise ProtocolError("a stream does not begin with a hello")
        version = self._check_hello(first.hello)
        stream = _stream(first.hello, version, call.principal)
        self._runtime.streams.open(stream)
        self._runtime.site_changed(stream.site, connected=True)
        reader = spawn(self._read(stream, messages), f"stream of {stream.site}")
        try:
            yield self._welcome(version)
            while not stream.over and not reader.done():
                for message in self._next(stream):
                    yield message
                await stream.wait()
            if reader.done() and (unread := reader.result()) is not None:
                raise unread
        finally:
            # Before anything is waited for: a call whose caller has gone may be cancelled a second time in there.
            if self._runtime.streams.close(stream):
                self._runtime.orders.gone(stream.site)
                self._runtime.site_changed(stream.site, connected=False)
            await cancel(reader)

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

    async def _read(self, stream: SiteStream, messages: AsyncIterator[fleet.SiteMessage]) -> BadInput | None:
        try:
            async for message in messages:
                if message.WhichOneof("message") == "beat":
                    stream.hold(list(message.beat.jobs))
                    for answer in message.beat.answers:
                        self._runtime.orders.answered(stream.site, answer)
        except BadInput as error:  # what the site sends is no message: it is told, and that is no defect in here
            return error
        except Exception as error:  # whatever it is, a stream that is not read any more ends
            if not is_stop(error):
                raise
        finally:
            stream.wake()
        return None

    def _next(self, stream: SiteStream) -> list[fleet.ServerMessage]:
        runtime = self._runtime
        if not runtime.leads:
            return []
        messages = []
        if stream.announced != runtime.epoch:
            stream.announced = runtime.epoch
            messages.append(fleet.ServerMessage(announce=fleet.Announce(epoch=runtime.epoch)))
        if stream.version >= ORDERS_WIRE:
            messages += [fleet.ServerMessage(order=order) for order in runtime.orders.of(stream.site)]
        given = runtime.holding.jobs_with(stream.site)
        now = assignment(runtime.book, stream.site, runtime.epoch, stream.held, given)
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
        if finished(job.status) or parts[2] in {f"{entry['step']}-{entry['round']}" for entry in job.closed}:
            raise RoundOver(f"round {parts[2]} of job {job.job} is over")
        if job.open is None or owner != sites_owner(job.job, job.open.step, job.open.round):
            raise NotAuthorised(f"round {parts[2]!r:.40} of job {job.job} is not open")

    def _check_fetch(self, owner: str, site: str) -> None:
        parts = owner.split("/")
        if len(parts) < 3 or parts[0] != "jobs" or parts[-1] not in ("bundle", "model"):
            raise NotAuthorised(f"a site may not read {owner!r:.80}")
        self._member_job(parts[1], site)

    async def missing_chunks(self, request: common.MissingChunksRequest, call: Call) -> common.MissingChunksReply:
        """Tell which chunks an upload need not send."""
        await self._runtime.check_leads()
        self._check_upload(request.owner, call.principal.name)
        self._check_size(request.owner, request.manifest.size)
        return await self._runtime.missing_chunks(request)

    async def put_blob(self, messages: AsyncIterator[bytes], call: Call) -> common.BlobRef:
        """Store an upload to an open round."""
        await self._runtime.check_leads()
        site = call.principal.name
        async with self._uploads[site]:  # one more waits, unread
            first = await anext(messages, b"")
            size = self._begin_upload(first, site)
            async with self._disk.room_for(size) as coming:
                ref = await receive_blob(
                    counted_down(first, messages, coming),
                    self._runtime.store.blobs,
                    lambda owner: self._check_upload(owner, site),
                )
        return ref_to_proto(ref)

    def _begin_upload(self, first: bytes, site: str) -> int:
        """Check what is announced, and count it: what is broken off lies in the store too. Returns bytes to come."""
        header = announced(first)
        if header is None:
            return 0
        sent = header.manifest
        self._check_upload(header.owner, site)
        self._check_size(header.owner, sent.size)
        manifest = Manifest(sent.size, sent.chunk_size, tuple(sent.chunks))
        self._results = {key: kept for key, kept in self._results.items() if self._is_open(key[1])}
        kept = self._results.setdefault((site, header.owner), set())
        if len(kept) >= MAX_RESULTS and manifest.digest not in kept:
            raise Conflict(f"{site} has uploaded {len(kept)} other results to {header.owner}")
        kept.add(manifest.digest)
        return sum(manifest.length(index) for index in set(header.indices) if index < len(manifest.chunks))

    def _check_size(self, owner: str, size: int) -> None:
        job = self._runtime.book.jobs.get(owner.split("/")[1])
        model = job.open.model if job is not None and job.open is not None else None
        limit = MAX_FIRST_RESULT if model is None else RESULT_FACTOR * int(model["size"]) + RESULT_SLACK
        if size > limit:
            raise BadInput(
                f"a result of {size} bytes for {owner}: at most {limit} are taken in this round", hint=_LARGER
            )

    def _is_open(self, owner: str) -> bool:
        job = self._runtime.book.jobs.get(owner.split("/")[1])
        if job is None or job.open is None or finished(job.status):
            return False
        return owner == sites_owner(job.job, job.open.step, job.open.round)

    async def get_manifest(self, request: common.BlobRef, call: Call) -> common.Manifest:
        """Return the manifest of a bundle or a model."""
        await self._runtime.check_leads()
        self._check_fetch(request.owner, call.principal.name)
        try:
            manifest = await asyncio.to_thread(self._runtime.store.blobs.manifest, ref_from_proto(request))
        except Corrupt as error:
            raise self._lost(request.owner, error) from error
        return common.Manifest(size=manifest.size, chunk_size=manifest.chunk_size, chunks=manifest.chunks)

    async def get_blob(self, request: common.GetBlobRequest, call: Call) -> AsyncIterator[bytes]:
        """Stream a bundle or a model."""
        await self._runtime.check_leads()
        self._check_fetch(request.blob.owner, call.principal.name)
        try:
            async for piece in stream_blob(self._runtime.store.blobs, ref_from_proto(request.blob), request.offset):
                yield piece
        except Corrupt as error:
            raise self._lost(request.blob.owner, error) from error

    def _lost(self, owner: str, error: Corrupt) -> FedhelmError:
        """A model that no round uses any more may be collected under a site that is late: it is to ask for its task."""
        job = self._runtime.book.jobs.get(owner.split("/")[1])
        model = job.open.model if job is not None and job.open is not None else None
        if owner.endswith("/bundle") or (model is not None and model["owner"] == owner):
            return error
        return StoreUnavailable(f"{owner} was replaced by the model of a later round")

    # -- results, lines, failures -------------------------------------------------------------------------------------

    async def contribute(self, request: fleet.Contribution, call: Call) -> common.Receipt:
        """Record a contribution, once; answer when it is in the log."""
        await self._runtime.check_leads()
        item = self._contribution(request, call.principal.name)
        if item["blob"] is not None:
            try:
                await self._check_blob(request)
            except (Corrupt, NotFound):
                if self._is_open(request.blob.owner):
                    raise
                # Collected with its round, under a site that is late: the log has the answer without it.
        if self._runtime.book.jobs[item["job"]].ephemeral:
            return self._hold(item)
        key = (item["job"], *(item[name] for name in decisions.CONTRIBUTION_KEY))
        size = 1024 + sum(map(len, request.filters))
        answer = await self._runtime.ledger.propose("contribution", decisions.contribute(item), key=key, size=size)
        if isinstance(answer, Placement):
            return common.Receipt(seq=answer.seq, index=answer.index, epoch=answer.epoch)
        assert isinstance(answer, decisions.ContributionAnswer)
        if answer.placed is None:
            return common.Receipt(gone=True)
        placed = answer.placed
        return common.Receipt(seq=placed.seq, index=placed.index, epoch=placed.epoch, superseded=answer.superseded)

    def _hold(self, item: dict[str, Any]) -> common.Receipt:
        stream = self._runtime.streams.get(item["site"])
        if stream is not None and stream.version < EPHEMERAL_WIRE:
            raise ProtocolError(f"{item['site']} speaks wire version {stream.version}: it would not keep its result")
        if not decisions.offer(self._runtime.book, item):
            return common.Receipt(gone=True)
        held = self._runtime.holding.take(item)
        return common.Receipt(held=True, epoch=self._runtime.epoch, superseded=decisions.differs(held, item))

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
            **({"filters": _filters(request.filters)} if request.filters else {}),
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


def _filters(told: Sequence[str]) -> list[str]:
    if len(told) > MAX_FILTERS or any(len(one) > MAX_FILTER or not one.isprintable() for one in told):
        raise BadInput(f"privacy filters are told in at most {MAX_FILTERS} texts of {MAX_FILTER} characters")
    return list(told)


def _stream(hello: fleet.Hello, version: int, site: Principal) -> SiteStream:
    takes_code = hello.enable_byoc if hello.HasField("enable_byoc") else True
    stream = SiteStream(site.name, hello.incarnation, version, site.org, takes_code=takes_code)
    stream.answers_orders = hello.answers_orders
    stream.hold(list(hello.jobs))
    return stream


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
