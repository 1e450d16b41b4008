"""What a job process needs before it can work: the unpacked bundle, and the model of its task."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

from fedhelm.errors import BadInput, FedhelmError
from fedhelm.job.model import JobConfig
from fedhelm.v1 import fleet_pb2
from fedhelm.wire.bulk import fetch_blob
from fedhelm_client.admission import admit, check_signed, check_unpacked
from fedhelm_client.folders import JobFolder
from fedhelm_client.job_process import JobPlan
from fedhelm_client.links import Links
from fedhelm_client.reach import reach_of
from fedhelm_client.site import Site

__all__ = ["MODELS_KEPT", "fetch_model", "let_go", "prepare"]

MODELS_KEPT = 3
"""Models that stay on the site's disk; a script may still read the one before its task's."""


async def prepare(
    site: Site, folder: JobFolder, assigned: fleet_pb2.AssignedJob, door: Path
) -> tuple[JobConfig, JobPlan]:
    """Fetch and unpack the bundle, unless it is here already; return what it says, and what the job process is to run.

    Args:
        site: where; its audit file has whether the job was taken in.
        folder: the job's.
        assigned: what the server says.
        door: the folder of the job's socket, the only one of those that its script reaches.

    Raises:
        NotAuthorised: who submitted the job did not sign this, or may not run it here; names the site and the rule.
        KitError: this site cannot tell whose certificate was revoked.
        BadInput: the bundle is damaged or hostile, or has no such script.
        OSError: the disk refused.
    """
    if not folder.bundle.is_dir():  # else it was admitted before, by this agent or an earlier one
        await _take_in(site, folder, assigned)
    config = await asyncio.to_thread(check_unpacked, site.kit, assigned, folder.bundle)
    app, script = folder.script(config.app, config.script)
    reach = await asyncio.to_thread(reach_of, site.kit, folder, door)
    return config, JobPlan(
        script=script, app=app, work=folder.work, protect=reach.protect, read=reach.read, write=reach.write
    )


async def _take_in(site: Site, folder: JobFolder, assigned: fleet_pb2.AssignedJob) -> None:
    from fedhelm.job.bundle import unpack

    submitter = None
    try:
        signed = await asyncio.to_thread(check_signed, site.kit, assigned, site.revocations)
        submitter = signed.submitter
        site.ended.check_age(assigned.job, signed.time)
        archive = folder.root / "bundle.tar"
        what = f"bundle of job {assigned.job}"
        await site.links.to_leader(what, lambda stub: fetch_blob(stub, assigned.bundle, archive))
        try:
            await asyncio.to_thread(admit, site.kit, assigned, archive, submitter)
            await site.trail.taken(assigned.job, submitter)
            await asyncio.to_thread(unpack, archive, folder.bundle)
        finally:
            archive.unlink()
    except FedhelmError as error:
        site.trail.job(assigned.job, submitter, error)
        raise


def let_go(folder: JobFolder) -> None:
    """Delete the unpacked bundle of a job that is over, and the privacy policy that it began with.

    Whoever wants it to run again has to have it admitted again, under the policy of that day.
    """
    over = folder.root / "bundle.over"
    shutil.rmtree(over, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.bundle.rename(over)  # at once: what is half deleted must not look like one that was admitted
    with contextlib.suppress(OSError):  # without a bundle beside it, it counts for nothing
        folder.privacy.unlink(missing_ok=True)
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
