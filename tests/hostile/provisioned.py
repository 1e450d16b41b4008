"""Decoders of what provisioning, rights, audit and provenance read: requests, zips, statements, policies, state."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyzipper

from fedhelm.config.kit import Kit
from fedhelm.config.log_levels import LOG_CONFIG, levels_of
from fedhelm.provision.issued import IssuedCertificate
from fedhelm.provision.kit_source import read_startup
from fedhelm.provision.project_file import read_project_file
from fedhelm.provision.provisioned import ProjectFolder
from fedhelm.provision.unpack import unpack
from fedhelm.provision.zips import write_zip
from fedhelm.security import job_signing, provenance, statements
from fedhelm.security.audit import AuditFile
from fedhelm.security.audit_lines import START, Entry, Outcome, encode, examine, parse_line
from fedhelm.security.audit_memory import MEMORY_FILE, read_memory
from fedhelm.security.audit_start import AUDIT_SETTINGS, read_audit_settings
from fedhelm.security.gates import AUTHORIZATION_FILE, read_policy
from fedhelm.security.identity import Principal
from fedhelm.security.job_signing import Submission, sign_submission, verify_submission
from fedhelm.security.kept_revocations import REVOKED_FILE, KeptRevocations
from fedhelm.security.kit import VERSION_FILE, remembered_version
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.provenance import sign_provenance, verify_provenance
from fedhelm.security.requests import make_request, read_request
from fedhelm.security.retired import load_retired
from fedhelm.security.revocation import RevocationList, Revoked
from fedhelm.security.statements import Trust, seal
from fedhelm.security.syslog import SyslogSink
from tests.hostile.decoder import Decode, Decoder, as_text, dump
from tests.hostile.participants import in_file
from tests.support.kits import ADMIN, make_kits
from tests.unit.test_provenance import PROVENANCE

FLARE = Path(__file__).parents[1] / "data" / "projects" / "flare-2.1.yml"
JOB = "abcdefghijkl"
TIME = "2026-01-01T00:00:00.000Z"
POLICY = b"""{
  "format_version": "1.0", // mine
  "permissions": {"lead": {"submit_job": "o:submitter", "byoc": ["n:bob@a.org", "o:nvidia"]}, "project_admin": "any"}
}
"""
LEVELS = b"# how much\n[levels]\nfedhelm = INFO\nfedhelm.wire = DEBUG\n"


def decoders(place: Path) -> Iterator[Decoder]:
    authority = CertificateAuthority.create("poc")
    (place / "kits").mkdir()
    kits = make_kits(place / "kits", servers=1, authority=authority)
    yield from _requests()
    yield from _statements(authority, kits)
    yield from _audit(place)
    yield from _policies(kits["site-1"])
    yield from _state(place / "project")
    yield from _kept(authority, kits["site-1"])
    yield from _zips(place / "zips", kits["site-1"])
    flare = place / "flare.yml"
    yield Decoder("project.yml: of FLARE", in_file(flare, lambda: read_project_file(flare)), (FLARE.read_bytes(),))


def _requests() -> Iterator[Decoder]:
    seeds = tuple(make_request(*one)[1] for one in (("site", "site-1", "nvidia"), ("lead", "bob@a.org", "a")))
    yield Decoder("certificate request", lambda data: read_request(data, "it"), seeds)


# -- signed statements -------------------------------------------------------------------------------------------------


def _statements(authority: CertificateAuthority, kits: dict[str, Kit]) -> Iterator[Decoder]:
    admin, server = kits[ADMIN], kits["server1"]
    trust = Trust(authority.cert_pem, "poc")
    expected = Submission("poc", admin.cluster, JOB, "hello", "ab" * 32)
    submission = sign_submission(admin, JOB, "hello", "ab" * 32)
    come = sign_provenance(server, PROVENANCE)

    def submitted(data: bytes) -> object:
        return verify_submission(data, expected, trust, submitter=ADMIN)

    def trained(data: bytes) -> object:
        return verify_provenance(data, trust)

    yield Decoder("statement: submission", submitted, (submission,))
    yield Decoder("statement: provenance", trained, (come,))
    for name, take, seed, domain, kit in (
        ("submission", submitted, submission, job_signing._DOMAIN, admin),
        ("provenance", trained, come, provenance._DOMAIN, server),
    ):
        yield Decoder(f"statement: {name}, signed", take, (seed,), repair=_sealed_anew(domain, kit))
    yield Decoder("statement: any", lambda data: statements.parse_json(data, "it"), (submission, come))


def _sealed_anew(domain: bytes, kit: Kit) -> Callable[[bytes], bytes]:
    certificate = kit.cert.read_bytes()

    def repair(data: bytes) -> bytes:
        try:
            return seal(domain, json.loads(data)["statement"], kit.key, certificate)
        except Exception:  # noqa: BLE001 - what cannot be repaired is eaten as it is
            return data

    return repair


# -- audit -------------------------------------------------------------------------------------------------------------


def _lines() -> list[bytes]:
    number, digest = START
    by = Principal("poc", "lead", "bob@a.org", "a", "5f")
    entries = (
        Entry("start", Outcome.ALLOWED, object={"version": "0.1.0"}),
        Entry("Admin.AbortJob", Outcome.DENIED, by, {"job": JOB, "site": "site-1"}, "n:submitter", times=3),
    )
    lines = []
    for entry in entries:
        line = encode(entry, number + 1, digest, TIME)
        number, digest = line.number, line.digest
        lines.append(line.raw)
    return lines


def _with_digests(data: bytes) -> bytes:
    """Give each line the sha256 that it should have."""
    found = []
    for raw in data.split(b"\n"):
        head, mark, _ = raw.rpartition(b',"sha256":"')
        digest = hashlib.sha256(head + b"}").hexdigest().encode()
        found.append(head + mark + digest + b'"}' if mark else raw)
    return b"\n".join(found)


def _audit(place: Path) -> Iterator[Decoder]:
    lines = _lines()
    whole = b"".join(line + b"\n" for line in lines)
    path = place / "audit.jsonl"

    def come_back() -> object:
        with AuditFile(path, sync=False) as file:
            file.append([Entry("start", Outcome.ALLOWED)])
            return file.last

    yield Decoder("audit: line", parse_line, tuple(lines), repair=_with_digests)
    yield Decoder("audit: file", lambda data: examine(io.BytesIO(data)), (whole,), repair=_with_digests)
    yield Decoder("audit: file that is gone on with", in_file(path, come_back), (whole,), repair=_with_digests)
    memory = (b'{"number": 7, "sha256": "%s", "lost": 0}\n' % (b"0" * 64),)
    yield Decoder("run/audit-last.json", in_file(place / MEMORY_FILE, lambda: read_memory(place / MEMORY_FILE)), memory)
    local = place / "local"
    settings = (b'{"syslog": "tcp://log.example.org:514", "sync": false} // mine', b"{}")
    yield Decoder("local/audit.json", in_file(local / AUDIT_SETTINGS, lambda: read_audit_settings(local)), settings)
    yield Decoder("name: syslog", as_text(lambda url: SyslogSink(url, "site-1")), (b"udp://h", b"tcp://[::1]:514"))


# -- rights and levels -------------------------------------------------------------------------------------------------


def _policies(kit: Kit) -> Iterator[Decoder]:
    whole = (kit.startup / AUTHORIZATION_FILE).read_bytes()
    for folder, seeds in ((kit.local, (POLICY, whole)), (kit.startup, (whole,))):
        path = folder / AUTHORIZATION_FILE
        decode = _one_file(path, lambda: read_policy(kit.root))
        yield Decoder(f"{folder.name}/authorization.json", decode, seeds)
    for folder in (kit.startup, kit.local):
        decode = _one_file(folder / LOG_CONFIG, lambda: levels_of(kit))
        yield Decoder(f"{folder.name}/log.config", decode, (LEVELS,))


def _one_file(path: Path, look: Callable[[], object]) -> Decode:
    """A decoder of a file that is put back, or taken away, afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else None

    def decode(data: bytes) -> object:
        path.write_bytes(data)
        try:
            return look()
        finally:
            path.unlink() if before is None else path.write_bytes(before)

    return decode


# -- the project's state -----------------------------------------------------------------------------------------------


def _state(root: Path) -> Iterator[Decoder]:
    folder = ProjectFolder.create(root, "poc")
    authority = folder.authority()
    issued = IssuedCertificate.of(authority.issue("site", "site-1", "nvidia").cert, "poc", 1, own_key=True)
    folder.record(issued)
    folder.revoke([issued.serial], "lost", authority)
    other = CertificateAuthority.create("poc")
    folder.write_retired_roots(authority.cert_pem + other.cert_pem)
    announced = json.loads((folder.state / "project.json").read_bytes())
    announced["announced"] = {"prod": 0, "kits": {"site-1": "ab" * 32}}

    def look() -> object:
        found = ProjectFolder.open(root)
        return (
            found.certificates(), found.current("site-1"), found.kit_version, found.last_prod, found.kit_digests,
            found.revocation_list(), found.unlisted(), found.prods, found.root_is_encrypted,
        )  # fmt: skip

    for name in ("project.json", "certificates.json", "revoked.json"):
        path = root / "state" / name
        more = (dump(announced),) if name == "project.json" else ()
        yield Decoder(f"state/{name}", _one_file(path, look), (path.read_bytes(), *more))
    retired = folder.retired_roots
    yield Decoder("certificate: retired roots", load_retired, (retired, authority.cert_pem, b""))


def _kept(authority: CertificateAuthority, kit: Kit) -> Iterator[Decoder]:
    entry = Revoked("a1b2", "site", "site-1", TIME, "lost")
    signed = RevocationList("poc", kit.cluster, 3, TIME, (entry,)).to_bytes(authority)

    def kept() -> object:
        found = KeptRevocations(kit)
        return found.current, found.problem

    yield Decoder("run/revoked.json", in_file(kit.run / REVOKED_FILE, kept), (signed,))
    version = kit.run / VERSION_FILE
    yield Decoder("run/kit.json", in_file(version, lambda: remembered_version(kit)), (dump({"version": 1}),))


# -- kits as zips ------------------------------------------------------------------------------------------------------

PASSWORD = "correct horse"


def _zips(place: Path, kit: Kit) -> Iterator[Decoder]:
    place.mkdir()
    into = place / "into"
    into.mkdir()
    seeds = []
    for number, password in enumerate((None, PASSWORD.encode())):
        target = place / f"seed-{number}.zip"
        write_zip(kit.root, target, password)
        seeds.append(target.read_bytes())
    source = place / "kit.zip"
    look = in_file(source, lambda: _unpacked(source, into))
    yield Decoder("kit zip: unpack", look, tuple(seeds), repair=_with_checksums)
    named = {f"site-1/startup/{path.name}": path.read_bytes().decode("latin-1") for path in kit.startup.iterdir()}
    decode = _of_names(place / "named.zip", into)
    yield Decoder("kit zip: names", decode, (dump(named),))


def _unpacked(source: Path, into: Path) -> object:
    try:
        return unpack(source, into, PASSWORD)
    finally:
        for path in into.iterdir():
            shutil.rmtree(path)


def _of_names(source: Path, into: Path) -> Decode:
    """The input says as JSON which files a zip has; what cannot be put into a zip is not tried."""

    def decode(data: bytes) -> object:
        with contextlib.suppress(Exception):
            files = json.loads(data)
            with zipfile.ZipFile(source, "w") as archive:
                for name, text in files.items():
                    archive.writestr(zipfile.ZipInfo(str(name)), str(text).encode("latin-1", "replace"))
        with contextlib.suppress(OSError, pyzipper.BadZipFile):
            found = read_startup(source)
            assert all("/" not in name and name not in ("", ".", "..") for name in found), found
        return _unpacked(source, into)

    return decode


def _with_checksums(data: bytes) -> bytes:
    """Give what is stored or deflated in a zip the checksum and size that it should have, where that can be told."""
    fixed = bytearray(data)
    at = 0
    while (at := fixed.find(b"PK\x01\x02", at)) >= 0 and len(fixed) >= at + 46:
        method, place = struct.unpack_from("<H", fixed, at + 10)[0], struct.unpack_from("<I", fixed, at + 42)[0]
        size = struct.unpack_from("<I", fixed, at + 20)[0]
        content = _content(bytes(fixed), place, size, method)
        if content is not None:
            struct.pack_into("<I", fixed, at + 16, zlib.crc32(content))
            struct.pack_into("<I", fixed, place + 14, zlib.crc32(content))
        at += 46
    return bytes(fixed)


def _content(data: bytes, place: int, size: int, method: int) -> bytes | None:
    try:
        head = struct.unpack_from("<HH", data, place + 26)
        begin = place + 30 + sum(head)
        packed = data[begin : begin + size]
        if method == zipfile.ZIP_DEFLATED:
            return zlib.decompressobj(-15).decompress(packed, 1 << 20)
    except (struct.error, zlib.error):
        return None
    return packed if method == zipfile.ZIP_STORED and place + 18 <= len(data) else None
