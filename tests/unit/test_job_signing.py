"""A job's signature holds for this job, this submitter and this federation, and for nothing else."""

from __future__ import annotations

import base64
import dataclasses
import json
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedhelm.clock import iso
from fedhelm.config.kit import Kit
from fedhelm.config.timing import PROFILES
from fedhelm.errors import BadSignature, KitError
from fedhelm.security.job_signing import MAX_AGE, MAX_BYTES, Submission, sign_submission, verify_submission
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.statements import Trust, moment, seal, unseal
from tests.fakes.provision_clock import FixedClock

CLUSTER, JOB, DIGEST = "c" * 32, "k7m3tq4w2zpx", "d" * 64
EXPECTED = Submission("poc", CLUSTER, JOB, "hello", DIGEST)


@pytest.fixture(scope="module")
def clock():
    return FixedClock()


@pytest.fixture(scope="module")
def authority(clock):
    return CertificateAuthority.create("poc", clock=clock)


@pytest.fixture(scope="module")
def kit_of(authority, tmp_path_factory):
    def make(role="lead", name="bob@a.org", issuer=authority, **options):
        root = tmp_path_factory.mktemp("kit")
        (root / "startup").mkdir()
        issued = issuer.issue(role, name, "a", **options)
        kit = Kit(root, "poc", CLUSTER, role, name, "a", (), (), (), PROFILES["fast"])
        kit.cert.write_bytes(issued.cert)
        kit.key.write_bytes(issued.key)
        return kit

    return make


@pytest.fixture(scope="module")
def bob(kit_of):
    return kit_of()


@pytest.fixture(scope="module")
def trust(authority, clock):
    return Trust(authority.cert_pem, "poc", clock.now)


@pytest.fixture(scope="module")
def signed(bob, clock):
    return sign_submission(bob, JOB, "hello", DIGEST, clock=clock)


def test_a_server_and_a_site_verify_it(signed, trust):
    verified = verify_submission(signed, EXPECTED, trust, submitter="bob@a.org")
    who = verified.submitter
    assert (who.role, who.name, who.org, who.project) == ("lead", "bob@a.org", "a", "poc")
    assert len(who.serial) > 8
    assert verified.time == "2026-01-01T00:00:00.000Z"
    at_site = dataclasses.replace(trust, now=None)
    assert verify_submission(signed, EXPECTED, at_site) == verified
    assert b"\n" not in signed


@pytest.mark.parametrize(
    ("key", "value"),
    [("project", "other"), ("cluster", "e" * 32), ("job", "a" * 12), ("name", "hello2"), ("bundle", "e" * 64)],
)
def test_a_signature_for_something_else_does_not_hold(signed, trust, key, value):
    with pytest.raises(BadSignature, match=rf"{key} is .* there, and '{value}' here"):
        verify_submission(signed, dataclasses.replace(EXPECTED, **{key: value}), trust)


def test_nobody_submits_what_another_signed(signed, trust):
    with pytest.raises(BadSignature, match=r"signed by lead bob@a\.org, submitted by eve@a\.org"):
        verify_submission(signed, EXPECTED, trust, submitter="eve@a.org")


@pytest.mark.parametrize(
    ("role", "name"), [("member", "m@a.org"), ("org_admin", "o@a.org"), ("site", "site-1"), ("server", "server1")]
)
def test_only_who_may_submit_may_sign(kit_of, trust, clock, role, name):
    with pytest.raises(BadSignature, match=f"signed by {role} {name}, and only lead, project_admin may"):
        verify_submission(sign_submission(kit_of(role, name), JOB, "hello", DIGEST, clock=clock), EXPECTED, trust)


def test_another_root_with_the_same_names_does_not_count(kit_of, trust, clock):
    stranger = CertificateAuthority.create("poc", clock=clock)
    forged = sign_submission(kit_of(issuer=stranger), JOB, "hello", DIGEST, clock=clock)
    with pytest.raises(BadSignature, match="was not issued by this project's root"):
        verify_submission(forged, EXPECTED, trust)
    both = dataclasses.replace(trust, root_pem=stranger.cert_pem + trust.root_pem)  # while a root is rotated
    assert verify_submission(forged, EXPECTED, both).submitter.name == "bob@a.org"


def test_a_certificate_of_another_project_does_not_count(signed, authority):
    with pytest.raises(BadSignature, match="is of project 'poc', not of 'other'"):
        verify_submission(signed, EXPECTED, Trust(authority.cert_pem, "other"))


def test_a_certificate_has_to_be_valid_when_it_signs_and_at_the_server_now(kit_of, trust, clock):
    short = kit_of(start=clock.now - timedelta(hours=1), life=timedelta(hours=2))
    job = sign_submission(short, JOB, "hello", DIGEST, clock=clock)
    later = dataclasses.replace(trust, now=clock.now + timedelta(hours=3))
    with pytest.raises(BadSignature, match="expired on"):
        verify_submission(job, EXPECTED, later)
    assert verify_submission(job, EXPECTED, dataclasses.replace(trust, now=None))
    late = FixedClock(clock.now + timedelta(hours=3))
    with pytest.raises(BadSignature, match="expired on"):
        verify_submission(
            sign_submission(short, JOB, "hello", DIGEST, clock=late), EXPECTED, dataclasses.replace(trust, now=None)
        )


def test_a_server_takes_only_a_fresh_signature(signed, bob, trust, clock):
    early = sign_submission(bob, JOB, "hello", DIGEST, clock=FixedClock(clock.now + timedelta(minutes=16)))
    with pytest.raises(BadSignature, match=r"signed at 2026-01-01T00:16:00\.000Z, and this machine's clock"):
        verify_submission(early, EXPECTED, trust)
    for minutes in (16, 60 * 24):
        with pytest.raises(BadSignature, match=r"signed at 2026-01-01T00:00:00\.000Z, and this machine's clock"):
            verify_submission(signed, EXPECTED, dataclasses.replace(trust, now=clock.now + timedelta(minutes=minutes)))
    assert verify_submission(signed, EXPECTED, dataclasses.replace(trust, now=clock.now + MAX_AGE))


def test_a_revoked_submitter_is_refused(signed, bob, trust):
    asked = []
    verified = verify_submission(signed, EXPECTED, dataclasses.replace(trust, revoked=asked.append))
    assert asked == [verified.submitter.serial]
    with pytest.raises(BadSignature, match=r"the certificate of lead bob@a\.org was revoked"):
        verify_submission(signed, EXPECTED, dataclasses.replace(trust, revoked=lambda _: "gone"))


def test_a_statement_of_another_kind_is_no_submission(bob, trust, clock):
    body = {"format": 1, "time": iso(clock.now), **dataclasses.asdict(EXPECTED)}
    other = seal(b"fedhelm something else", body, bob.key, bob.cert.read_bytes())
    assert unseal(b"fedhelm something else", other, "x", trust, ["lead"]).body == body
    with pytest.raises(BadSignature, match="the signature is not that of lead"):
        verify_submission(other, EXPECTED, trust)
    for changed in ({**body, "more": 1}, {**body, "format": 2}, {**body, "format": True}):
        with pytest.raises(BadSignature, match=r"not a submission|format is"):
            verify_submission(seal(b"fedhelm job submission", changed, bob.key, bob.cert.read_bytes()), EXPECTED, trust)


def test_every_flipped_byte_is_noticed(signed, trust):
    outer = json.loads(signed)
    signature = base64.b64decode(outer["signature"])
    for place in range(len(signature)):
        flipped = signature[:place] + bytes([signature[place] ^ 1]) + signature[place + 1 :]
        with pytest.raises(BadSignature):
            verify_submission(
                json.dumps({**outer, "signature": base64.b64encode(flipped).decode()}).encode(), EXPECTED, trust
            )
    for place in range(0, len(signed), 7):
        flipped = signed[:place] + bytes([signed[place] ^ 2]) + signed[place + 1 :]
        try:
            verified = verify_submission(flipped, EXPECTED, trust)
        except BadSignature:
            continue
        assert verified.submission == EXPECTED  # a byte of the certificate's PEM that says the same


def test_what_is_no_submission_at_all(trust):
    for data, message in (
        (b"", "there is none"),
        (b"x" * (MAX_BYTES + 1), "longer than"),
        (b"[" * 20_000, "not JSON"),
        (b"[" * 100 + b"]" * 100, "nested deeper|not a signed"),
        (b'{"statement": {}, "statement": {}}', "not JSON"),
        (b"{}", "not a signed statement"),
        (b'{"statement": [], "certificate": "", "signature": ""}', "not a signed statement"),
        (b'{"statement": {}, "certificate": "\\ud800", "signature": ""}', "cannot be read"),
        (json.dumps({"statement": {}, "certificate": "x" * 20_000, "signature": ""}).encode(), "too long"),
    ):
        with pytest.raises(BadSignature, match=message):
            verify_submission(data, EXPECTED, trust)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hostile_bytes_are_refused_and_nothing_worse(data, signed, trust):
    outer = json.loads(signed)
    hostile = data.draw(
        st.binary(max_size=400)
        | _json.map(lambda value: json.dumps(value).encode())
        | st.fixed_dictionaries({key: _json | st.just(outer[key]) for key in outer}).map(
            lambda one: json.dumps(one).encode()
        )
        | st.builds(
            lambda at, new: signed[:at] + new + signed[at + len(new) :],
            st.integers(0, len(signed)),
            st.binary(min_size=1, max_size=8),
        )
    )
    try:
        verify_submission(hostile, EXPECTED, trust)
    except BadSignature as error:
        assert "\n" not in error.message  # noqa: PT017 - most are refused; what is not says the same as before


def test_a_kit_without_a_key_says_which(kit_of, clock):
    kit = kit_of()
    kit.key.unlink()
    with pytest.raises(KitError, match=str(kit.key)):
        sign_submission(kit, JOB, "hello", DIGEST, clock=clock)
    kit.cert.unlink()
    with pytest.raises(KitError, match=str(kit.cert)):
        sign_submission(kit, JOB, "hello", DIGEST, clock=clock)


@pytest.mark.parametrize(
    "value", [None, 1, "", "2026-01-01", "2026-13-01T00:00:00.000Z", "2026-01-01 00:00:00.000Z", "x" * 24]
)
def test_what_is_no_time(value):
    assert moment(value) is None
