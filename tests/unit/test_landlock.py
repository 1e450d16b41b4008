import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fedhelm_client
from fedhelm.process import child_env
from fedhelm_client import landlock
from fedhelm_client.folders import code_roots, make_runtime_dir, protected_paths
from tests.support.kits import make_kits

needs_landlock = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")


def test_the_allow_list_names_siblings_and_nothing_above(tmp_path):
    root = tmp_path.resolve()
    for name in ("poc/site-1/startup", "poc/site-1/data", "poc/store", "other", "poc/site-2/startup"):
        (root / name).mkdir(parents=True)
    (root / "file").touch()
    (root / "link").symlink_to(root / "poc/site-1/startup")
    protected = [root / "poc/site-1/startup", root / "poc/store", root / "poc/site-2", root / "poc/site-2/startup"]
    allowed = set(landlock.allow_list(protected))
    assert {path for path in allowed if path.is_relative_to(root)} == {
        root / "other",
        root / "file",
        root / "poc/site-1/data",
    }
    for path in allowed:
        assert not any(one.is_relative_to(path) for one in protected)
        assert not any(path.is_relative_to(one) for one in protected)
    assert any(path.name == "proc" for path in allowed)


def test_what_does_not_exist_yet_stays_closed(tmp_path):
    root = tmp_path.resolve()
    (root / "a").mkdir()
    allowed = set(landlock.allow_list([root / "later" / "startup"]))
    assert root / "a" in allowed
    assert root / "later" not in allowed
    assert root not in allowed


def test_every_kit_of_the_workspace_and_the_store_are_protected(tmp_path):
    kit = make_kits(tmp_path, sites=2)["site-1"]
    protected = protected_paths(kit)
    for path in (
        kit.key,
        kit.local,
        kit.run / "outbox",
        kit.log_file,
        tmp_path / "site-2/startup/client.key",
        tmp_path / "server1/startup/server.key",
        tmp_path / "overseer/run/overseer.db",
        tmp_path / "admin@nvidia.com/startup/client.key",
        tmp_path / "store/log/0000000000000001",
        tmp_path / "state/rootCA.key",
    ):
        assert any(path.resolve().is_relative_to(one) for one in protected), path


WAYS = {
    "landlock": "landlock.restrict(*plan)",
    "mounts": "assert mounts.hide(*plan); capabilities.give_up(); landlock.restrict_processes()",
}


@pytest.fixture(params=WAYS)
def way(request):
    if request.param == "mounts" and os.geteuid() != 0:
        pytest.skip("only root may mount")
    return WAYS[request.param]


def shut_in(kit, body, way=WAYS["landlock"], *, agent_pid=0):
    """Run ``body`` in a process that is shut in as a job process is; return what it puts into ``out``."""
    job = kit.run / "jobs" / "a23456723456"
    for name in ("bundle", "work/tmp", "models", "results"):
        (job / name).mkdir(parents=True, exist_ok=True)
    (job / "bundle" / "module_of_the_job.py").write_text("VALUE = 42\n")
    code = f"""
import errno, json, os, sys
from pathlib import Path
from fedhelm_client import capabilities, landlock, mounts
kit, job, agent = Path({str(kit.root)!r}), Path({str(job)!r}), {agent_pid}
code = [Path(p) for p in {[str(path) for path in code_roots()]!r}]
protect = [Path(p) for p in {[str(path) for path in protected_paths(kit)]!r}] + code
plan = protect, [job / "bundle", job / "models", *code], [job / "work", job / "results"]
{way}
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
{textwrap.dedent(body)}
print(json.dumps(out))
"""
    env = {**child_env(kit.root, "job"), "TMPDIR": str(job / "work" / "tmp")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=env, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def kit(tmp_path):
    kit = make_kits(tmp_path, sites=2)["site-1"]
    (tmp_path / "store" / "log").mkdir(parents=True)
    (tmp_path / "store" / "log" / "0").write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").write_text("data")
    kit.run.mkdir()
    (kit.run / "outbox").mkdir()
    return kit


@needs_landlock
def test_keys_and_store_are_closed(kit, way):
    out = shut_in(
        kit,
        """
        out["key"] = refused((kit / "startup/client.key").read_bytes)
        out["config"] = refused((kit / "startup/fed_client.json").read_bytes)
        out["neighbour"] = refused((kit.parent / "site-2/startup/client.key").read_bytes)
        out["server"] = refused((kit.parent / "server1/startup/server.key").read_bytes)
        out["store"] = refused((kit.parent / "store/log/0").read_bytes)
        out["append"] = refused(lambda: (kit.parent / "store/log/1").write_text("x"))
        out["outbox"] = refused(lambda: (kit / "run/outbox/forged").write_text("x"))
        out["local"] = refused(lambda: (kit / "local/policy").write_text("x"))
        out["delete"] = refused((kit / "startup/client.crt").unlink)
        out["rename"] = refused(lambda: (kit / "startup").rename(kit / "other"))
        os.symlink(kit / "startup/client.key", "link")
        out["link"] = refused(Path("link").read_bytes)
        import stat
        device = os.stat(kit).st_dev
        out["disk"] = refused(lambda: os.mknod("disk", stat.S_IFBLK | 0o600, device))
        out["hard_link"] = refused(lambda: os.link(kit / "startup/client.key", "hard"))
        out["root"] = refused(Path(f"/proc/self/root{kit}/startup/client.key").read_bytes)
        out["child"] = os.system(f"cat {kit}/startup/client.key > /dev/null 2>&1") != 0
        import ctypes
        libc = ctypes.CDLL(None)
        out["unmount"] = libc.umount2(str(kit / "startup").encode(), 2) != 0
        out["unshare"] = libc.unshare(0x20000) != 0 or refused((kit / "startup/client.key").read_bytes)
        out["parent"] = refused(Path(f"/proc/{os.getppid()}/root{kit}/startup/client.key").read_bytes)
        """,
        way,
    )
    assert out == dict.fromkeys(out, True)
    assert kit.cert.exists()


@needs_landlock
def test_everything_else_works_as_usual(kit, tmp_path, way):
    out = shut_in(
        kit,
        """
        sys.path.insert(0, str(job / "bundle"))
        import module_of_the_job, subprocess, tempfile
        import numpy, torch
        out["import"] = module_of_the_job.VALUE
        out["torch"] = float(torch.ones(3).sum())
        Path("notes.txt").write_text("mine")
        Path("notes.txt").rename("renamed.txt")
        out["work"] = Path("renamed.txt").read_text()
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x")
            out["temporary"] = file.name.startswith(str(job))
        out["data"] = (kit.parent / "data/images").read_text()
        (kit.parent / "data/written").write_text("x")
        (job / "results/r.safetensors").write_bytes(b"r")
        out["child"] = subprocess.run(["/bin/sh", "-c", "echo hello"], capture_output=True, text=True).stdout
        out["listing"] = "site-1" in os.listdir(kit.parent)
        out["shared_memory"] = torch.zeros(10).share_memory_().is_shared()
        """,
        way,
    )
    assert out == {
        "import": 42,
        "torch": 3.0,
        "work": "mine",
        "temporary": True,
        "data": "data",
        "child": "hello\n",
        "listing": True,
        "shared_memory": True,
    }


@needs_landlock
def test_the_agent_s_own_code_is_read_only(kit, way):
    own = {Path(sys.prefix).resolve(), Path(fedhelm_client.__file__).resolve().parents[1]}
    assert all(any(path.is_relative_to(root) for root in code_roots()) for path in own)
    name = f"written-by-a-script-{os.getpid()}"
    targets = [*code_roots(), Path(fedhelm_client.__file__).parent, Path(np.__file__).parent]
    try:
        out = shut_in(
            kit,
            f"""
            import fedhelm_client.courier, numpy
            for place in {[str(path) for path in targets]!r}:
                out[place] = refused(lambda: (Path(place) / {name!r}).write_text("x"))
                out[f"folder in {{place}}"] = refused(lambda: (Path(place) / {name!r}).mkdir())
            module = Path(fedhelm_client.courier.__file__)
            out["append"] = refused(lambda: module.open("ab"))
            out["rename"] = refused(lambda: module.rename(module.with_name({name!r})))
            out["library"] = refused(lambda: open(os.__file__, "ab"))
            out["readable"] = "class Courier" in module.read_text()
            """,
            way,
        )
        assert out == dict.fromkeys(out, True)
    finally:
        for place in targets:
            if (place / name).is_dir():
                (place / name).rmdir()
            (place / name).unlink(missing_ok=True)


@needs_landlock
def test_a_kit_below_the_agent_s_code_stays_closed(kit, tmp_path, way):
    (tmp_path / "module.py").write_text("VALUE = 1")
    out = shut_in(
        kit,
        f"""
        out["key"] = refused((kit / "startup/client.key").read_bytes)
        out["store"] = refused((kit.parent / "store/log/0").read_bytes)
        out["code"] = refused(lambda: Path({str(tmp_path / "module.py")!r}).write_text("x"))
        out["readable"] = Path({str(tmp_path / "module.py")!r}).read_text() == "VALUE = 1"
        Path("mine").write_text("x")
        out["bundle"] = (job / "bundle/module_of_the_job.py").read_text() == "VALUE = 42\\n"
        """,
        f"plan = protect + [Path({str(tmp_path)!r})], plan[1] + [Path({str(tmp_path)!r})], plan[2]\n{way}",
    )
    assert out == dict.fromkeys(out, True)


@needs_landlock
def test_a_script_reaches_its_own_socket_and_cannot_replace_any(kit, tmp_path, way):
    (tmp_path / "site-2" / "run").mkdir()
    doors = {}
    with contextlib.ExitStack() as stack:
        for name, root in (("own", kit), ("other", kit), ("neighbour", replace(kit, root=tmp_path / "site-2"))):
            runtime = root.run / "runtime"
            folder = (runtime.resolve() if runtime.exists() else make_runtime_dir(root)) / name
            stack.callback(shutil.rmtree, folder.parent, ignore_errors=True)
            folder.mkdir(mode=0o700)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            doors[name] = str(folder / "door")
            listener.bind(doors[name])
            listener.listen(1)
        out = shut_in(
            kit,
            f"""
            import socket
            doors = {doors!r}
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(doors["own"])
            for name, door in doors.items():
                with socket.socket(socket.AF_UNIX) as sock:
                    out[f"bind {{name}}"] = refused(lambda: sock.bind(door + "2"))
                out[f"unlink {{name}}"] = refused(lambda: os.unlink(door))
                out[f"rename {{name}}"] = refused(lambda: os.rename(os.path.dirname(door), job / "work" / name))
            """,
            f"plan = plan[0], [*plan[1], Path({str(Path(doors['own']).parent)!r})], plan[2]\n{way}",
        )
        assert out == dict.fromkeys(out, True)
        assert all(Path(door).is_socket() for door in doors.values())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@needs_landlock
def test_with_mounts_the_kernel_s_settings_are_read_only(kit):
    out = shut_in(
        kit,
        """
        def opened(flags):
            os.close(os.open("/proc/sys/kernel/core_pattern", flags))
        opened(os.O_RDONLY)
        out["core_pattern"] = refused(lambda: opened(os.O_WRONLY))
        """,
        WAYS["mounts"],
    )
    assert out == {"core_pattern": True}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@needs_landlock
def test_with_mounts_the_folders_above_take_new_files(kit, tmp_path):
    (kit.run / "jobs" / "a23456723456" / "bundle").mkdir(parents=True)
    out = shut_in(
        kit,
        """
        with (kit.parent / "results.txt").open("a") as file:
            file.write("mine")
        out["above"] = (kit.parent / "results.txt").read_text()
        out["bundle"] = refused(lambda: (job / "bundle/new").write_text("x"))
        """,
        WAYS["mounts"],
    )
    assert out == {"above": "mine", "bundle": True}
    assert (tmp_path / "results.txt").read_text() == "mine"
    assert (kit.startup / "client.key").exists()


@needs_landlock
def test_the_agent_s_process_is_out_of_reach(kit):
    agent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
    try:
        out = shut_in(
            kit,
            """
            out["environ"] = refused(Path(f"/proc/{agent}/environ").read_bytes)
            out["memory"] = refused(lambda: open(f"/proc/{agent}/mem", "rb"))
            out["root"] = refused(Path(f"/proc/{agent}/root").readlink)
            out["files"] = refused(Path(f"/proc/{agent}/fd/0").readlink)
            import signal
            out["signal"] = refused(lambda: os.kill(agent, signal.SIGTERM)) or landlock.abi() < 6
            """,
            agent_pid=agent.pid,
        )
        assert out == dict.fromkeys(out, True)
        assert agent.poll() is None
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()


def test_the_runtime_folder_is_private_short_and_replaced(tmp_path):
    kit = make_kits(tmp_path)["site-1"]
    kit.run.mkdir()
    first = make_runtime_dir(kit)
    assert first.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(first / "a23456723456" / "door")) < 100
    second = make_runtime_dir(kit)
    assert not first.exists()
    second.rmdir()
