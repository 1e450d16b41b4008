"""What a job process needs before it can work: the unpacked bundle, and the model of its task."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

from fedhelm.config.kit import Kit
from fedhelm.errors import BadInput, FedhelmError
from fedhelm.v1 import fleet_pb2
from fedhelm.wire.bulk import fetch_blob
from fedhelm_client.admission import admit, check_signed, check_unpacked
from fedhelm_client.folders import JobFolder, code_roots, protected_paths
from fedhelm_client.job_process import JobPlan
from fedhelm_client.links import Links
from fedhelm_client.site_trail import SiteTrail

__all__ = ["MODELS_KEPT", "fetch_model", "let_go", "prepare"]

MODELS_KEPT = 3
"""Models that stay on the site's disk; a script may still read the one before its task's."""


async def prepare(
    kit: Kit,
    links: Links,
    folder: JobFolder,
    assigned: fleet_pb2.AssignedJob,
    door: Path,
    *,
    trail: SiteTrail,
) -> JobPlan:
    """Fetch and unpack the bundle, unless it is here already; return what the job process is to run.

    ``door`` is the folder of the job's socket, the only one of those that its script reaches. ``trail`` is told
    whether the job was taken in.

    Raises:
        NotAuthorised: who submitted the job did not sign this, or may not run it here; names the site and the rule.
        BadInput: the bundle is damaged or hostile, or has no such script.
        OSError: the disk refused.
    """
    if folder.bundle.is_dir():  # admitted before, by this agent or an earlier one
        await asyncio.to_thread(check_unpacked, kit, assigned, folder.bundle)
    else:
        await _take_in(kit, links, folder, assigned, trail)
    app, script = folder.script(assigned.app, assigned.script)
    code = await asyncio.to_thread(code_roots)
    return JobPlan(
        script=script,
        app=app,
        work=folder.work,
        protect=(*protected_paths(kit), *code),
        read=(folder.bundle, folder.models, door, *code),
        write=(folder.work, folder.results),
    )


async def _take_in(
    kit: Kit, links: Links, folder: JobFolder, assigned: fleet_pb2.AssignedJob, trail: SiteTrail
) -> None:
    from fedhelm.job.bundle import unpack

    submitter = None
    try:
        submitter = await asyncio.to_thread(check_signed, kit, assigned)
        archive = folder.root / "bundle.tar"
        what = f"bundle of job {assigned.job}"
        await links.to_leader(what, lambda stub: fetch_blob(stub, assigned.bundle, archive))
        try:
            await asyncio.to_thread(admit, kit, assigned, archive, submitter)
            await asyncio.to_thread(unpack, archive, folder.bundle)
        finally:
            archive.unlink()
    except FedhelmError as error:
        trail.job(assigned.job, submitter, error)
        raise
    trail.job(assigned.job, submitter)


def let_go(folder: JobFolder) -> None:
    """Delete the unpacked bundle of a job that is over: whoever wants it to run again has to have it admitted again."""
    over = folder.root / "bundle.over"
    shutil.rmtree(over, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.bundle.rename(over)  # at once: what is half deleted must not look like one that was admitted
    shutil.rmtree(over, ignore_errors=True)


async def fetch_model(links: Links, folder: JobFolder, job: str, order: fleet_pb2.Task) -> Path | None:
    """Return the file of a task's model, fetched once; None if the task has none.

    Raises:
        BadInput: its digest cannot be a file's name.
        Corrupt: it arrived damaged.
    """
    if not order.HasField("model"):
        return None
    digest = order.model.digest
    if not digest.isalnum():
        raise BadInput(f"a model with the digest {digest!r:.80}")
    target = folder.models / f"{digest}.safetensors"
    if not target.exists():
        await links.to_leader(
            f"model of job {job}, round {order.round}", lambda stub: fetch_blob(stub, order.model, target)
        )
        await asyncio.to_thread(_keep_newest, folder.models, MODELS_KEPT)
    return target


def _keep_newest(folder: Path, count: int) -> None:
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    for path in files[:-count]:
        path.unlink()
