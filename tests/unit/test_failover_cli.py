"""`fedhelm failover` asks the last primary, where it can."""

from __future__ import annotations

import pytest

from fedhelm.errors import Refused
from fedhelm.persist import By, Draft, open_store
from fedhelm_lab.workspace import plan, prepare
from fedhelm_server.failover_cli import _check_last_primary
from tests.support.federation import free_base_port


@pytest.fixture
def led_by(tmp_path):
    kit = prepare(tmp_path / "poc", plan(1, 2, free_base_port(5))).kit("server1")

    def fence(name):
        log = open_store(kit.store, kit.cluster).log
        log.read_new()
        return kit, log.append(Draft("fence", 1, By(name, "1" * 16), {"cause": "test", "time": "-"}))

    return fence


def test_a_last_primary_that_the_kit_does_not_know_has_to_be_called_gone(led_by):
    kit, last = led_by("server3")
    for gone in (None, "server2"):
        with pytest.raises(Refused, match=r"server3, the last primary, is not in the kit of server1") as refusal:
            _check_last_primary(kit, last, gone)
        assert "--gone server3" in refusal.value.hint
    _check_last_primary(kit, last, "server3")


def test_one_that_is_known_is_asked(led_by):
    _check_last_primary(*led_by("server2"), None)  # nobody listens at its port


def test_a_log_without_a_primary_and_the_servers_own_are_no_reason(led_by):
    kit, last = led_by("server1")
    _check_last_primary(kit, last, None)
    _check_last_primary(kit, None, None)
