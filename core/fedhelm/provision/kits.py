"""Write signed start-up kits: one folder for each participant, ``startup/`` signed, ``local/`` its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from fedhelm.clock import SystemClock, iso
from fedhelm.config.kit import CERT_STEM, CONFIG_FILE, Kit, kit_to_json
from fedhelm.errors import WorkspaceExists
from fedhelm.provision.kit_texts import local_texts
from fedhelm.provision.project import Participant, Project
from fedhelm.provision.templates import startup_texts
from fedhelm.security.pki import CertificateAuthority, load_certificate, load_key, load_roots, serial_of
from fedhelm.security.retired import RETIRED_FILE
from fedhelm.security.signing import SIGNATURE_FILE, make_manifest

__all__ = ["Identity", "digest_of", "file_mode", "startup_files", "write_kit", "write_kits"]

_SECRET: Final = (".key", ".pfx")


@dataclasses.dataclass(frozen=True)
class Identity:
    """A participant's certificate and key, PEM; ``key`` is None where only the participant has it."""

    cert: bytes
    key: bytes | None


def file_mode(name: str) -> int:
    """Return the mode of a file of a kit: keys are their owner's alone, scripts can be run."""
    suffix = Path(name).suffix
    if suffix in _SECRET:
        return 0o600
    return 0o755 if suffix == ".sh" else 0o644


def _sites_known_to(project: Project, participant: Participant) -> tuple[str, ...]:
    """Return all sites for those who deal with jobs: so a site that is added changes nobody else's kit."""
    if participant.role == "site":
        return (participant.name,)
    return () if participant.role == "overseer" else project.sites


def _kit_of(project: Project, participant: Participant, root: Path) -> Kit:
    return Kit(
        root=root,
        project=project.name,
        cluster=project.cluster,
        role=participant.role,
        name=participant.name,
        org=participant.org,
        overseers=project.overseers,
        servers=project.servers,
        sites=_sites_known_to(project, participant),
        timing=project.timing,
        enable_byoc=participant.enable_byoc,
        lease_store=project.lease_store if participant.role == "overseer" else None,
        resources=participant.resources,
        docker_image=project.docker_image,
        site_orgs={one.name: one.org for one in project.of("site")} if participant.role == "server" else {},
    )


def _pfx(name: str, identity: Identity, roots: bytes) -> bytes:
    """Return certificate, key and root as one file (PKCS 12), without a password: the key beside it has none either."""
    assert identity.key is not None
    return pkcs12.serialize_key_and_certificates(
        name.encode(),
        load_key(identity.key, "key"),
        load_certificate(identity.cert, "certificate"),
        list(load_roots(roots, "rootCA.pem")),
        serialization.NoEncryption(),
    )


def _unsigned(project: Project, participant: Participant, roots: bytes, identity: Identity) -> dict[str, bytes]:
    """Return every file of ``startup/`` that is the same whenever it is made."""
    role, stem = participant.role, CERT_STEM[participant.role]
    config = kit_to_json(_kit_of(project, participant, Path()), store=project.store if role == "server" else None)
    serial = None if identity.key is not None else serial_of(load_certificate(identity.cert, f"{stem}.crt"))
    retired = {RETIRED_FILE: project.retired_roots} if project.retired_roots else {}
    return {
        CONFIG_FILE[role]: json.dumps(config, indent=2).encode() + b"\n",
        "rootCA.pem": roots,
        **retired,
        f"{stem}.crt": identity.cert,
        **({} if identity.key is None else {f"{stem}.key": identity.key}),
        **{name: text.encode() for name, text in startup_texts(project, participant, missing_key=serial).items()},
    }


def digest_of(project: Project, participant: Participant, roots: bytes, cert: bytes) -> str:
    """Return a digest of what a kit says, whatever its version, the time it was signed, and who has its key.

    Args:
        project: the project.
        participant: whose kit.
        roots: the content of ``rootCA.pem``.
        cert: the participant's certificate, PEM.
    """
    files = _unsigned(project, participant, roots, Identity(cert, b""))
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def startup_files(
    project: Project,
    participant: Participant,
    authority: CertificateAuthority,
    *,
    identity: Identity | None = None,
    version: int = 1,
) -> dict[str, bytes]:
    """Return the content of every file of the participant's ``startup/``, the signed manifest included.

    Args:
        project: the project.
        participant: whose kit.
        authority: signs it.
        identity: its certificate and key; new ones if not given. Without a key the kit is one of an own key.
        version: of the kit; a re-issued one has a higher one.
    """
    if identity is None:
        issued = authority.issue(participant.role, participant.name, participant.org)
        identity = Identity(issued.cert, issued.key)
    files = _unsigned(project, participant, authority.cert_pem, identity)
    if identity.key is not None:
        files[f"{CERT_STEM[participant.role]}.pfx"] = _pfx(participant.name, identity, authority.cert_pem)
    created = iso(SystemClock().utcnow())
    files[SIGNATURE_FILE] = make_manifest(files, authority, version, created=created, own_key=identity.key is None)
    return files


def write_kit(
    project: Project,
    participant: Participant,
    authority: CertificateAuthority,
    folder: Path,
    *,
    identity: Identity | None = None,
    version: int = 1,
) -> Path:
    """Write one participant's kit into ``folder/<name>`` and return that path.

    Keys get mode 0600, scripts 0755, folders 0700. The other arguments are those of :func:`startup_files`.

    Raises:
        WorkspaceExists: the folder is there already.
    """
    files = startup_files(project, participant, authority, identity=identity, version=version)
    return _write_folder(participant, files, folder)


def _write_folder(participant: Participant, files: Mapping[str, bytes], folder: Path) -> Path:
    root = folder / participant.name
    try:
        root.mkdir(mode=0o700)
    except FileExistsError:
        raise WorkspaceExists(f"{root} exists already") from None
    startup, local = root / "startup", root / "local"
    startup.mkdir(mode=0o700)
    local.mkdir(mode=0o700)
    if participant.is_admin:
        (root / "transfer").mkdir(mode=0o700)
    for name, data in files.items():
        _write(startup / name, data)
    for name, text in local_texts(participant.name, participant.role).items():
        _write(local / name, text.encode())
    return root


def _write(path: Path, data: bytes) -> None:
    mode = file_mode(path.name)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask
        file.write(data)


def write_kits(project: Project, authority: CertificateAuthority, folder: Path) -> dict[str, Path]:
    """Write every participant's kit below ``folder``, which exists. Returns name -> kit's folder.

    Raises:
        WorkspaceExists: a kit's folder is there already.
    """
    return {one.name: write_kit(project, one, authority, folder) for one in project.participants}
