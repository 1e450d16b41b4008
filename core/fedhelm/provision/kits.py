"""Write signed start-up kits: one folder for each participant, ``startup/`` signed, ``local/`` its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fedhelm.clock import SystemClock, iso
from fedhelm.config.kit import CERT_STEM, CONFIG_FILE, Kit, kit_to_json
from fedhelm.errors import WorkspaceExists
from fedhelm.provision import templates
from fedhelm.provision.project import Participant, Project
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.signing import SIGNATURE_FILE, make_manifest

__all__ = ["startup_files", "write_kit", "write_kits"]


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
        sites=project.sites,
        timing=project.timing,
        enable_byoc=participant.enable_byoc,
        lease_store=project.lease_store if participant.role == "overseer" else None,
        resources=participant.resources,
        docker_image=project.docker_image,
    )


def startup_files(project: Project, participant: Participant, authority: CertificateAuthority) -> dict[str, bytes]:
    """Return the content of every file of the participant's ``startup/``, the signed manifest included.

    A new certificate and key are issued at each call.
    """
    role = participant.role
    issued = authority.issue(role, participant.name, participant.org)
    store = project.store if role == "server" else None
    config = kit_to_json(_kit_of(project, participant, Path()), store=store)
    files = {
        CONFIG_FILE[role]: json.dumps(config, indent=2).encode() + b"\n",
        "rootCA.pem": authority.cert_pem,
        f"{CERT_STEM[role]}.crt": issued.cert,
        f"{CERT_STEM[role]}.key": issued.key,
        **{name: text.encode() for name, text in templates.startup_texts(project, participant).items()},
    }
    files[SIGNATURE_FILE] = make_manifest(files, authority, created=iso(SystemClock().utcnow()))
    return files


def write_kit(project: Project, participant: Participant, authority: CertificateAuthority, folder: Path) -> Path:
    """Write one participant's kit into ``folder/<name>`` and return that path.

    Keys get mode 0600, scripts 0755, folders 0700.

    Raises:
        WorkspaceExists: the folder is there already.
    """
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
    for name, data in startup_files(project, participant, authority).items():
        _write(startup / name, data)
    for name, text in templates.local_texts(participant).items():
        _write(local / name, text.encode())
    return root


def _write(path: Path, data: bytes) -> None:
    mode = {".key": 0o600, ".sh": 0o755}.get(path.suffix, 0o644)
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
