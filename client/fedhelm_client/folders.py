"""Where a site keeps what belongs to a job, and where its own code is. Paths only, no decisions."""

from __future__ import annotations

import os
import shutil
import site
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedhelm.config.kit import Kit
from fedhelm.errors import BadInput
from fedhelm.ids import check_job_id

__all__ = ["RUNTIME_BASE", "RUNTIME_PREFIX", "JobFolder", "code_roots", "later_code", "make_runtime_dir", "outbox_dir"]

RUNTIME_BASE = Path("/tmp")  # noqa: S108 - mkdtemp makes a private folder in it; TMPDIR may be too long a path
"""Where agents make the folders of their sockets."""

RUNTIME_PREFIX = "fh-"
"""How the names of those begin."""


@dataclass(frozen=True)
class JobFolder:
    """``run/jobs/<job>``: ``bundle/`` (as submitted), ``work/`` (the script's), ``models/``, ``results/``."""

    root: Path

    @classmethod
    def of(cls, kit: Kit, job: str) -> JobFolder:
        """Return the folder of a job.

        Raises:
            BadInput: ``job`` is no job id.
        """
        return cls(kit.run / "jobs" / check_job_id(job))

    @property
    def bundle(self) -> Path:
        """The unpacked bundle."""
        return self.root / "bundle"

    @property
    def work(self) -> Path:
        """The script's current folder; it may write here."""
        return self.root / "work"

    @property
    def models(self) -> Path:
        """Models fetched, by digest."""
        return self.root / "models"

    @property
    def results(self) -> Path:
        """Where the script writes what it submits; on the file system of the outbox."""
        return self.root / "results"

    @property
    def log(self) -> Path:
        """Output of the job process."""
        return self.root / "log.txt"

    @property
    def plan(self) -> Path:
        """What the job process is to do."""
        return self.root / "plan.json"

    @property
    def failure(self) -> Path:
        """Why the job failed here; a restarted agent reports it again instead of running the job again."""
        return self.root / "failed.json"

    @property
    def privacy(self) -> Path:
        """The site's privacy policy as it was when the job began here."""
        return self.root / "privacy.json"

    def make(self) -> None:
        """Make the folders."""
        for folder in (self.root, self.work / "tmp", self.models, self.results):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def script(self, app: str, script: str) -> tuple[Path, Path]:
        """Return the app folder and the script in the unpacked bundle.

        Raises:
            BadInput: one of them is missing, or leads out of the bundle.
        """
        bundle = self.bundle.resolve()
        folder = (bundle / app).resolve()
        file = (folder / script).resolve()
        if not folder.is_relative_to(bundle) or not file.is_relative_to(folder):
            raise BadInput(f"the script {app}/{script} leads out of the job's bundle")
        if not file.is_file():
            raise BadInput(f"the job's bundle has no {app}/{script}")
        return folder, file


def outbox_dir(kit: Kit) -> Path:
    """Return the folder of results and lines that are not closed yet."""
    return kit.run / "outbox"


def code_roots() -> list[Path]:
    """Return the folders from which this process runs code, each once: a job process may read them only.

    The interpreter's, and every folder of the module path, whatever is in it: a module that is written there would be
    run by the next agent, which can read the key. The path's first folder only if it has packages of this project: it
    is the one in which somebody typed ``python -m``, where their data may be.
    """
    found = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)}
    first, *others = sys.path
    others += [first] if any(Path(first).glob("fedhelm*/__init__.py")) else []
    found |= {Path(entry).resolve() for entry in others if os.path.isdir(Path(entry))}  # noqa: PTH112 - Path.is_dir may raise
    return sorted(path for path in found if found.isdisjoint(path.parents))


def later_code() -> list[Path]:
    """Return folders that are not there and that the next agent would run code from, if somebody made them."""
    later = Path(site.getusersitepackages())
    return [later] if site.ENABLE_USER_SITE and not later.exists() else []


def make_runtime_dir(kit: Kit) -> Path:
    """Make a short folder of mode 0700 for sockets (their paths are limited to about 100 bytes).

    What an earlier agent of this kit left there is deleted.
    """
    note = kit.run / "runtime"
    if note.is_symlink() and Path(note.readlink()).name.startswith(RUNTIME_PREFIX):
        shutil.rmtree(note.readlink(), ignore_errors=True)
    note.unlink(missing_ok=True)
    base = RUNTIME_BASE if os.access(RUNTIME_BASE, os.W_OK) else None
    runtime = Path(tempfile.mkdtemp(prefix=RUNTIME_PREFIX, dir=base))
    note.symlink_to(runtime)
    return runtime
