"""Where what belongs to a job is kept: owners of blobs in the store, and the server's own folder of it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["bundle_owner", "job_folder", "lines_owner", "model_owner", "provenance_owner", "sites_owner"]


def job_folder(run: Path, job: str) -> Path:
    """Return the server's own folder of a job; what is in it can be made again from the store."""
    return run / "jobs" / job


def bundle_owner(job: str) -> str:
    """Return the blob owner of a job's bundle."""
    return f"jobs/{job}/bundle"


def sites_owner(job: str, step: int, round_: int) -> str:
    """Return the blob owner of the sites' results of one round."""
    return f"jobs/{job}/{step}-{round_}/sites"


def model_owner(job: str, step: int, round_: int) -> str:
    """Return the blob owner of the model that a round made; round 0 is the initial model."""
    return f"jobs/{job}/{step}-{round_}/model"


def provenance_owner(job: str) -> str:
    """Return the blob owner of the signed statement of where a job's models come from."""
    return f"jobs/{job}/provenance"


def lines_owner(job: str, covered: int) -> str:
    """Return the blob owner of the lines that left the log with the checkpoint of slot ``covered``."""
    return f"jobs/{job}/lines/{covered:016d}"
