"""Decoders of names, certificates, kits, and of the files that a participant keeps or is given."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedhelm.admin.remember import recall
from fedhelm.config.json_source import load_commented
from fedhelm.config.kit import Kit, check_lease_store, find_config, kit_from_json
from fedhelm.config.timing import PROFILES, Timing
from fedhelm.ids import check_admin_name, check_host_name, check_job_id
from fedhelm.privacy.policy import PRIVACY_SAMPLE, PrivacyPolicy
from fedhelm.process import read_state
from fedhelm.provision.project_file import read_project_file
from fedhelm.provision.sample import SAMPLE
from fedhelm.security.authorization import DEFAULT_AUTHORIZATION, Policy
from fedhelm.security.identity import principal_from_der, principal_from_uris, uri_of
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority, load_certificate, load_key, load_roots, verify
from fedhelm.security.revocation import RevocationList, Revoked, _signed_bytes
from fedhelm.security.signing import SIGNATURE_FILE, make_manifest, parse_manifest, verify_startup
from fedhelm.wire.overseer_api import Announcement
from fedhelm.wire.roster import known_servers
from fedhelm_client.follow import load_epoch
from fedhelm_client.journal import Journal
from fedhelm_client.orders import Orders
from fedhelm_client.outbox import Outbox
from fedhelm_lab.project_backup import read_backup
from fedhelm_lab.workspace import MARKER, Workspace
from fedhelm_overseer.lease_copy import check_copy, copy_in, copy_out
from fedhelm_overseer.lease_engines import SqliteEngines
from fedhelm_overseer.lease_place import LOCAL_FILE, lease_place
from fedhelm_overseer.members import verified
from fedhelm_server.break_glass import take
from fedhelm_server.local_settings import SETTINGS_FILE, read_settings
from tests.hostile.decoder import Decode, Decoder, as_json, as_text, as_utf8, dump
from tests.support.kits import ADMIN, make_kits


def in_file(path: Path, take: Callable[[], object]) -> Decode:
    """A decoder of what stands in a file; the folder is there."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def decode(data: bytes) -> object:
        path.write_bytes(data)
        return take()

    return decode


def decoders(place: Path) -> Iterator[Decoder]:
    authority = CertificateAuthority.create("poc")
    (place / "kits").mkdir()
    kits = make_kits(place / "kits", servers=2, authority=authority)
    yield from _names()
    yield from _projects(place)
    yield from _certificates(authority, kits["server1"])
    yield from _kits(authority, kits)
    yield from _signed(authority)
    policy = DEFAULT_AUTHORIZATION.encode()
    plain = dump(load_commented(DEFAULT_AUTHORIZATION, "it").value)
    yield Decoder("authorization.json", as_utf8(lambda text: Policy.parse(text, "it")), (policy, plain))
    uncommented = re.sub(r"// ([{\"])", r"\1", PRIVACY_SAMPLE)
    plain = dump(load_commented(uncommented, "it").value)
    yield Decoder("privacy.json", as_utf8(lambda text: PrivacyPolicy.parse(text, "it")), (uncommented.encode(), plain))
    yield from _settings(kits)
    yield from _run_files(kits, place)


def _projects(place: Path) -> Iterator[Decoder]:
    project = place / "project.yml"
    yield Decoder("project.yml", in_file(project, lambda: read_project_file(project)), (SAMPLE.encode(),))


def _names() -> Iterator[Decoder]:
    yield Decoder("name: job", as_text(check_job_id), (b"abcdefghijkl",))
    yield Decoder("name: host", as_text(check_host_name), (b"site-1.example.org",))
    yield Decoder("name: admin", as_text(check_admin_name), (b"admin@nvidia.com", b"a.b+c@d-e.f"))
    postgres = b"postgresql://user@host:5432/db?passfile=/x"
    yield Decoder(
        "name: lease store", as_text(lambda one: check_lease_store(one, secrets=False)), (postgres, b"sqlite")
    )
    uris = tuple(uri_of("poc", role, "server1").encode() for role in ("server", "site"))
    yield Decoder("name: URI", as_text(lambda one: principal_from_uris([one], "poc")), uris)
    yield Decoder("timing", as_json(Timing.from_json), (dump(PROFILES["fast"].to_json()),))


def _certificates(authority: CertificateAuthority, kit: Kit) -> Iterator[Decoder]:
    certificate = x509.load_pem_x509_certificate(kit.cert.read_bytes())
    der = certificate.public_bytes(Encoding.DER)
    pem, key = kit.cert.read_bytes(), kit.key.read_bytes()
    yield Decoder("certificate: DER", lambda data: principal_from_der(data, "poc"), (der,))
    yield Decoder("certificate: PEM", lambda data: load_certificate(data, "it"), (pem, authority.cert_pem))
    yield Decoder("key: PEM", lambda data: load_key(data, "it"), (key,))
    roots = authority.cert_pem + CertificateAuthority.create("poc").cert_pem
    yield Decoder("certificate: roots", lambda data: load_roots(data, "it"), (roots,))
    signature = authority.sign(b"what")
    yield Decoder("signature", lambda data: verify(authority.cert_pem, data, b"what"), (signature,))


def _signed(authority: CertificateAuthority) -> Iterator[Decoder]:
    entry = Revoked("a1b2", "site", "site-1", "2026-01-01T00:00:00.000Z", "lost")
    revoked = RevocationList("poc", "c" * 32, 3, "2026-01-01T00:00:00.000Z", (entry,)).to_bytes(authority)

    def parse(data: bytes) -> object:
        return RevocationList.parse(data, authority.cert_pem, "poc", "c" * 32)

    yield Decoder("list of revoked certificates", parse, (revoked,))
    yield Decoder("list of revoked certificates, signed", parse, (revoked,), repair=_resigned_list(authority))


def _resigned_list(authority: CertificateAuthority) -> Callable[[bytes], bytes]:
    def repair(data: bytes) -> bytes:
        try:
            body = json.loads(data)
            body.pop("signature", None)
            signature = base64.b64encode(authority.sign(_signed_bytes(body))).decode()
            return json.dumps({**body, "signature": signature}).encode()
        except Exception:  # noqa: BLE001 - what cannot be repaired is eaten as it is
            return data

    return repair


class _Startup:
    """A kit whose one file is the input."""

    def __init__(self, kit: Kit, name: str, look: Callable[[], object]) -> None:
        self._path, self._look = kit.startup / name, look
        self.seed = self._path.read_bytes()
        self._mode = self._path.stat().st_mode

    def __call__(self, data: bytes) -> object:
        self._path.write_bytes(data)
        try:
            return self._look()
        finally:
            self._path.write_bytes(self.seed)


def _kits(authority: CertificateAuthority, kits: dict[str, Kit]) -> Iterator[Decoder]:
    server, site = kits["server1"], kits["site-1"]
    manifest = (server.startup / SIGNATURE_FILE).read_bytes()
    yield Decoder("kit: manifest", lambda data: parse_manifest(data, "it"), (manifest,))
    whole = _Startup(server, SIGNATURE_FILE, lambda: verify_startup(server.startup))
    yield Decoder("kit: manifest of a folder", whole, (manifest,))
    configs = tuple(find_config(kit.root).read_bytes() for kit in kits.values())
    yield Decoder("kit: configuration", as_json(lambda value: kit_from_json(server.root, value, "it")), configs)
    for name in ("fed_client.json", "client.crt", "client.key", "rootCA.pem"):
        one = _Startup(site, name, lambda: open_kit(site.root))
        yield Decoder(f"kit: {name}", one, (one.seed,), repair=_signed_anew(authority, site, name))
    shown = find_config(server.root).read_bytes()
    yield Decoder("kit: shown to an overseer", _announced(authority, kits["overseer"]), (shown,))


def _signed_anew(authority: CertificateAuthority, kit: Kit, name: str) -> Callable[[bytes], bytes]:
    """Sign the kit as if the changed file had been provisioned, so that what reads it is reached."""

    def repair(data: bytes) -> bytes:
        files = {path.name: path.read_bytes() for path in kit.startup.iterdir() if path.name != SIGNATURE_FILE}
        (kit.startup / SIGNATURE_FILE).write_bytes(make_manifest({**files, name: data}, authority))
        return data

    return repair


def _announced(authority: CertificateAuthority, overseer: Kit) -> Decode:
    def decode(data: bytes) -> object:
        text = data.decode(errors="replace")
        manifest = make_manifest({"fed_server.json": text.encode()}, authority).decode()
        return verified(Announcement(manifest=manifest, config=text), overseer, "server1")

    return decode


def _settings(kits: dict[str, Kit]) -> Iterator[Decoder]:
    server, overseer = kits["server1"], kits["overseer"]
    said = dump({"unleased": "stop", "metrics_port": 9090})
    look = in_file(server.local / SETTINGS_FILE, lambda: read_settings(server.local))
    yield Decoder("local/server.json", look, (said,))
    place = dump({"lease_store": "postgresql://user@host:5432/db?passfile=/x"})
    yield Decoder("local/overseer.json", in_file(overseer.local / LOCAL_FILE, lambda: lease_place(overseer)), (place,))


def _run_files(kits: dict[str, Kit], place: Path) -> Iterator[Decoder]:
    """What a participant wrote itself: after a power cut, or a person's hand, anything may stand there."""
    kit, run = kits["site-1"], place / "run"
    yield Decoder("run/state.json", in_file(run / "state.json", lambda: read_state(run)), (dump({"ready": True}),))
    guess = dump({"server": "server1", "epoch": 3})
    yield Decoder("run/primary.json", in_file(run / "primary.json", lambda: recall(run)), (guess,))
    epoch = dump({"project": "poc", "cluster": "c", "epoch": 3})
    path = run / "epoch.json"
    yield Decoder("run/epoch.json", in_file(path, lambda: load_epoch(path, "poc", "c")), (epoch,))
    orders = run / "orders.json"
    yield Decoder("run/orders.json", in_file(orders, lambda: Orders(orders)), (dump(["request99"]),))
    plain = [one.__dict__ for one in kit.servers]
    roster = dump({"cluster": kit.cluster, "kit": plain, "servers": plain})
    yield Decoder("run/servers.json", in_file(kit.run / "servers.json", lambda: known_servers(kit)), (roster,))
    asked = dump({"by": "root", "reason": "why"})
    yield Decoder("run/break-glass.json", in_file(run / "break-glass.json", lambda: take(run)), (asked,))
    lines = b'{"n":1,"line":{"kind":"log"}}\n{"n":2,"line":{"kind":"log"}}\n'
    yield Decoder("run/outbox: lines", in_file(run / "lines", lambda: _journal(run / "lines")), (lines,))
    yield from _outbox(run / "outbox")
    root = place / "workspace"
    people = [{"name": "overseer", "role": "overseer"}, {"name": ADMIN, "role": "project_admin"}]
    marker = dump({"kind": "poc", "participants": people})
    yield Decoder("workspace marker", in_file(root / MARKER, lambda: Workspace.open(root)), (marker,))
    backup = place / "backup"
    facts = dump({"schema_version": 1, "files": {}})
    yield from _lease_copy(place)
    yield Decoder("backup.json", in_file(backup / "backup.json", lambda: read_backup(backup)), (facts,))


def _lease_copy(place: Path) -> Iterator[Decoder]:
    """What a backup has of the lease goes into a database."""
    engines = SqliteEngines(place / "lease.db")
    good = copy_out(engines, "poc")
    good["tables"]["history"] = [
        {
            "epoch": 1,
            "step": "grant",
            "at": "2026-01-01T00:00:00Z",
            "holder": "server1",
            "incarnation": "a",
            "gap_s": 0.5,
        }
    ]
    good["tables"]["revocations"] = [{"version": 3, "data": "{}"}]

    def put_back(value: Any) -> object:
        check_copy(value)
        copy_in(engines, "poc", value, epoch=7, log_seq=9)
        return copy_out(engines, "poc")

    yield Decoder("backup: lease.json", as_json(put_back), (dump(good),))


def _journal(path: Path) -> object:
    journal = Journal(path)
    try:
        return journal.next_batch()
    finally:
        journal.close()


def _outbox(folder: Path) -> Iterator[Decoder]:
    meta = {
        "v": 1,
        "id": {"attempt": 1, "step": 0, "round": 1, "kind": "train", "sequence": 0},
        "file": None,
        "owner": "jobs/abcdefghijkl/0-1/sites",
        "weight": 1.5,
        "metrics": {"loss": 0.5},
        "lines": 3,
        "state": "saved",
    }

    def look() -> object:
        try:
            outbox = Outbox(folder)
            return outbox.to_offer(), outbox.held()
        finally:
            for path in folder.iterdir():
                path.unlink()

    yield Decoder("run/outbox: result", in_file(folder / "1-0-1-train-0.result.json", look), (dump(meta),))
