"""Imported before every test: grpc reads its environment when it is imported, whoever imports it first."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

import fedhelm.wire

assert fedhelm.wire.TLS_1_3_ONLY

settings.register_profile("busy", deadline=None)  # no test depends on speed
settings.load_profile("busy")

# Files that take minutes go first, so that no worker is left alone with one at the end.
_LONGEST = ("test_faults_between.py", "test_faults.py", "test_overseers.py", "test_simulation.py")


@pytest.fixture(autouse=True)
def umask_of_before():
    """The command of a site sets its process's umask; where a test calls it, it is not that of the next tests."""
    before = os.umask(0o077)
    os.umask(before)
    yield
    os.umask(before)


def pytest_collection_modifyitems(items):
    def turn(item):
        name = item.path.name
        return (_LONGEST.index(name) if name in _LONGEST else len(_LONGEST), "scenarios" not in item.path.parts)

    items.sort(key=turn)
