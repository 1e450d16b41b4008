"""An hour with both cores and the disk busy: nobody may lose the lease over it."""

from __future__ import annotations

import pytest

from bench.steady import steady

pytestmark = [pytest.mark.processes, pytest.mark.long]


def test_an_hour_of_load_causes_no_failover():
    found = steady(60)
    assert found["rounds"] > 0
    assert found["failovers"] == 0, found
