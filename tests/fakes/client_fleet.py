"""Servers that a site can talk to: the real transport and blob store, a log that is a list, and tests that pull strings.

Two fake servers share one log, as a primary and its standby share the store.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import fedhelm.wire
from fedhelm.errors import BadCertificate, NotPrimary
from fedhelm.job.bundle import pack
from fedhelm.persist.blobs import BlobRef, BlobWriter
from fedhelm.persist.store import init_store, open_store
from fedhelm.security.authorization import default_policy
from fedhelm.security.job_signing import sign_submission
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.bulk import receive_blob, ref_from_proto, ref_to_proto, stream_blob
from fedhelm.wire.chain import ServiceHandlers
from fedhelm.wire.server_certificate import ServerCertificate
from fedhelm.wire.serving import new_server

assert fedhelm.wire

JOB = "a23456723456"


@dataclass
class FakeLog:
    """What both servers read and write."""

    root: object
    cluster: str
    store: object = None
    contributions: dict = field(default_factory=dict)  # key -> (digest, metrics, receipt)
    order: list = field(default_factory=list)  # ("lines", last number) and ("contribution", key)
    lines: dict = field(default_factory=dict)  # job -> [line]
    failures: list = field(default_factory=list)
    jobs: dict = field(default_factory=dict)  # job -> AssignedJob
    offers: list = field(default_factory=list)  # every contribution that was offered, also those that were there
    ephemeral: set = field(default_factory=set)  # jobs whose contributions stay out of the log
    submitter: object = None  # the kit of who signs the jobs
    seq: int = 10

    def __post_init__(self):
        init_store(self.root, self.cluster, "poc")
        self.store = open_store(self.root, self.cluster)

    def put(self, owner, data):
        writer = BlobWriter(self.store.blobs, owner)
        writer.write(data)
        return ref_to_proto(writer.finish())

    def add_job(self, folder, job=JOB, **options):
        config = {"name": "hello", "deploy": {"app": ["@ALL"]}, "options": options}
        config["workflow"] = [{"type": "fedavg", "rounds": 3}]
        (folder / "job.yaml").write_text(json.dumps(config))
        archive = folder.with_suffix(".tar")
        pack(folder, archive)
        self.jobs[job] = fleet.AssignedJob(
            job=job,
            name="hello",
            status="RUNNING",
            bundle=self.put(f"jobs/{job}/bundle", archive.read_bytes()),
            app="app",
            script="train.py",
            options_json=json.dumps(options),
            custom_code=True,
            members=["site-1", "site-2"],
        )
        self.jobs[job].submission = sign_submission(self.submitter, job, "hello", self.jobs[job].bundle.digest)
        return self.jobs[job]

    def task(self, number, job=JOB, model=None, rounds=3):
        task = fleet.Task(
            step=0, round=number, rounds=rounds, kind="train", upload_owner=f"jobs/{job}/0-{number}/sites"
        )
        if model is not None:
            task.model.CopyFrom(self.put(f"jobs/{job}/0-{number}/model", model))
        self.jobs[job].task.CopyFrom(task)

    def no_task(self, job=JOB):
        self.jobs[job].ClearField("task")

    def close_round(self, number, job=JOB):
        del self.jobs[job].closed[:]
        self.jobs[job].closed.add(step=0, round=number, kind="train")

    def finish(self, status, job=JOB):
        self.jobs[job].status = f"FINISHED:{status}"
        self.no_task(job)

    def tensors(self, key):
        digest = self.contributions[key][0]
        owner = f"jobs/{key[0]}/{key[2]}-{key[3]}/sites"
        ref = BlobRef(owner, digest, self.contributions[key][3])
        manifest = self.store.blobs.manifest(ref)
        return b"".join(self.store.blobs.read_chunk(owner, chunk) for chunk in manifest.chunks)


class FakeFleet:
    """One server. ``hooks`` are awaited by name: ``before_record``, ``after_record``, ``push_lines``.

    ``wire`` is the newest version that it speaks; ``kept`` what it holds of ephemeral jobs, in memory only.
    """

    def __init__(self, log, kit, epoch=0, wire=2):
        self.log = log
        self.kit = kit
        self.epoch = epoch
        self.leading = False
        self.hooks = {}
        self.held = {}
        self.hellos = []
        self.serials = []  # of the certificates with which streams were opened
        self.revoked = set()
        self.refusals = 0
        self.offers = 0
        self.wire = wire
        self.kept = {}
        self.orders = []
        self.cluster = kit.cluster
        self._streams = []
        self._server = None

    async def start(self):
        self._server = new_server()
        service = fleet.DESCRIPTOR.services_by_name["Fleet"]
        self._handlers = ServiceHandlers(
            service,
            self,
            project="poc",
            epoch=lambda: self.epoch,
            policy=default_policy(),
            revocations=SimpleNamespace(check=self._check_serial),
        )
        self._server.add_generic_rpc_handlers((self._handlers,))
        self.certificate = ServerCertificate(self.kit)
        address = f"127.0.0.1:{self.kit.own_server.fed_learn_port}"
        self._server.add_secure_port(address, self.certificate.credentials())
        await self._server.start()

    async def stop(self):
        """Vanish: every call in flight breaks."""
        if self._server is not None:
            self.leading = False
            server, self._server = self._server, None
            await server.stop(None)

    def _check_serial(self, serial):
        if serial in self.revoked:
            self.refusals += 1
            raise BadCertificate("the certificate of site site-1 was revoked on 2026-11-23: laptop stolen")

    def revoke(self, serial):
        """Refuse new calls with this certificate and end those that run, as a server does."""
        self.revoked.add(serial)
        self._handlers.end_calls([serial])

    async def lead(self, epoch):
        self.leading, self.epoch = True, epoch
        self.tell()

    def tell(self):
        """Send everyone the present assignment."""
        self.log.seq += 1
        for changed in self._streams:
            changed.set()

    def order(self, action, identifier="r1", reason=""):
        """Tell everyone who is connected, and whoever connects later."""
        self.orders.append(fleet.Order(id=identifier, action=action, reason=reason))
        self.tell()

    def assignment(self):
        return fleet.Assignment(epoch=self.epoch, seq=self.log.seq, jobs=list(self.log.jobs.values()))

    async def connect(self, messages, call):
        hello = (await anext(aiter(messages))).hello
        self.hellos.append(hello)
        self.serials.append(call.principal.serial)
        self.held = {held.job: held.status for held in hello.jobs}
        changed = asyncio.Event()
        changed.set()
        self._streams.append(changed)
        reader = asyncio.ensure_future(self._read(messages))
        try:
            yield fleet.ServerMessage(
                welcome=fleet.Welcome(
                    server=self.kit.name,
                    cluster=self.cluster,
                    wire_version=max(one for one in hello.wire_versions if one <= self.wire),
                    epoch=self.epoch,
                    leading=self.leading,
                )
            )
            announced = ordered = 0
            while True:
                await changed.wait()
                changed.clear()
                if self.leading and announced != self.epoch:
                    announced = self.epoch
                    yield fleet.ServerMessage(announce=fleet.Announce(epoch=self.epoch))
                if self.leading:
                    yield fleet.ServerMessage(assignment=self.assignment())
                for order in self.orders[ordered:]:
                    ordered += 1
                    yield fleet.ServerMessage(order=order)
        finally:
            self._streams.remove(changed)
            reader.cancel()

    async def _read(self, messages):
        async for message in messages:
            self.held = {held.job: held.status for held in message.beat.jobs}

    def _check(self):
        if not self.leading:
            raise NotPrimary(f"{self.kit.name} does not lead")

    async def missing_chunks(self, request, call):
        self._check()
        return common.MissingChunksReply(indices=range(len(request.manifest.chunks)))

    async def put_blob(self, messages, call):
        self._check()
        return ref_to_proto(await receive_blob(messages, self.log.store.blobs, lambda owner: None))

    async def get_manifest(self, request, call):
        self._check()
        manifest = self.log.store.blobs.manifest(ref_from_proto(request))
        return common.Manifest(size=manifest.size, chunk_size=manifest.chunk_size, chunks=manifest.chunks)

    async def get_blob(self, request, call):
        self._check()
        async for piece in stream_blob(self.log.store.blobs, ref_from_proto(request.blob), request.offset):
            yield piece

    async def _hook(self, name):
        if name in self.hooks:
            await self.hooks[name](self)

    async def contribute(self, request, call):
        self._check()
        self.offers += 1
        self.log.offers.append(request)
        await self._hook("before_record")
        key = (request.job, request.attempt, request.step, request.round, request.kind, request.site, request.sequence)
        closed = any(one.round >= request.round for one in self.log.jobs[request.job].closed)
        if closed and key not in self.log.contributions:
            return common.Receipt(gone=True)
        if request.job in self.log.ephemeral:
            self.kept[key] = request.blob.digest
            return common.Receipt(held=True, epoch=self.epoch)
        if key not in self.log.contributions:
            self.log.seq += 1
            receipt = common.Receipt(seq=self.log.seq, epoch=self.epoch)
            metrics = json.loads(request.metrics_json)
            self.log.contributions[key] = (request.blob.digest, metrics, receipt, request.blob.size)
            self.log.order.append(("contribution", key))
        await self._hook("after_record")
        return self.log.contributions[key][2]

    async def push_lines(self, request, call):
        self._check()
        await self._hook("push_lines")
        have = self.log.lines.setdefault(request.job, [])
        for line in request.lines:
            if line.number == len(have) + 1:
                have.append(json.loads(line.json))
        self.log.order.append(("lines", len(have)))
        return fleet.LineAck(acknowledged=len(have))

    async def report_failure(self, request, call):
        self._check()
        self.log.failures.append(request)
        return common.Receipt(seq=1, epoch=self.epoch)
