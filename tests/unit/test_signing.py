from __future__ import annotations

import json

import pytest

from fedhelm.errors import KitError
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.signing import make_manifest, parse_manifest, verify_startup


@pytest.fixture
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def startup(tmp_path, authority):
    folder = tmp_path / "startup"
    folder.mkdir()
    files = {"rootCA.pem": authority.cert_pem, "fed_client.json": b"{}", "start.sh": b"#!/bin/sh\n"}
    files["signature.json"] = make_manifest(files, authority, version=3)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def refused(startup):
    with pytest.raises(KitError) as caught:
        verify_startup(startup)
    return caught.value.message


def edit(startup, **changes):
    path = startup / "signature.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_provisioned_passes_and_has_its_version(startup):
    assert verify_startup(startup) == 3


@pytest.mark.parametrize("name", ["fed_client.json", "rootCA.pem", "start.sh"])
def test_a_changed_file_is_named(startup, name):
    with (startup / name).open("ab") as file:
        file.write(b"\n")
    or_what_is_said_of_it = f", or {startup / 'signature.json'} was" if name == "rootCA.pem" else ""
    assert refused(startup) == f"{startup / name} was changed{or_what_is_said_of_it}"


@pytest.mark.parametrize("name", ["fed_client.json", "rootCA.pem", "start.sh", "signature.json"])
def test_a_missing_file_is_named(startup, name):
    (startup / name).unlink()
    assert refused(startup) == f"{startup / name} is missing"


@pytest.mark.parametrize("name", ["extra.sh", ".hidden", "signature.json.bak"])
def test_an_additional_file_is_named(startup, name):
    (startup / name).write_bytes(b"")
    assert refused(startup) == f"{startup / name} does not belong to the kit"


def test_a_manifest_that_was_fitted_to_a_changed_file_is_refused(startup):
    (startup / "start.sh").write_bytes(b"#!/bin/sh\nevil\n")
    files = {path.name: path.read_bytes() for path in startup.iterdir() if path.name != "signature.json"}
    (startup / "signature.json").write_bytes(make_manifest(files, CertificateAuthority.create("poc"), version=3))
    assert "was not signed by this project's root" in refused(startup)


def test_the_version_is_part_of_what_was_signed(startup):
    edit(startup, version=4)
    assert "was not signed by this project's root" in refused(startup)


def test_a_manifest_that_does_not_list_the_root_is_refused(startup, authority):
    files = {"start.sh": (startup / "start.sh").read_bytes(), "fed_client.json": b"{}"}
    (startup / "signature.json").write_bytes(make_manifest(files, authority))
    assert refused(startup) == f"{startup / 'rootCA.pem'} does not belong to the kit"


@pytest.mark.parametrize(
    "change", [{"signature": "not base64!"}, {"files": []}, {"format": 2}, {"version": "3"}, {"signature": None}]
)
def test_a_manifest_of_another_form_is_refused(startup, change):
    edit(startup, **change)
    assert "signature.json" in refused(startup)


def test_a_manifest_cannot_point_out_of_the_folder(startup, authority, tmp_path):
    (tmp_path / "outside").write_bytes(b"x")
    manifest = make_manifest({"../outside": b"x", "rootCA.pem": authority.cert_pem}, authority)
    (startup / "signature.json").write_bytes(manifest)
    assert "startup/" in refused(startup)


def test_the_time_of_signing_is_signed_and_may_be_missing(tmp_path, startup, authority):
    files = {path.name: path.read_bytes() for path in startup.iterdir() if path.name != "signature.json"}
    data = make_manifest(files, authority, created="2026-11-22T15:04:05.123Z")
    (startup / "signature.json").write_bytes(data)
    assert verify_startup(startup) == 1
    assert parse_manifest(data, "x").created == "2026-11-22T15:04:05.123Z"
    edit(startup, created="2027-11-22T15:04:05.123Z")
    assert "not signed" in refused(startup)
    edit(startup, created="later")
    assert "not a time" in refused(startup)
    assert parse_manifest(make_manifest(files, authority), "x").created == ""
