"""The watch over the child notices the real thing, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.hostile.eat import ROOT
from tests.hostile.evil import DEEDS


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    command = [sys.executable, "-m", "tests.hostile.evil", str(tmp_path_factory.mktemp("evil"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index('{"pickle') :])


@pytest.mark.parametrize("deed", [name for name in DEEDS if not name.startswith(("outside", "fine"))])
def test_what_runs_code_is_noticed(told, deed):
    assert deed in told[deed][0]


@pytest.mark.parametrize("deed", [name for name in DEEDS if name.startswith("outside")])
def test_a_file_elsewhere_is_noticed(told, deed):
    assert [one for one in told[deed][1] if one.startswith("evil")]


def test_what_is_fine_is_not_noticed(told):
    assert told["fine"] == [[], []]
