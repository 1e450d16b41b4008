"""Decoders of what comes over the network: protobuf, errors, the overseer's API, frames of neighbours on one machine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from fedhelm.admin import decode as admin_decode
from fedhelm.admin.transfer import Staging, local_path
from fedhelm.config.kit import OverseerAddress
from fedhelm.errors import FedhelmError
from fedhelm.local import frames
from fedhelm.local.script_protocol import Result, TaskOrder, Welcome, check_lines, check_metrics
from fedhelm.persist.blobs import blake3_hex
from fedhelm.privacy.policy import PrivacyPolicy
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire import overseer_api as api
from fedhelm.wire.bulk import receive_blob, ref_from_proto
from fedhelm.wire.faults import ERROR_KEY, decode_error, encode_error, epoch_of
from fedhelm.wire.overseer_answers import EVENTS, HISTORY, SERVERS, checked, parse, parse_all, unable
from fedhelm_client.outbox import id_of, is_closed
from fedhelm_console.news import News
from fedhelm_console.render import _metrics
from tests.fakes.persist_memory import MemoryBlobStore
from tests.fakes.server_log import JOB
from tests.hostile.decoder import Decoder, as_text, as_utf8, dump

BLOB = common.BlobRef(owner=f"jobs/{JOB}/0-1/sites", digest="ab" * 32, size=3)
MANIFEST = common.Manifest(size=3, chunk_size=1024, chunks=[blake3_hex(b"abc")])
TASK = fleet.Task(kind="train", round=1, rounds=3, step=0, sequence=0, model=BLOB, model_sha256="cd" * 32)
ASSIGNED = fleet.AssignedJob(
    job=JOB, name="hello", status="RUNNING", attempt=1, bundle=BLOB, options_json='{"lr":0.1}', task=TASK
)
REQUESTS: tuple[Any, ...] = (
    admin.LoginRequest(nonce=b"n" * 32, signature=b"s" * 70, wire_versions=[1, 2]),
    admin.SubmitJobRequest(job=JOB, request_id="request99", bundle=BLOB),
    admin.ListJobsRequest(prefix="ab", limit=3),
    admin.JobRequest(job=JOB),
    admin.AbortJobRequest(job=JOB, request_id="request99", reason="why"),
    admin.DownloadFileRequest(job=JOB, seq=7, path="summary.json", offset=3),
    admin.DeleteJobRequest(job=JOB, request_id="request99"),
    admin.OperateRequest(request_id="request99", action="restart", sites=["site-1"], reason="why"),
    common.MissingChunksRequest(owner=BLOB.owner, manifest=MANIFEST),
    common.GetBlobRequest(blob=BLOB, offset=1),
    BLOB,
    fleet.SiteMessage(hello=fleet.Hello(cluster="c" * 32, incarnation="i1", wire_versions=[1, 2])),
    fleet.SiteMessage(beat=fleet.Beat(jobs=[fleet.HeldJob(job=JOB, status="TRAINING")])),
    fleet.Contribution(
        job=JOB, attempt=1, step=0, round=1, kind="train", site="site-1", weight=1.5, blob=BLOB, metrics_json='{"a":1}'
    ),
    fleet.LineBatch(job=JOB, lines=[fleet.Line(number=1, json='{"kind":"log"}')]),
    fleet.FailureReport(job=JOB, attempt=1, reason="why", traceback="where", round=1),
)
REPLIES: tuple[Any, ...] = (
    fleet.ServerMessage(welcome=fleet.Welcome(server="server1", cluster="c" * 32, wire_version=2, epoch=3)),
    fleet.ServerMessage(announce=fleet.Announce(epoch=3)),
    fleet.ServerMessage(order=fleet.Order(id="request99", action="restart", reason="why")),
    fleet.ServerMessage(assignment=fleet.Assignment(epoch=3, seq=9, jobs=[ASSIGNED])),
    common.Receipt(seq=9, index=1, epoch=3),
    common.MissingChunksReply(indices=[0]),
    fleet.LineAck(acknowledged=3),
)
DOWNLOAD = admin.DownloadManifest(
    job=JOB,
    seq=7,
    files=[
        admin.DownloadEntry(path="summary.json", size=3, blake3=blake3_hex(b"abc")),
        admin.DownloadEntry(path="models/final.safetensors", size=0, blake3=blake3_hex(b"")),
    ],
)
OVERSEER = OverseerAddress("overseer", "127.0.0.1", 8443)
ROUNDED = PrivacyPolicy.parse('{"format_version": "1.0", "metrics": {"digits": 3}}', "privacy.json")
EVENT = {"id": 3, "time": "2026-01-01T00:00:00.000Z", "kind": "failover", "text": "x", "data": {"name": "server1"}}


def _messages() -> tuple[type[Any], ...]:
    """Every message of the protocol, asked of the descriptors: a new one is eaten without a word here."""
    found = [file.DESCRIPTOR.message_types_by_name for file in (common, fleet, admin)]
    return tuple(GetMessageClass(one) for names in found for one in names.values())


class _EveryMessage:
    """The bytes as every message of the protocol; what is read is what is written again."""

    def __init__(self) -> None:
        self._classes = _messages()

    def __call__(self, data: bytes) -> object:
        taken = 0
        for kind in self._classes:
            try:
                message = kind.FromString(data)
            except DecodeError:
                continue
            assert kind.FromString(message.SerializeToString(deterministic=True)) == message or b"nan" in data.lower()
            taken += 1
        return taken


def _of(kind: type[Any], take: Callable[[Any], object]) -> Callable[[bytes], object]:
    return lambda data: take(kind.FromString(data))


def _wire_bytes(*messages: Any) -> tuple[bytes, ...]:
    return tuple(message.SerializeToString() for message in messages)


def _upload(data: bytes) -> object:
    """The first byte says how much of the rest is the header; what follows comes in two pieces."""
    cut = data[0] if data else 0
    header, rest = data[1 : 1 + cut], data[1 + cut :]

    async def messages() -> Any:
        for piece in (header, rest[: len(rest) // 2], rest[len(rest) // 2 :]):
            yield piece

    return _run(receive_blob(messages(), MemoryBlobStore(), lambda _: None, 1 << 20))


def _run(work: Any) -> object:
    """Run a coroutine that waits for nothing but its own threads."""
    with asyncio.Runner() as runner:
        return runner.run(work)


class _Download:
    """A server's list of files and their bytes, as ``Staging`` takes them."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __call__(self, data: bytes) -> object:
        manifest = admin.DownloadManifest.FromString(data)
        folder = self._place / "download"
        try:
            staging = Staging(folder, JOB)
            for entry, offset in list(staging.wanted(manifest))[:8]:
                staging.receive(entry, offset, iter([b"abc"[offset:][: entry.size]]), lambda _: None)
            return staging.finish(manifest)
        finally:
            _clear(folder)


def _clear(folder: Path) -> None:
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


def _assigned(message: Any) -> object:
    """What a site reads of what a server says."""
    for job in message.assignment.jobs:
        one = id_of(job.attempt, job.task)
        is_closed(one, job.closed)
        if job.task.HasField("model"):
            ref_from_proto(job.task.model)
    return message


def _shown(data: bytes) -> object:
    detail = admin_decode.detail(admin.JobDetail.FromString(data))
    return _metrics(detail.metrics_json)


def _replies(data: bytes) -> object:
    admin_decode.signed_in(admin.LoginReply.FromString(data))
    return admin_decode.status(admin.StatusReply.FromString(data))


def _told(data: bytes) -> object:
    """An error of another participant becomes one of ours; ``decode_error`` returns it."""
    error = decode_error(grpc.StatusCode.UNKNOWN, data.decode(errors="replace"), [(ERROR_KEY, data)], "server1")
    assert isinstance(error, FedhelmError)
    assert isinstance(error.message, str)
    assert error.hint is None or isinstance(error.hint, str)
    return error


def _epoch(data: bytes) -> object:
    return epoch_of([("fedhelm-epoch", data.decode("latin-1"))])  # as gRPC hands it over


def _answered(data: bytes) -> object:
    status = 200 + 100 * (data[0] % 4) if data else 500
    answer = SimpleNamespace(status_code=status, content=data[1:])
    unable(answer)
    return checked(answer, OVERSEER)


def decoders(place: Path) -> Iterator[Decoder]:
    refuses = (FedhelmError, DecodeError)  # gRPC answers a request that its parser refuses
    yield Decoder("protobuf: every message", _EveryMessage(), _wire_bytes(*REQUESTS, *REPLIES, DOWNLOAD), refuses)
    yield Decoder("protobuf: assignment", _of(fleet.ServerMessage, _assigned), _wire_bytes(*REPLIES[:4]), refuses)
    yield Decoder("protobuf: reference", _of(common.BlobRef, ref_from_proto), _wire_bytes(BLOB), refuses)
    yield Decoder(
        "protobuf: job for the console", _shown, _wire_bytes(admin.JobDetail(metrics_json='{"a":1}')), refuses
    )
    status = admin.StatusReply(server="server1", role="ACTIVE", epoch=3, warnings=["full"])
    yield Decoder("protobuf: status for the console", _replies, _wire_bytes(status), refuses)
    header = common.PutBlobHeader(owner=BLOB.owner, manifest=MANIFEST, indices=[0]).SerializeToString()
    yield Decoder("upload", _upload, (bytes([len(header)]) + header + b"abc",))
    yield Decoder("download: list of files", _Download(place), _wire_bytes(DOWNLOAD), (*refuses, OSError))
    names = (b"summary.json", b"models/final.safetensors", b"../x")
    yield Decoder("download: path", as_text(lambda name: local_path(place, name)), names)
    yield Decoder("error on the wire", _told, (encode_error(FedhelmError("what", hint="do")),))
    yield Decoder("console: metrics", as_utf8(_metrics), (b'{"loss":0.5,"n":3}', b""))
    yield Decoder("epoch on the wire", _epoch, (b"7", b"12345678901234567890"))
    yield from _overseer()
    yield from _frames()


def _overseer() -> Iterator[Decoder]:
    lease = api.LeaseView(version=3, epoch=2, holder="server1", incarnation="aa", state="active")
    bodies: tuple[Any, ...] = (
        api.RegisterRequest(incarnation="aa", cluster="c" * 32, store_token="server1~0123456789abcdef"),
        api.BeatRequest(incarnation="aa", role="STANDBY", log_epoch=1, log_seq=4, ready=True),
        api.RenewRequest(epoch=1, incarnation="aa", log_epoch=1, log_seq=4, role="ACTIVE"),
        api.ActivateRequest(epoch=1, incarnation="aa", log_seq=4, jobs=1),
        api.ReleaseRequest(epoch=1, incarnation="aa", reason="x"),
        api.PromoteRequest(target="server2", request_id="r1"),
        api.OperateRequest(request_id="r1", reason="why"),
    )
    answers: tuple[Any, ...] = (
        lease,
        api.RenewReply(held=True, lease=lease),
        api.RegisterReply(accepted=False, lease=lease, retry_after_s=1.5, message="x"),
        api.PrimaryView(name="server1", epoch=2, host="h", fed_learn_port=1, admin_port=2, ssid="poc:2"),
        api.SystemView(paused=True, paused_by="a@b.com"),
        api.ExplainView(name="server1", candidate=True, verdict="x", checks=(api.Check(name="a", ok=True, text="t"),)),
        api.Event(**EVENT),
        api.Health(status="ok", project="poc", version="1"),
    )
    for title, models in (("requests", bodies), ("answers", answers)):
        seeds = tuple(one.model_dump_json().encode() for one in models)
        yield Decoder(f"overseer: {title}", _Models(tuple(type(one) for one in models)), seeds)
    lists = (dump([json.loads(seeds[6])]), dump([EVENT]), dump([]))
    yield Decoder("overseer: lists", _lists, lists)
    told = api.ErrorBody(code="NOT_FOUND", message="x", hint=None).model_dump_json().encode()
    yield Decoder("overseer: refusals", _answered, (b"\x02" + told, b"\x03" + told))
    yield Decoder("overseer: news", _news, tuple(dump({**EVENT, "kind": kind}) for kind in ("failover", "alarm")))


class _Models:
    """The bytes as every one of these bodies: all may refuse them, none may do anything else."""

    def __init__(self, models: tuple[Any, ...]) -> None:
        self._models = models

    def __call__(self, data: bytes) -> object:
        refusal: FedhelmError | None = None
        for model in self._models:
            try:
                parse(model, data)
            except FedhelmError as error:
                refusal = error
        if refusal is not None:
            raise refusal
        return data


def _lists(data: bytes) -> object:
    found: list[object] = []
    for adapter in (SERVERS, HISTORY, EVENTS):
        try:
            found.append(parse_all(adapter, data))
        except FedhelmError as error:
            refusal = error
    if not found:
        raise refusal
    return found


def _news(data: bytes) -> object:
    event = admin_decode.event(parse(api.Event, data))
    news, items = News.since(["server1"], "server1").hear(event, 10.0)
    return items, news.due(100.0)


def _frames() -> Iterator[Decoder]:
    welcome = Welcome("site-1", JOB, "hello", ("site-1",), {"lr": 0.1}, Path("/work")).fields()
    task = TaskOrder("1-0-1-train-0", "train", 1, 3, 0, 0, Path("/m"), "ab" * 32, Path("/r")).fields()
    result = {"key": "1-0-1-train-0", "file": "r.safetensors", "weight": 3.0, "metrics": {"loss": 0.5}}
    line = {"kind": "scalar", "tag": "loss", "value": "nan", "step": 1, "time": "2026-01-01T00:00:00.000Z"}
    stream = frames.encode({"type": "hello", "token": "t", "pid": 7}) + frames.encode({"type": "next"})
    yield Decoder("frames: stream", lambda data: frames.FrameReader().feed(data), (stream,))
    yield Decoder("frames: body", frames.decode, (dump({"type": "beat", "role": "ACTIVE"}),))
    for kind, value, take in (
        ("welcome", welcome, Welcome.from_frame),
        ("task", task, TaskOrder.from_frame),
        ("result", result, Result.from_frame),
        ("metrics", {"metrics": {"loss": 0.5}}, lambda frame: check_metrics(frame.get("metrics"))),
        ("lines", {"lines": [line]}, _lines_that_leave),
    ):
        yield Decoder(f"script: {kind}", _frame(take), (dump({"type": kind, **value}),))


def _lines_that_leave(frame: dict[str, Any]) -> object:
    return [ROUNDED.outgoing_line(line) for line in check_lines(frame.get("lines"))]


def _frame(take: Callable[[dict[str, Any]], object]) -> Callable[[bytes], object]:
    return lambda data: take(frames.decode(data))
