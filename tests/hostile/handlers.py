"""The handlers of a leading server, behind gRPC's parser: a real runtime, ledger and book over a store in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from fedhelm.errors import FedhelmError
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from tests.fakes.server_log import JOB
from tests.hostile.decoder import Decoder
from tests.hostile.wire import REQUESTS
from tests.unit.test_primary_services import admin_call, primary_in, site_call

MORE = (
    common.BlobRef(owner=f"jobs/{JOB}/bundle", digest="ab" * 32, size=3),
    fleet.Contribution(job=JOB, attempt=1, round=1, kind="train", site="site-1", weight=1.5, metrics_json='{"a":1}'),
    common.MissingChunksRequest(owner=f"jobs/{JOB}/0-1/sites", manifest=common.Manifest(chunk_size=1024)),
)


class _Primary:
    """A primary on a loop of its own, in a thread that ends with the process."""

    def __init__(self, place: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self._primary: Any = None
        up = threading.Event()

        async def live() -> None:
            async with primary_in(place) as self._primary:
                up.set()
                await asyncio.Event().wait()

        threading.Thread(target=lambda: self.loop.run_until_complete(live()), daemon=True).start()
        assert up.wait(30)

    def call(self, service: str, name: str, request: Any) -> object:
        handler = getattr(getattr(self._primary, service), name)
        call = site_call("site-1") if service == "fleet" else admin_call()

        async def answer() -> object:
            found = handler(request, call)
            if hasattr(found, "__aiter__"):
                return [piece async for piece in found]
            return await found

        return asyncio.run_coroutine_threadsafe(answer(), self.loop).result(30)


def decoders(place: Path) -> Iterator[Decoder]:
    started: list[_Primary] = []

    def primary() -> _Primary:
        if not started:
            started.append(_Primary(place))
        return started[0]

    def one(service: str, name: str, kind: Any, *more: Any) -> Decoder:
        seeds = [one for one in (*REQUESTS, *more) if isinstance(one, kind)]
        decode = _handled(primary, service, name, kind)
        refuses = (FedhelmError, DecodeError)
        return Decoder(f"{service}.{name}", decode, tuple(seed.SerializeToString() for seed in seeds), refuses)

    for name, kind in (
        ("contribute", fleet.Contribution),
        ("push_lines", fleet.LineBatch),
        ("report_failure", fleet.FailureReport),
        ("missing_chunks", common.MissingChunksRequest),
        ("get_manifest", common.BlobRef),
        ("get_blob", common.GetBlobRequest),
    ):
        yield one("fleet", name, kind, *MORE)
    for name, kind in (
        ("submit_job", admin.SubmitJobRequest),
        ("list_jobs", admin.ListJobsRequest),
        ("show_job", admin.JobRequest),
        ("delete_job", admin.DeleteJobRequest),
        ("operate", admin.OperateRequest),
    ):
        yield one("admin", name, kind)


def _handled(primary: Callable[[], _Primary], service: str, name: str, kind: Any) -> Callable[[bytes], object]:
    def decode(data: bytes) -> object:
        return primary().call(service, name, kind.FromString(data))

    return decode
