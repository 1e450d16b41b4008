"""Where the lease is kept, as kits say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedhelm.config.kit import check_lease_store, kit_from_json, kit_to_json, read_kit
from fedhelm.errors import BadInput, KitError
from tests.support.kits import make_kits

URL = "postgresql://fedhelm@db.example:5432/lease?passfile=pgpass"


@pytest.fixture
def said(tmp_path):
    """What an overseer's configuration says."""
    kit = make_kits(tmp_path)["overseer"]
    return kit_to_json(kit)


def test_only_overseers_are_told_where_the_lease_is(tmp_path):
    kits = make_kits(tmp_path)
    told = {name: kit.lease_store for name, kit in kits.items()}
    assert {name: place for name, place in told.items() if place is not None} == {"overseer": "sqlite"}
    assert read_kit(kits["server1"].root).lease_store is None


def test_a_kit_from_before_there_was_a_choice_means_sqlite(said):
    assert said.pop("lease_store") == "sqlite"
    assert kit_from_json(Path("/kit"), said, "kit").lease_store == "sqlite"


def test_a_url_comes_back_as_it_was_written(said):
    kit = kit_from_json(Path("/kit"), {**said, "lease_store": URL}, "kit")
    assert (kit.lease_store, kit_to_json(kit)["lease_store"]) == (URL, URL)


@pytest.mark.parametrize(
    "value", ["", 1, "mysql://h/d", "postgresql://u:hidden@h/d", "postgresql://h/d?sslpassword=hidden"]
)
def test_a_wrong_value_or_a_password_in_a_kit_is_refused_by_key(said, value):
    with pytest.raises(KitError, match="kit: lease_store") as caught:
        kit_from_json(Path("/kit"), {**said, "lease_store": value}, "kit")
    assert "hidden" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"


@pytest.mark.parametrize(
    "value",
    [
        "sqlite",
        URL,
        "postgres://h/d",
        "postgresql://h1:1,h2:2/d?target_session_attrs=read-write",
        "postgresql:///?host=h",
    ],
)
def test_what_libpq_reads_is_accepted(value):
    assert check_lease_store(value, secrets=False) == value


def test_a_password_is_accepted_where_secrets_may_be():
    secret = "postgresql://u:hidden@h/d"
    assert check_lease_store(secret, secrets=True) == secret
    with pytest.raises(BadInput, match="carries a password"):
        check_lease_store(secret, secrets=False)
