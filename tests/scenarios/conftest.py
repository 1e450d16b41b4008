from __future__ import annotations

import pytest

from tests.support.federation import Federation

pytestmark = pytest.mark.processes


@pytest.fixture
def federation(tmp_path):
    """Two servers and two sites, started; gone at the end, or the test fails."""
    made = Federation(tmp_path)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """One started federation for all tests of a module that leave it as they found it."""
    made = Federation(tmp_path_factory.mktemp("standing"))
    try:
        yield made.start()
    finally:
        made.close()
