"""The commands that fill the image are run on this machine, from a wheel of this tree. No image is built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import zipfile

import pytest

from fedhelm.provision.image import image_files
from tests.integration.test_poc_prepare import free_range
from tests.support.dockerfile import TREE, build_commands, build_wheel, run_command

PACKAGES = ("fedhelm", "fedhelm_overseer", "fedhelm_server", "fedhelm_client", "fedhelm_console", "fedhelm_lab")
WHERE = "import importlib, json, sys; print(json.dumps([importlib.import_module(n).__file__ for n in sys.argv[1:]]))"


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """The folder that the image is built from: the project's files and the wheel."""
    folder = tmp_path_factory.mktemp("context")
    for name in image_files():
        shutil.copy(TREE / "deploy" / name, folder / name)
    build_wheel(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(context):
    (wheel,) = context.glob("fedhelm-*.whl")
    return wheel


def clean(**more):
    """An environment in which this tree cannot be found by accident."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL", "FEDHELM"))}
    return {**kept, **more}


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, env=clean(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def used(venv, base_port, cwd):
    """What must work in the image: every package, the command, and a workspace with the examples."""
    python, fedhelm = venv / "bin" / "python", venv / "bin" / "fedhelm"
    for file in json.loads(run(python, "-c", WHERE, *PACKAGES, cwd=cwd)):
        assert file.startswith(f"{venv}/"), "imported from elsewhere"
    assert run(fedhelm, "--version", cwd=cwd).startswith("fedhelm 0.")
    run(fedhelm, "poc", "prepare", "-n", "2", "-w", cwd / "poc", "--base-port", str(base_port), cwd=cwd)
    transfer = cwd / "poc" / "admin@nvidia.com" / "transfer"
    examples = {path.name for path in (TREE / "examples").iterdir() if (path / "job.yaml").is_file()}
    assert {path.name for path in transfer.iterdir()} == examples != set()
    assert (cwd / "poc" / "site-2" / "startup" / "start.sh").is_file()


def test_the_wheel_has_every_file_of_the_packages(wheel):
    files = set(zipfile.ZipFile(wheel).namelist())
    folders = {
        "core/fedhelm": "fedhelm",
        "overseer/fedhelm_overseer": "fedhelm_overseer",
        "server/fedhelm_server": "fedhelm_server",
        "client/fedhelm_client": "fedhelm_client",
        "admin_console/fedhelm_console": "fedhelm_console",
        "lab/fedhelm_lab": "fedhelm_lab",
        "examples": "fedhelm_lab/examples",
    }
    for source, target in folders.items():
        tracked = subprocess.run(["git", "ls-files", source], cwd=TREE, capture_output=True, text=True, check=True)
        expected = {target + path.removeprefix(source) for path in tracked.stdout.split()}
        assert expected
        assert expected <= files, sorted(expected - files)
    assert not [name for name in files if "test" in name.split("/")[0] or name.endswith(".pyc")]


def test_the_wheel_serves_without_the_tree(context, tmp_path):
    """The Dockerfile's commands but for those that fetch what Fedhelm needs: that is taken from the tests' own Python."""
    venv = tmp_path / "venv"
    create, fetch, install, check, version = build_commands()
    assert "-r /build/requirements.txt" in fetch
    assert check.endswith(" check")
    run_command(create, context, venv)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not followed
    run_command(install, context, venv)
    run_command(version, context, venv)
    empty = tmp_path / "empty"
    empty.mkdir()
    used(venv, free_range(), empty)


@pytest.mark.long
def test_all_commands_of_the_image_run_in_a_clean_environment(context, tmp_path):
    venv = tmp_path / "venv"
    for command in build_commands():
        run_command(command, context, venv)
    empty = tmp_path / "empty"
    empty.mkdir()
    used(venv, free_range(), empty)
