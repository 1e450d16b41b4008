from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedhelm.errors import KitError
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.revocation import MAX_BYTES, RevocationList, Revoked

AT = "2026-11-22T15:04:05.123Z"
AUTHORITY = CertificateAuthority.create("poc")
ROOT = AUTHORITY.cert_pem
EMPTY = RevocationList("poc", "c1")
ONE = Revoked("1f", "site", "site-1", AT, "laptop stolen")
LIST = EMPTY.with_revoked((ONE,), AT)
SIGNED = LIST.to_bytes(AUTHORITY)


def parse(data, root=ROOT, project="poc", cluster="c1"):
    return RevocationList.parse(data, root, project, cluster)


def refused(data, **options):
    with pytest.raises(KitError) as caught:
        parse(data, **options)
    assert "\n" not in caught.value.message
    return caught.value.message


def signed(**changes):
    """A list that the root signed, whatever it says."""
    entries = changes.pop("entries", LIST.entries)
    return RevocationList(
        **{"project": "poc", "cluster": "c1", "version": 1, "issued": AT} | changes, entries=entries
    ).to_bytes(AUTHORITY)


def edited(**changes):
    return json.dumps(json.loads(SIGNED) | changes).encode()


def test_a_signed_list_comes_back_and_finds_by_serial():
    assert parse(SIGNED) == LIST
    assert parse(SIGNED).revoked("1f") == ONE
    assert parse(SIGNED).revoked("2f") is None
    assert EMPTY.revoked("1f") is None


def test_the_version_rises_and_nobody_is_listed_twice():
    later = LIST.with_revoked((Revoked("1f", "site", "site-1", AT, "again"), Revoked("2f", "site", "b", AT, "")), AT)
    assert (LIST.version, later.version) == (1, 2)
    assert [one.reason for one in later.entries] == ["laptop stolen", ""]
    assert later.newer_than(LIST)
    assert not LIST.newer_than(later)
    assert not LIST.newer_than(LIST)
    assert EMPTY.newer_than(None)


def test_another_root_another_project_another_cluster():
    other = CertificateAuthority.create("poc")
    assert "not signed by this project's root" in refused(SIGNED, root=other.cert_pem)
    assert "of project 'poc', cluster 'c1', not of 'b', 'c1'" in refused(SIGNED, project="b")
    assert "not of 'poc', 'c2'" in refused(SIGNED, cluster="c2")
    assert "cannot be verified" in refused(SIGNED, root=b"nonsense")


def test_while_the_root_is_rotated_either_may_sign():
    new = CertificateAuthority.create("poc")
    both = AUTHORITY.trusting(new.signing_pem).cert_pem
    assert parse(LIST.to_bytes(new), root=both) == parse(SIGNED, root=both)


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"issued": "2027-11-22T15:04:05.123Z"}, {"entries": []}, {"project": "x"}]
)
def test_what_was_changed_after_signing_is_refused(change):
    assert "not signed" in refused(edited(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"version": 2**63},
        {"issued": ""},
        {"project": "a\nb"},
        {"cluster": "c" * 65},
        {"entries": (Revoked("0x1f", "site", "a", AT, ""),)},
        {"entries": (Revoked("1F", "site", "a", AT, ""),)},
        {"entries": (Revoked("01", "site", "a", AT, ""),)},
        {"entries": (Revoked("1", "site", "a", "yesterday", ""),)},
        {"entries": (Revoked("1", "site", "a", AT, "x" * 1025),)},
        {"entries": (ONE, ONE)},
    ],
)
def test_even_what_the_root_signed_must_have_the_form(change):
    assert "not a list of revoked certificates" in refused(signed(**change))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"null",
        b"[" * 100_000,
        b"9" * 10_000,
        SIGNED.replace(b'"format"', b'"version": 1, "format"', 1),
        edited(more=1),
        edited(format=2),
        edited(version=True),
        edited(version="1"),
        edited(entries={}),
        edited(entries=[[]]),
        edited(signature="not base64!"),
        edited(signature=None),
        edited(signature=""),
        edited(reason="\ud800"),
    ],
)
def test_what_is_no_list_is_refused(data):
    refused(data)


def test_a_list_that_is_too_large_is_not_even_read():
    assert f"at most {MAX_BYTES}" in refused(b" " * (MAX_BYTES + 1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_bytes_at_all_get_through_or_break_the_parser(data):
    key = data.draw(st.sampled_from([None, *json.loads(SIGNED)]))
    if key is None:
        blob = data.draw(st.binary(max_size=300))
    else:
        value = data.draw(JSON)
        blob = edited(**{key: value})
        if json.loads(SIGNED)[key] == value:
            return
    refused(blob)
