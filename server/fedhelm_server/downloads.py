"""Exports of jobs on this server's disk, and streaming their files."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fedhelm.errors import FedhelmError, NotFound
from fedhelm.persist.blobs import BlobRef
from fedhelm.process import child_env
from fedhelm.wire.bulk import PIECE, stream_blob
from fedhelm_server.export import MANIFEST
from fedhelm_server.places import job_folder
from fedhelm_server.runtime import Runtime

__all__ = ["Downloads"]

_TIMEOUT_S = 600.0


class Downloads:
    """Makes each export once, and serves its files."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._making: dict[Path, asyncio.Task[None]] = {}

    async def prepare(self, job: str, seq: int) -> list[dict[str, Any]]:
        """Return the files of ``job`` as of log position ``seq``: ``{path, size, blake3, blob}``.

        Raises:
            FedhelmError: the export failed; the message has its last line.
        """
        folder = self._folder(job, seq)
        if not (folder / MANIFEST).exists():
            task = self._making.get(folder)
            if task is None:
                task = self._making[folder] = asyncio.ensure_future(self._make(job, seq, folder))
                task.add_done_callback(lambda _: self._making.pop(folder, None))
            await asyncio.shield(task)
        files: list[dict[str, Any]] = json.loads(await asyncio.to_thread((folder / MANIFEST).read_bytes))
        return files

    def _folder(self, job: str, seq: int) -> Path:
        return job_folder(self._runtime.kit.run, job) / f"export-{seq}"

    async def _make(self, job: str, seq: int, folder: Path) -> None:
        part = folder.with_name(folder.name + ".part")
        await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)
        await asyncio.to_thread(part.mkdir, parents=True)
        root = self._runtime.kit.root
        command = [sys.executable, "-m", "fedhelm_server.export", "--kit", str(root), "--job", job]
        command += ["--seq", str(seq), "--target", str(part), "--parent-pid", str(os.getpid())]
        process = await asyncio.create_subprocess_exec(
            *command,
            env=child_env(root, "export"),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, errors = await asyncio.wait_for(process.communicate(), _TIMEOUT_S)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode != 0:
            last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise FedhelmError(f"the result of job {job} cannot be put together: {last[0]}")
        part.replace(folder)

    async def stream(self, job: str, seq: int, path: str, offset: int) -> AsyncIterator[bytes]:
        """Yield one file of an export from an offset.

        Raises:
            NotFound: the export has no such file.
        """
        files = {entry["path"]: entry for entry in await self.prepare(job, seq)}
        entry = files.get(path)
        if entry is None:
            raise NotFound(f"job {job} has no file {path!r:.200}")
        if entry["blob"] is not None:
            async for piece in stream_blob(self._runtime.store.blobs, BlobRef.from_json(entry["blob"]), offset):
                yield piece
            return
        fd = await asyncio.to_thread(os.open, self._folder(job, seq) / path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while piece := await asyncio.to_thread(os.pread, fd, PIECE, offset):
                yield piece
                offset += len(piece)
        finally:
            os.close(fd)
