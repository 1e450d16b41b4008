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

from fedhelm.errors import Corrupt, FedhelmError, NotFound
from fedhelm.persist.blobs import BlobRef
from fedhelm.process import child_env
from fedhelm.wire.bulk import PIECE, stream_blob
from fedhelm_server.export import MANIFEST, POSITION_GONE
from fedhelm_server.places import job_folder
from fedhelm_server.runtime import Runtime

__all__ = ["Downloads"]

_TIMEOUT_S = 600.0
KEPT = 2
"""Exports of one job that stay on this server's disk: the newest."""


class Downloads:
    """Makes each export once, and serves its files."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._making: dict[Path, asyncio.Task[None]] = {}

    async def prepare(self, job: str, seq: int) -> list[dict[str, Any]]:
        """Return the files of ``job`` as of log position ``seq``: ``{path, size, blake3, blob}``.

        Raises:
            NotFound: the log was shortened, and does not tell any more how the job was there.
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
        if process.returncode:
            last = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            error = NotFound if process.returncode == POSITION_GONE else FedhelmError
            raise error(f"the result of job {job} cannot be put together: {last[0]}")
        part.replace(folder)
        await asyncio.to_thread(self._prune, folder.parent)

    def _prune(self, parent: Path) -> None:
        numbers = {path: path.name.removeprefix("export-") for path in parent.glob("export-*")}
        made = sorted((path for path, number in numbers.items() if number.isdecimal()), key=lambda p: int(numbers[p]))
        for old in made[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

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
            try:
                async for piece in stream_blob(self._runtime.store.blobs, BlobRef.from_json(entry["blob"]), offset):
                    yield piece
            except Corrupt as error:
                if self._runtime.book.covered <= seq:
                    raise
                raise NotFound(f"a newer model has replaced that of slot {seq}: {error}") from error
            return
        try:
            fd = await asyncio.to_thread(os.open, self._folder(job, seq) / path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"a newer download of job {job} has replaced that of slot {seq}") from error
        try:
            while piece := await asyncio.to_thread(os.pread, fd, PIECE, offset):
                yield piece
                offset += len(piece)
        finally:
            os.close(fd)
