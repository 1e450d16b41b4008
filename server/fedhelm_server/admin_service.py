"""What admins may ask of a server (``Admin`` in ``proto/fedhelm/v1/admin.proto``)."""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
import shutil
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

from fedhelm.clock import iso
from fedhelm.errors import (
    BadCertificate,
    BadInput,
    Conflict,
    NotAuthorised,
    NotFound,
    ProtocolError,
    Refused,
)
from fedhelm.ids import check_job_id
from fedhelm.persist.blobs import BlobReader, BlobRef
from fedhelm.security.authorization import Object
from fedhelm.security.identity import Principal
from fedhelm.security.job_signing import Submission
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.bulk import receive_blob, ref_from_proto, ref_to_proto
from fedhelm.wire.chain import Call
from fedhelm_server import decisions, job_views, orders, submissions
from fedhelm_server.blob_copy import copy_blob
from fedhelm_server.downloads import Downloads
from fedhelm_server.fleet_service import ORDERS_WIRE, WIRE_VERSIONS
from fedhelm_server.job_book import JobState, finished
from fedhelm_server.job_control import JobControl
from fedhelm_server.ledger import Placement
from fedhelm_server.objects import count_visible, find_job, job_object, own_job, site_object, visible_jobs
from fedhelm_server.places import bundle_owner
from fedhelm_server.runtime import Runtime
from fedhelm_server.scheduler import ALL
from fedhelm_server.uploads import announced, counted_down

__all__ = ["LOGIN_CONTEXT", "MAX_BUNDLE", "AdminService"]

_log = logging.getLogger("fedhelm.server")

LOGIN_CONTEXT = b"fedhelm-login\0"
"""Stands before the nonce in what a login signs, so that the signature serves for nothing else."""

MAX_BUNDLE = 512 * 1024 * 1024
"""Largest job bundle, bytes."""

MAX_UPLOADS = 2
"""Bundles of one admin that are read at once; each has two chunks in memory."""

NONCE_S = 30.0
MAX_NONCES = 100
"""Logins of one admin that may be under way at once; the oldest gives way, so that nobody locks out another."""
PREPARE_TRIES = 5
RESTART_DELAY_S = 0.3
"""A child that is to be restarted answers first."""


class AdminService:
    """The handlers; each runs behind the chain of :mod:`fedhelm.wire.chain`."""

    def __init__(self, runtime: Runtime, control: JobControl) -> None:
        self._runtime = runtime
        self._control = control
        self._downloads = Downloads(runtime)
        self._nonces: dict[str, dict[bytes, float]] = {}
        self._uploads: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MAX_UPLOADS))
        self._watchers: set[asyncio.Event] = set()
        runtime.on_change.append(self._changed)

    def _changed(self, _: set[str]) -> None:
        for watcher in self._watchers:
            watcher.set()

    # -- login --------------------------------------------------------------------------------------------------------

    async def challenge(self, _: common.Empty, call: Call) -> admin.ChallengeReply:
        """Hand out a nonce to sign: for the caller's own login, once, for 30 s."""
        await self._runtime.check_leads()
        nonces = self._nonces.setdefault(call.principal.name, {})
        if len(nonces) >= MAX_NONCES:
            del nonces[next(iter(nonces))]
        nonce = secrets.token_bytes(32)
        nonces[nonce] = self._runtime.clock.boottime() + NONCE_S
        return admin.ChallengeReply(nonce=nonce)

    async def login(self, request: admin.LoginRequest, call: Call) -> admin.LoginReply:
        """Check the signature over the nonce by the key of the caller's certificate; tell how things stand."""
        from fedhelm.security.pki import verify

        await self._runtime.check_leads()
        nonces = self._nonces.get(call.principal.name, {})
        if nonces.pop(request.nonce, 0.0) < self._runtime.clock.boottime():
            raise BadCertificate("the login took too long or was repeated; log in again")
        certificates = call.context.auth_context().get("x509_pem_cert") or [b""]
        if not verify(certificates[0], request.signature, LOGIN_CONTEXT + request.nonce):
            raise BadCertificate("the login is not signed by the key of the certificate")
        versions = set(request.wire_versions) & set(WIRE_VERSIONS)
        if not versions:
            raise ProtocolError(f"wire versions {list(request.wire_versions)}: this server speaks {WIRE_VERSIONS}")
        runtime = self._runtime
        _log.info("%s logged in (%s)", call.principal.name, call.principal.role)
        return admin.LoginReply(
            principal=call.principal.name,
            role=call.principal.role,
            project=runtime.kit.project,
            server=runtime.kit.name,
            epoch=runtime.epoch,
            wire_version=max(versions),
            standbys=len(runtime.kit.servers) - 1,
            sites_up=len(runtime.streams.connected()),
            sites=len(runtime.kit.sites),
            jobs_running=count_visible(runtime.book.running(), call.passage),
            capabilities=["submit", "abort", "download", "watch", "delete", "operate"],
        )

    # -- submission ---------------------------------------------------------------------------------------------------

    def _check_upload(self, owner: str, caller: Principal) -> None:
        parts = owner.split("/")
        if len(parts) != 3 or owner != bundle_owner(check_job_id(parts[1])):
            raise NotAuthorised(f"an admin may not write to {owner!r:.80}")
        self._check_own(parts[1], caller)
        if parts[1] in self._runtime.book.deleted:
            raise Conflict(f"job {parts[1]} was deleted: its id is not used again", hint="submit again")

    def _check_own(self, job_id: str, caller: Principal) -> None:
        known = self._runtime.book.jobs.get(job_id)
        if known is not None and known.submitter != caller.name:
            raise NotAuthorised(f"job {job_id} was submitted by somebody else", hint="submit again with a new id")

    async def missing_chunks(self, request: common.MissingChunksRequest, call: Call) -> common.MissingChunksReply:
        """Tell which chunks an upload need not send."""
        await self._runtime.check_leads()
        call.passage.admit(own_job(call.principal))
        self._check_upload(request.owner, call.principal)
        return await self._runtime.missing_chunks(request)

    async def put_blob(self, messages: AsyncIterator[bytes], call: Call) -> common.BlobRef:
        """Store a bundle."""
        await self._runtime.check_leads()
        call.passage.admit(own_job(call.principal))
        await self._control.disk.require_room()
        blobs = self._runtime.store.blobs
        check = functools.partial(self._check_upload, caller=call.principal)
        async with self._uploads[call.principal.name]:  # one more waits, unread
            first = await anext(messages, b"")
            header = announced(first)
            size = 0 if header is None else min(header.manifest.size, MAX_BUNDLE)
            async with self._control.disk.room_for(size) as coming:
                ref = await receive_blob(counted_down(first, messages, coming), blobs, check, MAX_BUNDLE)
        return ref_to_proto(ref)

    async def submit_job(self, request: admin.SubmitJobRequest, call: Call) -> admin.SubmitJobReply:
        """Record an uploaded bundle as a job; the answer means that it is in the log."""
        await self._runtime.check_leads()
        job_id = check_job_id(request.job)
        call.passage.admit(own_job(call.principal), job=job_id)
        self._check_own(job_id, call.principal)
        _check_request_id(request.request_id)
        bundle = ref_from_proto(request.bundle)
        if bundle.owner != bundle_owner(job_id):
            raise BadInput(f"the bundle of job {job_id} lies under another owner")
        known = self._runtime.book.jobs.get(job_id)
        if known is None:
            await self._control.disk.require_room()
        config = dict(known.config) if known else await asyncio.to_thread(self._validate, bundle)
        signed = {} if known else await self._verify(request, config, call.principal.name)
        item = {
            "job": job_id,
            "request_id": request.request_id,
            "name": config["name"],
            "submitter": call.principal.name,
            "submitter_org": call.principal.org,
            "bundle": bundle.to_json(),
            "config": config,
            "time": iso(self._runtime.clock.utcnow()),
            **signed,
        }
        answer = await self._runtime.ledger.propose("job_submitted", decisions.submit(item), key=job_id)
        seq = answer.seq if isinstance(answer, Placement) else int(answer)
        if isinstance(answer, Placement):
            _log.info("job %s (%s) submitted by %s", job_id, config["name"], call.principal.name)
        return admin.SubmitJobReply(job=job_id, receipt=common.Receipt(seq=seq, epoch=self._runtime.epoch))

    async def _verify(self, request: admin.SubmitJobRequest, config: dict[str, Any], caller: str) -> dict[str, str]:
        runtime, kit, data = self._runtime, self._runtime.kit, request.submission
        expected = Submission(kit.project, kit.cluster, request.job, config["name"], request.bundle.digest)
        ask = functools.partial(submissions.verify, kit, data, expected, runtime.callers.revocations)
        verified = await asyncio.to_thread(ask, caller=caller, now=runtime.clock.utcnow())
        known = set(runtime.kit.sites) | runtime.streams.connected()
        sites = submissions.named_sites(config, known)
        submissions.admit_at_sites(runtime.callers.policy, verified.submitter, sites, runtime.streams)
        return submissions.signed_parts(data, verified)

    def _validate(self, bundle: BlobRef) -> dict[str, Any]:
        """Check a bundle as the console did: no client is trusted."""
        from fedhelm.job.loading import load_bundle

        scratch = Path(tempfile.mkdtemp(prefix="submit-", dir=self._runtime.kit.run))
        try:
            archive = scratch / "bundle"
            reader = BlobReader(self._runtime.store.blobs, bundle)
            with archive.open("wb") as file:
                copy_blob(reader, file.write)
            config: dict[str, Any] = load_bundle(archive).model_dump(mode="json")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return config

    # -- reading ------------------------------------------------------------------------------------------------------

    def _find(self, prefix: str, call: Call) -> JobState:
        """Return a job that the call may touch: both gates were asked about it."""
        job = find_job(self._runtime.book, prefix, call.passage)
        call.passage.admit(job_object(job), job=job.job)
        return job

    def _detail(self, job: JobState) -> admin.JobDetail:
        streams = self._runtime.streams
        connected = streams.connected()
        held = {site: stream.held for site in connected if (stream := streams.get(site)) is not None}
        given = self._runtime.holding.of(job.job) if job.ephemeral else None
        return job_views.detail(job, self._runtime.clock.utcnow(), connected, held, self._control.waits, given=given)

    async def list_jobs(self, request: admin.ListJobsRequest, call: Call) -> admin.ListJobsReply:
        """Return jobs, newest first."""
        await self._runtime.check_leads()
        now = self._runtime.clock.utcnow()
        jobs = [job for job in reversed(self._runtime.book.jobs.values()) if job.job.startswith(request.prefix)]
        seen = call.passage.keep(jobs, job_object)
        chosen = seen[: request.limit] if request.limit else seen
        return admin.ListJobsReply(jobs=[job_views.summary(job, now) for job in chosen])

    async def show_job(self, request: admin.JobRequest, call: Call) -> admin.JobDetail:
        """Return one job."""
        await self._runtime.check_leads()
        return self._detail(self._find(request.job, call))

    async def watch_job(self, request: admin.JobRequest, call: Call) -> AsyncIterator[admin.JobDetail]:
        """Yield the job on every change until it has ended."""
        await self._runtime.check_leads()
        job_id = self._find(request.job, call).job
        changed = asyncio.Event()
        self._watchers.add(changed)
        last = None
        try:
            while True:
                await self._runtime.check_leads()
                job = self._find(job_id, call)
                message = self._detail(job)
                shown = (job.status, message.round, message.reason, str(message.sites), message.metrics_json)
                if shown != last:
                    last = shown
                    yield message
                if finished(job.status):
                    return
                await changed.wait()
                changed.clear()
        finally:
            self._watchers.discard(changed)

    async def abort_job(self, request: admin.AbortJobRequest, call: Call) -> admin.JobSummary:
        """Abort a job; the answer means that it is in the log."""
        await self._runtime.check_leads()
        _check_request_id(request.request_id)
        job = self._find(request.job, call)
        decide = decisions.abort(
            job.job, request.reason[:500], call.principal.name, request.request_id, iso(self._runtime.clock.utcnow())
        )
        await self._runtime.ledger.propose("job_done", decide, key=job.job)
        return job_views.summary(self._runtime.book.jobs[job.job], self._runtime.clock.utcnow())

    async def prepare_download(self, request: admin.JobRequest, call: Call) -> admin.DownloadManifest:
        """Put a job's files together and list them."""
        await self._runtime.check_leads()
        job = self._find(request.job, call).job
        for tries in range(PREPARE_TRIES, 0, -1):
            seq = self._runtime.book.seq
            try:
                files = await self._downloads.prepare(job, seq)
                break
            except NotFound:  # a checkpoint overtook it
                if tries == 1:
                    raise
        entries = [admin.DownloadEntry(path=f["path"], size=f["size"], blake3=f["blake3"]) for f in files]
        return admin.DownloadManifest(job=job, seq=seq, files=entries)

    async def download_file(self, request: admin.DownloadFileRequest, call: Call) -> AsyncIterator[bytes]:
        """Stream one file of a prepared download from an offset."""
        await self._runtime.check_leads()
        job = self._find(request.job, call).job
        if request.seq > self._runtime.book.seq:
            raise BadInput(f"log position {request.seq} has not been reached")
        async for piece in self._downloads.stream(job, request.seq, request.path, request.offset):
            yield piece

    async def delete_job(self, request: admin.DeleteJobRequest, call: Call) -> common.Empty:
        """Delete an ended job; the answer means that it is in the log. Its blobs go with the next checkpoints."""
        await self._runtime.check_leads()
        _check_request_id(request.request_id)
        self._require_version_2("delete_job")
        job = self._deleted_before(request.request_id, call) or self._find(request.job, call).job
        now = iso(self._runtime.clock.utcnow())
        decide = decisions.delete(job, call.principal.name, request.request_id, now)
        await self._runtime.ledger.propose("job_deleted", decide, key=job)
        _log.info("job %s was deleted by %s", job, call.principal.name)
        return common.Empty()

    def _deleted_before(self, request_id: str, call: Call) -> str | None:
        """Return the job that this very request has deleted: an answer that was lost is given again, to its caller."""
        kind, job, who = self._runtime.book.requests.get(request_id, ("", "", ""))
        if (kind, who) != ("delete", call.principal.name):
            return None
        call.passage.admit(own_job(call.principal), job=job)
        return job

    def _require_version_2(self, what: str) -> None:
        version = self._runtime.book.log_version
        if version < 2:
            raise Refused(f"{what} needs log version 2, this log has {version}", hint="upgrade every server first")

    async def operate(self, request: admin.OperateRequest, call: Call) -> admin.OperateReply:
        """Shut down or restart sites, or restart this server; the answer means that it is in the log."""
        runtime = self._runtime
        await runtime.check_leads()
        _check_request_id(request.request_id)
        self._require_version_2("this")
        connected = runtime.streams.connected()
        known = sorted(set(runtime.kit.sites) | connected)
        about = site_object(runtime.org_of)
        sites = _named_sites(request, known, [site for site in known if call.passage.may_view(about(site))])
        asked_for = {"action": request.action, "target": _target(request), "order": request.request_id}
        for object_ in (*([Object()] if request.server else []), *map(about, sites)):  # one that is denied denies all
            call.passage.admit(object_, **asked_for)
        await asyncio.to_thread(
            orders.check_signed,
            runtime.kit,
            request,
            runtime.callers.revocations,
            caller=call.principal.name,
            now=runtime.clock.utcnow(),
        )
        item = {
            "request_id": request.request_id,
            "action": request.action,
            "by": call.principal.name,
            "target": _target(request),
            "reason": request.reason[:500],
            "time": iso(runtime.clock.utcnow()),
        }
        answer = await runtime.ledger.propose("admin_action", decisions.operate(item), key=request.request_id)
        _log.info("%s: %s of %s (%s)", call.principal.name, request.action, item["target"], item["reason"])
        reply = await self._tell_sites(request, sites)
        if request.server and isinstance(answer, Placement):  # repeated, it must not restart the next primary
            asked = f"{call.principal.name} asked for a restart"
            asyncio.get_running_loop().call_later(RESTART_DELAY_S, runtime.ask_restart, asked)
        return reply

    async def _tell_sites(self, request: admin.OperateRequest, sites: list[str]) -> admin.OperateReply:
        streams, given = self._runtime.streams, self._runtime.orders
        order = fleet.Order(
            id=request.request_id, action=request.action, reason=request.reason[:500], statement=request.statement
        )
        given.give(order, sites)
        versions, answering = streams.versions(), streams.answering()
        streams.wake_all()
        told = [site for site in sites if versions.get(site, 0) >= ORDERS_WIRE]
        refused = await given.refusals(order.id, answering.intersection(told))
        return admin.OperateReply(
            sites=[site for site in told if site not in refused],
            disconnected=[site for site in sites if site not in told],
            refused=[admin.OrderRefusal(site=site, reason=why) for site, why in refused.items()],
        )

    async def check_status(self, _: common.Empty, call: Call) -> admin.StatusReply:
        """Return this server's state and the sites connected to it."""
        runtime = self._runtime
        await runtime.check_leads()
        usage = await self._control.disk.look()
        reply = admin.StatusReply(
            server=runtime.kit.name,
            role=str(runtime.role),
            epoch=runtime.epoch,
            log_seq=max(0, runtime.book.seq),
            jobs_running=count_visible(runtime.book.running(), call.passage),
            jobs_waiting=count_visible(runtime.book.waiting(), call.passage),
            low_water=runtime.store.log.low_water,
            checkpoint=runtime.store.log.checkpoint or 0,
            log_version=runtime.book.log_version,
            store_free=usage.free if usage else 0,
            warnings=[*self._control.disk.warnings(), *runtime.callers.warnings()],
        )
        connected = runtime.streams.connected()
        known = sorted(set(runtime.kit.sites) | connected)
        for site in call.passage.keep(known, site_object(runtime.org_of)):
            stream = runtime.streams.get(site)
            jobs = visible_jobs(runtime.book, stream.held, call.passage) if stream else []
            reply.sites.add(name=site, connected=site in connected, jobs=jobs)
        return reply


def _named_sites(request: admin.OperateRequest, known: Collection[str], shown: Collection[str]) -> list[str]:
    if request.action not in ("shutdown", "restart"):
        raise BadInput(f"{request.action!r:.40} is neither shutdown nor restart")
    if request.server and request.action != "restart":
        raise BadInput("a server is shut down by shutdown_system, not by its primary")
    sites = sorted(known if ALL in request.sites else set(request.sites))
    if strangers := [site for site in sites if site not in known]:
        raise NotFound(f"no site {strangers[0]!r:.80} in this project", hint=" ".join(shown))
    if not sites and not request.server:
        raise BadInput("neither a site nor the server is named")
    return sites


def _target(request: admin.OperateRequest) -> str:
    """Return whom it is about, as it was asked: repeated, it is the same even if more sites are connected by then."""
    return " ".join([*sorted(request.sites), *(["server"] if request.server else [])])


def _check_request_id(value: str) -> None:
    if not 8 <= len(value) <= 64 or not value.isalnum():
        raise BadInput("a request id has 8 to 64 letters and digits")
