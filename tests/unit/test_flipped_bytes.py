"""One flipped byte in any file of any provisioned kit is named when the kit is opened; a closed zip stays closed."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import struct
import zipfile

import pytest
import pyzipper

from fedhelm.errors import FedhelmError
from fedhelm.provision import pki_cli, provision_cli
from fedhelm.provision.install import main as kit_main
from fedhelm.security.kit import open_kit

KITS = {
    "overseer": "overseer",
    "server1": "server",
    "server2": "server",
    "site-1": "site",
    "site-2": "site",
    "ada@nvidia.com": "project_admin",
    "anna@hospital-a.org": "org_admin",
    "lea@hospital-a.org": "lead",
    "mo@hospital-b.org": "member",
}
PROJECT = """\
api_version: 3
name: demo
snapshot_persistor: /shared/demo
docker_image: fedhelm:0.1
participants:
- {name: overseer, type: overseer, org: nvidia, port: 8443}
- {name: server1, type: server, org: nvidia}
- {name: server2, type: server, org: nvidia, fed_learn_port: 9002, admin_port: 9003}
- {name: site-1, type: client, org: hospital-a, enable_byoc: true}
- {name: site-2, type: client, org: hospital-b}
- {name: ada@nvidia.com, type: admin, org: nvidia, role: project_admin}
- {name: anna@hospital-a.org, type: admin, org: hospital-a, role: org_admin}
- {name: lea@hospital-a.org, type: admin, org: hospital-a, role: lead}
- {name: mo@hospital-b.org, type: admin, org: hospital-b, role: member}
"""
PASSWORD = "correct horse"
OWN_KEY = "site-2"


def command(main, *argv, status=0):
    """Run one of the commands; return its data, or its error."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        found = main([*map(str, argv), "-o", "json"])
    assert found == status, out.getvalue()
    return json.loads(out.getvalue())["error" if status else "data"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Everybody's kit in prod_00, zips with a password; in prod_01 a kit for a key that site-2 made itself."""
    folder = tmp_path_factory.mktemp("office")
    (folder / "project.yml").write_text(PROJECT)
    secret = folder / "password"
    secret.write_text(PASSWORD + "\n")
    secret.chmod(0o600)
    command(
        provision_cli.main,
        *("-p", folder / "project.yml", "-w", folder / "workspace", "--zip-password-file", secret),
    )
    root = folder / "workspace" / "demo"
    made = command(pki_cli.main, "request", OWN_KEY, "--role", "site", "--org", "hospital-b", "--out", folder / "keys")
    command(pki_cli.main, "approve", made["request"], "-w", root)
    shutil.copy(made["key"], root / "prod_01" / OWN_KEY / "startup" / "client.key")
    return root


@pytest.fixture
def opened(project, tmp_path):
    """Copies of kits, to spoil."""

    def copy(name, prod="prod_00"):
        there = tmp_path / name
        shutil.copytree(project / prod / name, there)
        assert open_kit(there).name == name
        return there

    return copy


def places(size, least=40):
    """The first and the last byte, and some in between; each with another bit of it."""
    step = max(1, size // least)
    return [(place, 1 << (place // step) % 8) for place in sorted({*range(0, size, step), size - 1})]


def not_named(root, path, flips):
    """The flips that are not answered by a refusal that names the file; it is as before afterwards."""
    good = path.read_bytes()
    wrong = []
    for place, mask in flips:
        path.write_bytes(good[:place] + bytes([good[place] ^ mask]) + good[place + 1 :])
        try:
            open_kit(root)
        except FedhelmError as error:
            if str(path) not in error.message:
                wrong.append((place, mask, error.message))
        else:
            wrong.append((place, mask, "opened"))
    path.write_bytes(good)
    return wrong


@pytest.mark.parametrize("name", KITS)
def test_a_flipped_byte_in_any_file_is_named(opened, name):
    root = opened(name)
    files = sorted((root / "startup").iterdir())
    assert {"rootCA.pem", "signature.json", "readme.txt", "docker.sh"} <= {path.name for path in files}
    assert open_kit(root).role == KITS[name]
    for path in files:
        assert not_named(root, path, places(path.stat().st_size)) == [], path.name


def test_not_one_bit_of_the_manifest_can_be_flipped(opened):
    """Also those that mean nothing: in the names, in blanks, in the unused bits of the signature's base64."""
    root = opened("site-1")
    path = root / "startup" / "signature.json"
    size = path.stat().st_size
    whole_end = [(place, 1 << bit) for place in range(size - 12, size) for bit in range(8)]
    blanks = [(place, 0x29) for place, byte in enumerate(path.read_bytes()) if byte == 0x20]  # a tab instead
    assert not_named(root, path, [*places(size, size), *whole_end, *blanks[:20]]) == []


def test_a_flipped_byte_of_a_kit_whose_participant_made_its_key_is_named(opened):
    root = opened(OWN_KEY, "prod_01")
    manifest = json.loads((root / "startup" / "signature.json").read_bytes())
    assert manifest["own_key"] is True
    assert "client.key" not in manifest["files"]
    for path in sorted((root / "startup").iterdir()):
        flips = places(path.stat().st_size)
        # What ends the last line of a key is no part of it; everything else shows: it fits the certificate no more.
        assert not_named(root, path, flips[:-1] if path.suffix == ".key" else flips) == [], path.name


@pytest.mark.parametrize("name", KITS)
def test_no_file_of_a_closed_zip_can_be_read_without_its_password(project, name):
    closed = project / "prod_00" / f"{name}.zip"
    with pyzipper.AESZipFile(closed) as archive:
        files = [one.filename for one in archive.infolist() if not one.is_dir()]
        assert len(files) >= 10
        for file in files:
            for password in (None, b"", b"correct horsf", PASSWORD.encode() + b"\n"):
                with pytest.raises(RuntimeError):
                    archive.read(file, pwd=password)
        assert {file: archive.read(file, pwd=PASSWORD.encode()) for file in files} == {
            file: (project / "prod_00" / file).read_bytes() for file in files
        }
    data = closed.read_bytes()
    for path in (project / "prod_00" / name / "startup").glob("*.key"):
        assert path.read_bytes() not in data
    with zipfile.ZipFile(closed) as plain, pytest.raises((RuntimeError, NotImplementedError)):
        plain.testzip()


@pytest.mark.parametrize("given", [None, "", "correct horsf"])
def test_a_closed_zip_is_not_unpacked_without_its_password(project, tmp_path, given):
    words = ["unpack", project / "prod_00" / "site-1.zip", "-w", tmp_path]
    if given is not None:
        (tmp_path / "password").write_text(given + "\n")
        words += ["--password-file", tmp_path / "password"]
    before = list(tmp_path.iterdir())
    error = command(kit_main, *words, status=4)
    assert error["code"] == "BAD_KIT"
    assert "site-1.zip" in error["message"]
    assert list(tmp_path.iterdir()) == before


def places_in(zipped):
    """Of each file of ``startup/``, in the zip: the first, the middle and the last byte of what is packed."""
    data = zipped.read_bytes()
    with pyzipper.AESZipFile(zipped) as archive:
        for one in archive.infolist():
            if "/startup/" in one.filename and not one.is_dir():
                name, extra = struct.unpack_from("<HH", data, one.header_offset + 26)
                first = one.header_offset + 30 + name + extra
                for place in (first, first + one.compress_size // 2, first + one.compress_size - 1):
                    yield one.filename, place


def test_a_flipped_byte_of_a_zip_leaves_nothing(project, tmp_path):
    whole, spoiled = project / "prod_00" / "site-1.zip", tmp_path / "site-1.zip"
    flips = list(places_in(whole))
    assert len(flips) >= 3 * 10
    (tmp_path / "password").write_text(PASSWORD)
    words = ["unpack", spoiled, "-w", tmp_path, "--password-file", tmp_path / "password"]
    for name, place in flips:
        data = bytearray(whole.read_bytes())
        data[place] ^= 0x10
        spoiled.write_bytes(data)
        error = command(kit_main, *words, status=4)
        assert (error["code"], str(spoiled) in error["message"]) == ("BAD_KIT", True), (name, place)
        assert {path.name for path in tmp_path.iterdir()} == {"site-1.zip", "password"}
