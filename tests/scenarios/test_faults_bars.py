"""The committed trials of the fault laboratory reach every bar, for the code as it is."""

from __future__ import annotations

import pytest

import bench.faults.__main__ as command

pytestmark = pytest.mark.long


def test_the_committed_trials_reach_every_bar(capsys):
    status = command.main(["--check"])
    assert status == 0, capsys.readouterr().out
