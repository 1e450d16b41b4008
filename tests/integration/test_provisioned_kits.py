"""A provisioned server's scripts, with a real process: the store is founded when somebody says so, and never else."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from fedhelm.config.kit import read_kit
from fedhelm.persist import open_store
from fedhelm.provision.provision_cli import main
from fedhelm.provision.stop import Home, live_processes, stop_all
from fedhelm.security.kit import open_kit
from tests.integration.test_poc_prepare import free_range
from tests.support.waiting import eventually_sync

TEXT = """\
api_version: 3
name: demo
snapshot_persistor: {store}
timing: fast
participants:
- {{name: overseer, type: overseer, org: nvidia, host: 127.0.0.1, port: {port}}}
- {{name: server1, type: server, org: nvidia, host: 127.0.0.1, fed_learn_port: {first}, admin_port: {second}}}
- {{name: site-1, type: client, org: hospital}}
"""


@pytest.fixture
def prod(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    port = free_range(3)
    text = TEXT.format(store=tmp_path / "store", port=port, first=port + 1, second=port + 2)
    (tmp_path / "project.yml").write_text(text)
    assert main([]) == 0
    capsys.readouterr()
    prod = tmp_path / "workspace" / "demo" / "prod_00"
    yield prod
    homes = [Home(prod / name, "server", name) for name in ("server1", "site-1")]
    stop_all(homes, grace=0)
    assert not any(live_processes(home) for home in homes)


def script(prod, name, *argv):
    environment = {**os.environ, "FEDHELM_PYTHON": sys.executable}
    return subprocess.run(
        [prod / argv[0] / "startup" / name, *argv[1:]],
        env=environment, text=True, capture_output=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.processes
def test_the_store_is_founded_for_the_projects_cluster_at_the_first_start(prod, tmp_path):
    refused = script(prod, "start.sh", "site-1", "--found-store")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--found-store belongs to a server's start.sh, and site-1 is a site" in refused.stderr
    assert not (tmp_path / "store").exists()
    started = script(prod, "start.sh", "server1", "--found-store")
    assert started.returncode == 0, started.stderr
    kit = read_kit(prod / "server1")
    assert open_store(kit.store, kit.cluster).project == "demo"
    assert kit.store == tmp_path / "store"
    eventually_sync(lambda: "server1" in kit.log_file.read_text(), timeout=20)
    assert script(prod, "stop_fl.sh", "server1").returncode == 0


@pytest.mark.processes
def test_a_changed_kit_is_refused_before_its_store_is_founded(prod, tmp_path):
    (prod / "server1" / "startup" / "log.config").write_text("[levels]\n")
    refused = script(prod, "start.sh", "server1", "--found-store")
    assert refused.returncode == 4
    assert "log.config was changed" in refused.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.long
@pytest.mark.parametrize("password", [None, "correct horse"], ids=["open zips", "closed zips"])
def test_two_hundred_sites_are_provisioned_within_twenty_seconds(tmp_path, password):
    """On a machine where nothing else runs. Everybody gets a kit that opens, and a zip."""
    sites = [f"site-{number}" for number in range(2, 201)]
    text = TEXT.format(store=tmp_path / "store", port=8443, first=8002, second=8003)
    text += "".join(f"- {{name: {name}, type: client, org: hospital}}\n" for name in sites)
    (tmp_path / "project.yml").write_text(text)
    secret = tmp_path / "password"
    secret.write_text(f"{password}\n")
    secret.chmod(0o600)
    closed = [] if password is None else ["--zip-password-file", str(secret)]
    command = [sys.executable, "-m", "fedhelm.cli", "provision", "-w", str(tmp_path / "made"), *closed]
    began = time.monotonic()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    prod = tmp_path / "made" / "demo" / "prod_00"
    for name in ("overseer", "server1", "site-1", *sites):
        assert open_kit(prod / name).name == name
        assert (prod / f"{name}.zip").is_file()
    assert took < 20
