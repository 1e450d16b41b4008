import contextlib
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fedhelm_client
from fedhelm_client import landlock
from fedhelm_client.folders import code_roots, make_runtime_dir
from tests.support.kits import make_kits
from tests.support.shut_in import WAYS, needs_landlock, shut_in


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


@pytest.fixture(params=WAYS)
def way(request):
    if request.param == "mounts" and os.geteuid() != 0:
        pytest.skip("only root may mount")
    return request.param


@pytest.fixture
def kit(tmp_path):
    place = tmp_path / "fed"
    place.mkdir()
    kit = make_kits(place, sites=2)["site-1"]
    (place / "store" / "log").mkdir(parents=True)
    (place / "store" / "log" / "0").write_text("{}")
    (place / "data").mkdir()
    (place / "data" / "images").write_text("data")
    (place / "module.py").write_text("VALUE = 1")
    (place / "shortcut").symlink_to("data/images")
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
def test_everything_else_works_as_usual(kit, way):
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
        (kit.parent / "module.py").write_text("changed")
        out["link"] = (kit.parent / "shortcut").read_text()
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
        "link": "data",
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
def test_what_the_next_agent_would_import_cannot_be_written(kit, way, monkeypatch):
    """Folders of PYTHONPATH, with whatever in them, and the user's own site-packages, which need not be there yet."""
    place = kit.root.parent
    (place / "home" / ".local").mkdir(parents=True)
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    monkeypatch.setattr(site, "USER_SITE", str(place / "home/.local/lib/python3/site-packages"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(place / "data")])
    out = shut_in(
        kit,
        """
        out["path"] = refused(lambda: (kit.parent / "data/json.py").write_text("x"))
        out["user"] = refused(lambda: (kit.parent / "home/.local/lib/python3/site-packages").mkdir(parents=True))
        out["beside"] = refused(lambda: (kit.parent / "home/.local").rename(kit.parent / "home/other"))
        out["readable"] = (kit.parent / "data/images").read_text() == "data"
        """,
        way,
    )
    assert out == dict.fromkeys(out, True)


@needs_landlock
@pytest.mark.parametrize("code", [".", "..", "data"])
def test_a_kit_below_or_beside_the_agent_s_code_stays_closed(kit, way, code, monkeypatch):
    root = (kit.root.parent / code).resolve()
    (root / "fedhelm_more").mkdir()
    (root / "fedhelm_more" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(root))
    assert root in code_roots()
    out = shut_in(
        kit,
        f"""
        code = Path({str(root)!r}) / "fedhelm_more/__init__.py"
        out["key"] = refused((kit / "startup/client.key").read_bytes)
        out["store"] = refused((kit.parent / "store/log/0").read_bytes)
        out["code"] = refused(lambda: code.write_text("x"))
        out["readable"] = code.read_text() == ""
        out["beside"] = (kit.parent / "module.py").read_text() == "VALUE = 1"
        out["written"] = refused(lambda: (kit.parent / "module.py").write_text("x")) == ({code!r} != "data")
        out["data"] = (kit.parent / "data/images").read_text() == "data"
        Path("mine").write_text("x")
        out["bundle"] = (job / "bundle/module_of_the_job.py").read_text() == "VALUE = 42\\n"
        """,
        way,
    )
    assert out == dict.fromkeys(out, True)


@needs_landlock
def test_a_script_reaches_its_own_socket_and_cannot_replace_any(kit, way, tmp_path):
    roots = {"own": kit.root, "other": kit.root, "neighbour": kit.root.parent / "site-2", "far": tmp_path / "far"}
    (roots["neighbour"] / "run").mkdir()
    (roots["far"] / "run").mkdir(parents=True)
    doors = {}
    with contextlib.ExitStack() as stack:
        for name, root in roots.items():
            runtime = root / "run" / "runtime"
            folder = (runtime.resolve() if runtime.exists() else make_runtime_dir(replace(kit, root=root))) / name
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
            way,
            door=Path(doors["own"]).parent,
        )
        assert out == dict.fromkeys(out, True)
        assert all(Path(door).is_socket() for door in doors.values())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@needs_landlock
def test_with_mounts_the_kernel_s_settings_are_read_only_and_no_disk_can_be_read(kit):
    disks = [str(path) for path in Path("/dev").iterdir() if path.is_block_device()]
    out = shut_in(
        kit,
        f"""
        for disk in {disks}:
            assert Path(disk).read_bytes() == b"", disk
        def opened(flags):
            os.close(os.open("/proc/sys/kernel/core_pattern", flags))
        opened(os.O_RDONLY)
        out["core_pattern"] = refused(lambda: opened(os.O_WRONLY))
        """,
        "mounts",
    )
    assert out == {"core_pattern": True}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@needs_landlock
def test_with_mounts_the_folders_above_take_new_files(kit, tmp_path):
    out = shut_in(
        kit,
        """
        with (kit.parent.parent / "results.txt").open("a") as file:
            file.write("mine")
        out["above"] = (kit.parent.parent / "results.txt").read_text()
        out["bundle"] = refused(lambda: (job / "bundle/new").write_text("x"))
        """,
        "mounts",
    )
    assert out == {"above": "mine", "bundle": True}
    assert (tmp_path / "results.txt").read_text() == "mine"


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
