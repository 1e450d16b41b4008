"""Exports on a server's disk: one for each position that is asked for, and not without end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedhelm.errors import Corrupt, FedhelmError, NotFound
from fedhelm_server import downloads
from fedhelm_server.downloads import KEPT, Downloads
from fedhelm_server.export import MANIFEST, POSITION_GONE
from tests.fakes.persist_memory import MemoryBlobStore
from tests.fakes.server_log import JOB, blob

MODEL = {"path": "models/final.safetensors", "size": 3, "blake3": "", "blob": blob(f"jobs/{JOB}/0-1/model")}
FILE = {"path": "summary.json", "size": 2, "blake3": "", "blob": None}


def fill(target):
    (target / MANIFEST).write_text(json.dumps([MODEL, FILE]))
    (target / FILE["path"]).write_text("{}")


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Downloads whose exporting process is a few lines of Python; its exit status is `status`."""
    kit = SimpleNamespace(run=tmp_path / "run", root=tmp_path)
    runtime = SimpleNamespace(kit=kit, book=SimpleNamespace(covered=-1), store=SimpleNamespace(blobs=MemoryBlobStore()))
    found = Downloads(runtime)
    found.status = 0
    start = asyncio.create_subprocess_exec

    async def process(*command, **options):
        target = command[command.index("--target") + 1]
        if not found.status:
            fill(Path(target))
        script = f"echo 'why not' >&2; exit {found.status}"
        return await start("/bin/sh", "-c", script, **options)

    monkeypatch.setattr(downloads.asyncio, "create_subprocess_exec", process)
    return found


def folders(made):
    return sorted(int(path.name[7:]) for path in (made._runtime.kit.run / "jobs" / JOB).glob("export-*"))


async def read(made, seq, path):
    return b"".join([piece async for piece in made.stream(JOB, seq, path, 0)])


async def test_the_newest_exports_of_a_job_stay(made):
    for seq in (9, 10, 100, 101):
        await made.prepare(JOB, seq)
    assert folders(made) == [100, 101]
    assert len(folders(made)) == KEPT
    assert await read(made, 101, FILE["path"]) == b"{}"


async def test_a_position_that_the_log_does_not_tell_any_more_is_not_found_and_other_failures_are_failures(made):
    made.status = POSITION_GONE
    with pytest.raises(NotFound, match="why not"):
        await made.prepare(JOB, 5)
    made.status = 1
    with pytest.raises(FedhelmError, match="why not") as failed:
        await made.prepare(JOB, 5)
    assert not isinstance(failed.value, NotFound)


async def test_a_model_that_was_replaced_since_asks_for_a_new_download_but_a_damaged_one_is_damaged(made):
    await made.prepare(JOB, 5)
    with pytest.raises(Corrupt):
        await read(made, 5, MODEL["path"])
    made._runtime.book.covered = 6
    with pytest.raises(NotFound, match="newer model"):
        await read(made, 5, MODEL["path"])
