"""A store that is really full: nothing is acknowledged, nothing is lost, and it goes on when there is room.

On a small tmpfs in a mount namespace of its own where the system allows one; everywhere with a limit on the size of
files, which the kernel enforces with the same call failing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

SCENARIO = """
import json, os, resource, signal, sys
from pathlib import Path
from fedhelm.errors import StoreUnavailable
from fedhelm.persist import BlobReader, BlobWriter, By, Draft, init_store, open_store, probe

root, how = Path(sys.argv[1]) / "store", sys.argv[2]
CLUSTER, BY = "c" * 32, By("server1", "a")
init_store(root, CLUSTER, "poc")
store = open_store(root, CLUSTER)
store.log.read_new()
store.log.append(Draft("fence", 1, BY, {"cause": "test"}))
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
ballast = root / "ballast"


def fill():
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, unlimited[1]))
        return
    with open(ballast, "wb", buffering=0) as file:
        for block in (4096, 1):
            try:
                while True:
                    file.write(bytes(block))
            except OSError:
                pass


def make_room():
    if how == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    else:
        ballast.unlink()


def put(number):
    return Draft("contribution", 1, BY, {"items": ["x" * 5000, number]})


def attempt(step):
    try:
        step()
    except StoreUnavailable as error:
        return error.message
    return None


def write_blob():
    writer = BlobWriter(store.blobs, "jobs/j/0-1/sites")
    writer.write(b"y" * 30000)
    return writer.finish()


acknowledged = [store.log.append(put(0)).seq]
fill()
refusals = [attempt(lambda: store.log.append(put(1))), attempt(lambda: store.log.append(put(1))),
            attempt(write_blob), attempt(lambda: probe(root))]
readable = len(open_store(root, CLUSTER).log.read_new().records)
litter = os.listdir(root / "tmp")
make_room()
probe(root)
acknowledged.append(store.log.append(put(1)).seq)
ref = write_blob()
fresh = open_store(root, CLUSTER)
items = [record.body["items"][1] for record in fresh.log.read_new().records if record.kind == "contribution"]
sys.stdout.write(json.dumps({"refusals": refusals, "readable": readable, "litter": litter, "items": items,
    "acknowledged": acknowledged, "blob": BlobReader(fresh.blobs, ref).size}))
"""


def run_scenario(tmp_path, how: str, *wrapper: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    command = [*wrapper, sys.executable, "-c", SCENARIO, str(tmp_path), how]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def check(result: subprocess.CompletedProcess[str], tmp_path, reason: str) -> None:
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert len(report["refusals"]) == 4
    for message in report["refusals"]:
        assert message is not None
        assert str(tmp_path / "store") in message
        assert reason in message
    assert report["litter"] == []
    assert report["readable"] == 3
    assert report["acknowledged"] == [2, 3]
    assert report["items"] == [0, 1]
    assert report["blob"] == 30000


def test_files_that_cannot_grow(tmp_path):
    check(run_scenario(tmp_path, "limit"), tmp_path, "File too large")


MOUNT = 'mount -t tmpfs -o size=128k,mode=700 tmpfs "$0" && exec "$@"'


def namespace() -> list[str] | None:
    """Return the command that gives a mount namespace of its own, if this system allows one."""
    for command in (["unshare", "--mount"], ["unshare", "--mount", "--map-root-user"]):
        if (
            shutil.which("unshare")
            and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
        ):
            return command
    return None


def test_a_full_filesystem(tmp_path):
    wrapper = namespace()
    if wrapper is None:
        pytest.skip("no mount namespace can be made here; test_files_that_cannot_grow runs the same scenario")
    result = run_scenario(tmp_path, "fill", *wrapper, "sh", "-c", MOUNT, str(tmp_path))
    check(result, tmp_path, "No space left on device")
    assert list(tmp_path.iterdir()) == []
