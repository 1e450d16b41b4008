"""What a model's statement says, that it holds offline, and that nothing in it can be changed."""

from __future__ import annotations

import base64
import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhelm.config.kit import Kit
from fedhelm.config.timing import PROFILES
from fedhelm.errors import BadSignature, KitError
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.provenance import (
    Provenance,
    TrainedRound,
    sign_provenance,
    software_versions,
    verify_provenance,
)
from fedhelm.security.statements import Trust, seal
from tests.fakes.provision_clock import FixedClock

TIME = "2026-01-01T00:00:00.000Z"
ROUNDS = (
    TrainedRound(0, 1, "train", 1, "server1", ("site-1", "site-2"), "1" * 64, TIME),
    TrainedRound(0, 2, "train", 3, "server2", ("site-2", "site-3"), "2" * 64, TIME),
    TrainedRound(0, 2, "evaluate", 3, "server2", ("site-4",), None, TIME),
)
PROVENANCE = Provenance(
    project="poc",
    cluster="c" * 32,
    job="k7m3tq4w2zpx",
    name="hello",
    submitter="bob@a.org",
    submitter_org="a",
    code="d" * 64,
    submission='{"statement": {}}',
    rounds=ROUNDS,
    final_model_sha256="2" * 64,
    software={"fedhelm": "0.1.0", "python": "3.11"},
)


@pytest.fixture(scope="module")
def clock():
    return FixedClock()


@pytest.fixture(scope="module")
def authority(clock):
    return CertificateAuthority.create("poc", clock=clock)


@pytest.fixture(scope="module")
def kit_of(authority, tmp_path_factory):
    def make(role="server", name="server2", issuer=authority):
        root = tmp_path_factory.mktemp("kit")
        (root / "startup").mkdir()
        issued = issuer.issue(role, name, "a")
        kit = Kit(root, "poc", "c" * 32, role, name, "a", (), (), (), PROFILES["fast"])
        kit.cert.write_bytes(issued.cert)
        kit.key.write_bytes(issued.key)
        return kit

    return make


@pytest.fixture(scope="module")
def server(kit_of):
    return kit_of()


@pytest.fixture(scope="module")
def trust(authority):
    return Trust(authority.cert_pem, "poc")


@pytest.fixture(scope="module")
def signed(server, clock):
    return sign_provenance(server, PROVENANCE, clock=clock)


def test_what_was_signed_is_what_is_read(signed, trust):
    verified = verify_provenance(signed, trust)
    assert verified.provenance == PROVENANCE
    assert (str(verified.signer), verified.signer.org, verified.time) == ("server server2", "a", TIME)
    assert verified.provenance.members == ("site-1", "site-2", "site-3")  # site-4 only evaluated
    assert verified.provenance.epochs == (1, 3)


def test_only_a_server_of_this_project_signs(kit_of, authority, trust, signed, clock):
    for kit, message in (
        (kit_of("site", "site-1"), "signed by site site-1, and only server may"),
        (kit_of("project_admin", "a@b.org"), "and only server may"),
        (kit_of(issuer=CertificateAuthority.create("poc", clock=clock)), "not issued by this project's root"),
    ):
        with pytest.raises(BadSignature, match=message):
            verify_provenance(sign_provenance(kit, PROVENANCE, clock=clock), trust)
    with pytest.raises(BadSignature, match="is of project 'poc', not of 'other'"):
        verify_provenance(signed, Trust(authority.cert_pem, "other"))


def test_a_server_that_says_another_project_is_refused(server, trust, clock):
    other = sign_provenance(server, dataclasses.replace(PROVENANCE, project="other"), clock=clock)
    with pytest.raises(BadSignature, match="is of project 'other', not of 'poc'"):
        verify_provenance(other, trust)


def body_of(signed):
    return json.loads(signed)["statement"]


def test_nothing_in_it_can_be_changed(signed, trust):
    outer = json.loads(signed)
    for key in outer["statement"]:
        changed = {**outer["statement"], key: "changed"}
        with pytest.raises(BadSignature, match="the signature is not that of server server2"):
            verify_provenance(json.dumps({**outer, "statement": changed}).encode(), trust)
    for place in range(0, 64, 5):
        signature = bytearray(base64.b64decode(outer["signature"]))
        signature[place] ^= 1
        with pytest.raises(BadSignature):
            verify_provenance(json.dumps({**outer, "signature": base64.b64encode(signature).decode()}).encode(), trust)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "not of format 1"),
        ({"format": True}, "not of format 1"),
        ({"more": 1}, "not of format 1"),
        ({"code": "D" * 64}, "code does not have its form"),
        ({"code": None}, "code does not have its form"),
        ({"job": 1}, "job does not have its form"),
        ({"name": "x" * 2000}, "name does not have its form"),
        ({"software": []}, "software does not have its form"),
        ({"software": {"a": 1}}, "software does not have its form"),
        ({"submission": {}}, "submission does not have its form"),
        ({"rounds": {}}, "rounds does not have its form"),
        ({"rounds": [1]}, r"rounds\[0\]: not of format 1"),
        ({"final_model_sha256": "1" * 64}, "final_model_sha256 is not that of the last round"),
        ({"final_model_sha256": None}, "final_model_sha256 is not that of the last round"),
    ],
)
def test_the_parser_is_strict_with_what_a_server_signed(server, signed, trust, changes, message):
    body = {**body_of(signed), **changes}
    sealed = seal(b"fedhelm provenance", body, server.key, server.cert.read_bytes())
    with pytest.raises(BadSignature, match=message):
        verify_provenance(sealed, trust)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -1),
        ("round", True),
        ("epoch", 1.5),
        ("epoch", 2**70),
        ("members", ["a", 1]),
        ("members", "a"),
        ("kind", None),
        ("model_sha256", "x"),
    ],
)
def test_a_round_has_its_form(server, signed, trust, key, value):
    body = body_of(signed)
    body["rounds"][1][key] = value
    sealed = seal(b"fedhelm provenance", body, server.key, server.cert.read_bytes())
    with pytest.raises(BadSignature, match=rf"rounds\[1\]: {key} does not have its form"):
        verify_provenance(sealed, trust)


def test_a_job_without_rounds_and_of_before_jobs_were_signed(server, trust, clock):
    bare = dataclasses.replace(PROVENANCE, rounds=(), final_model_sha256=None, submission=None, submitter_org="")
    assert verify_provenance(sign_provenance(server, bare, clock=clock), trust).provenance == bare


def test_what_could_not_be_read_is_not_signed(server, clock):
    with pytest.raises(BadSignature, match="final_model_sha256"):
        sign_provenance(server, dataclasses.replace(PROVENANCE, final_model_sha256=None), clock=clock)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=60, deadline=None)
def test_hostile_bytes_are_refused(data):
    with pytest.raises(BadSignature):
        verify_provenance(data, Trust(b"", "poc"))


def test_versions_are_those_that_are_installed():
    found = software_versions()
    assert {"python", "fedhelm", "numpy", "cryptography"} <= set(found)


def test_a_kit_without_a_certificate_says_which_file(kit_of, clock):
    kit = kit_of()
    kit.cert.unlink()
    with pytest.raises(KitError, match=str(kit.cert)):
        sign_provenance(kit, PROVENANCE, clock=clock)
