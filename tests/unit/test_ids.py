"""Identifiers: their form, their order, and what never gets as far as a path."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhelm import ids
from fedhelm.errors import BadInput

HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/a",
    "a b",
    "a\n",
    "\na",
    "a\0",
    "A",
    "ä",
    "-a",
    "a-",
    "a..b",
    ".a",
    "a.",
    "~",
]


def test_a_job_id_has_its_form():
    made = [ids.new_job_id() for _ in range(200)]
    assert all(ids.JOB_ID.fullmatch(one) and ids.check_job_id(one) == one for one in made)
    assert len(set(made)) == len(made)


def test_ids_sort_by_time(monkeypatch):
    made = []
    for moment in (1_577_836_800.0, 1_577_836_800.05, 1_600_000_000.0, 1_795_359_845.0, 1_795_359_845.05, 4e9):
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        made.append((ids.new_job_id(), ids.new_request_id()))
    for one in zip(*made, strict=True):
        assert sorted(one) == list(one)


@pytest.mark.parametrize("moment", [0.0, -1e9, 1e18])
def test_a_clock_that_is_far_off_still_gives_an_id(monkeypatch, moment):
    monkeypatch.setattr(time, "time", lambda: moment)
    assert ids.JOB_ID.fullmatch(ids.new_job_id())


@given(st.integers(0, 2**60 - 1), st.integers(0, 2**60 - 1))
def test_the_digits_keep_the_order_of_the_numbers(one, two):
    assert (ids._base32(one, 12) < ids._base32(two, 12)) == (one < two)
    assert (ids._base32(one, 12) == ids._base32(two, 12)) == (one == two)


@pytest.mark.parametrize(
    ("make", "form"),
    [
        (ids.new_request_id, r"[2-7a-z]{20}"),
        (ids.new_incarnation, r"[0-9a-f]{16}"),
        (ids.new_nonce, r"[0-9a-f]{16}"),
        (ids.new_cluster_id, r"[0-9a-f]{32}"),
    ],
)
def test_the_other_ids_have_their_form_and_differ(make, form):
    made = {make() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(form, one) for one in made)


@pytest.mark.parametrize(
    "value", [*HOSTILE, "k7m3tq4w9zpx", "abcdefghijk", "abcdefghijklm", "abcdefghijk1", "ABCDEFGHIJKL"]
)
def test_what_is_no_job_id_is_refused(value):
    with pytest.raises(BadInput, match="not a job id"):
        ids.check_job_id(value)


@pytest.mark.parametrize("value", ["a", "site-1", "server1", "0", "a.b-c.d", "x" * 63, f"{'x' * 63}.example.org"])
def test_host_names(value):
    assert ids.check_host_name(value) == value


@pytest.mark.parametrize("value", [*HOSTILE, "a_b", "x" * 64, "a.-b", ".".join("abcdefghijk"), "x." * 140 + "x"])
def test_what_is_no_host_name_is_refused(value):
    with pytest.raises(BadInput, match="site name"):
        ids.check_host_name(value, "site name")


@pytest.mark.parametrize("value", ["admin@nvidia.com", "a@b", "First.Last+tag@sub.example.org", "A_b-c@1"])
def test_admin_names(value):
    assert ids.check_admin_name(value) == value


@pytest.mark.parametrize(
    "value",
    [
        *HOSTILE,
        "admin",
        "@b",
        "a@",
        "a@b@c",
        "a..b@c",
        "a@b..c",
        "a@-b",
        "a@b.",
        "a/b@c",
        "a@b/c",
        "a b@c",
        f"{'x' * 65}@b",
    ],
)
def test_what_is_no_admin_name_is_refused(value):
    with pytest.raises(BadInput, match="admin name"):
        ids.check_admin_name(value)


@given(st.text(max_size=20))
def test_no_name_that_passes_can_lead_out_of_a_folder(text):
    for check in (ids.check_job_id, ids.check_host_name, ids.check_admin_name):
        try:
            name = check(text)
        except BadInput:
            continue
        assert "/" not in name
        assert "\0" not in name
        assert not name.startswith((".", "-", "~"))
        assert ".." not in name
