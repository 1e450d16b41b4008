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
