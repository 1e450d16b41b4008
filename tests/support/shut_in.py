"""A process that is shut in as a job's is, in either way, and runs what a test asks it to try."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from fedhelm.process import child_env
from fedhelm_client import landlock
from fedhelm_client.folders import JobFolder
from fedhelm_client.reach import reach_of

needs_landlock = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")

WAYS = {
    "landlock": "landlock.restrict(*plan)",
    "landlock-1": "landlock.abi = lambda: 1; landlock.restrict(*plan)",  # as before Linux 5.19
    "mounts": "assert mounts.hide(*plan); capabilities.give_up(); landlock.restrict_processes()",
}

both_ways = pytest.mark.parametrize(
    "way",
    [
        pytest.param("landlock", marks=needs_landlock),
        pytest.param("landlock-1", marks=needs_landlock),
        pytest.param("mounts", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")),
    ],
)


def shut_in(kit, body, way="landlock", *, agent_pid=0, door=None, meanwhile=None):
    """Run ``body`` in a process that is shut in as a job process of the site is; return what it puts into ``out``.

    ``refused(call)`` says whether the kernel refuses; ``wait()`` has ``meanwhile`` called here, outside.
    """
    folder = JobFolder.of(kit, "a23456723456")
    folder.make()
    folder.bundle.mkdir(exist_ok=True)
    (folder.bundle / "module_of_the_job.py").write_text("VALUE = 42\n")
    reach = reach_of(kit, folder, door or kit.run / "no-door")
    plan = tuple([str(path) for path in paths] for paths in (reach.protect, reach.read, reach.write))
    code = f"""
import errno, json, os, sys
from pathlib import Path
from fedhelm_client import capabilities, landlock, mounts
kit, job, agent = Path({str(kit.root)!r}), Path({str(folder.root)!r}), {agent_pid}
plan = [[Path(path) for path in paths] for paths in {plan!r}]
{WAYS[way]}
capabilities.give_up()
os.chdir(job / "work")
out = {{}}
def refused(call):
    try:
        call()
    except OSError as error:
        # EXDEV: Landlock's word for a link across its border; the last three are those of a mount over the folder.
        return error.errno in (errno.EACCES, errno.EPERM, errno.EXDEV, errno.ENOENT, errno.EROFS, errno.EBUSY)
    return False
def wait():
    print("waiting", flush=True)
    sys.stdin.readline()
{textwrap.dedent(body)}
print(json.dumps(out))
"""
    env = {**child_env(kit.root, "job"), "TMPDIR": str(folder.work / "tmp")}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env
    ) as process:
        try:
            if meanwhile is not None and process.stdout.readline() == "waiting\n":
                meanwhile()
            out, err = process.communicate("\n", timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err
    return json.loads(out)
