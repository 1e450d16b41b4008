"""Give a prepared workspace one more server, whatever of it runs: nobody else needs a new kit for that."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fedhelm.config.kit import SQLITE, Kit
from fedhelm.errors import FedhelmError, KitError
from fedhelm.process import atomic_write
from fedhelm.provision.kits import write_kit
from fedhelm.provision.project import Participant, Project
from fedhelm.security.pki import CertificateAuthority
from fedhelm_lab.workspace import MARKER, Workspace, check_ports

__all__ = ["add_server", "authority_of", "project_of"]

_NUMBERED = re.compile(r"server([1-9][0-9]{0,4})")
_APART = 1000


def add_server(workspace: Workspace, port: int | None = None) -> Kit:
    """Issue the kit of the next server, ``server3`` say, with the workspace's root key; it is not started.

    Args:
        workspace: of `fedhelm poc prepare`.
        port: its fed_learn port, the next one is its admin port; default: 1000 above the highest.

    Raises:
        PortTaken: a port is in use.
        KitError: the root key is not there, or a kit cannot be read.
    """
    kits = workspace.kits
    servers = [kit for kit in kits if kit.role == "server"]
    numbers = [int(found[1]) for kit in servers if (found := _NUMBERED.fullmatch(kit.name))]
    if port is None:
        port = max(kit.own_server.fed_learn_port for kit in servers) + _APART
    host = servers[0].own_server.host
    new = Participant(f"server{max(numbers, default=0) + 1}", "server", servers[0].org, host, (port, port + 1))
    project = project_of(kits, new)
    check_ports([new])
    root = write_kit(project, new, authority_of(workspace.root / "state", project.name), workspace.root)
    _mark(workspace.root / MARKER, new)
    return Workspace.open(workspace.root).kit(root.name)


def project_of(kits: tuple[Kit, ...], new: Participant) -> Project:
    """Return the project as ``kits`` tell it, with ``new`` as one more server."""
    first = kits[0]
    made = [Participant(one.name, "overseer", first.org, one.host, (one.port,)) for one in first.overseers]
    made += [
        Participant(
            kit.name, "server", kit.org, kit.own_server.host, (kit.own_server.fed_learn_port, kit.own_server.admin_port)
        )
        for kit in kits
        if kit.role == "server"
    ]
    sites = next(kit.sites for kit in kits if kit.role == "server")
    made += [new, *(Participant(name, "site", first.org) for name in sites)]
    places = (kit.lease_store for kit in kits if kit.role == "overseer" and kit.lease_store)
    return Project(
        first.project,
        tuple(made),
        "../store",
        timing=first.timing,
        cluster=first.cluster,
        lease_store=next(places, SQLITE),
    )


def authority_of(state: Path, project: str) -> CertificateAuthority:
    """Return the root whose certificate and key are in ``state``.

    Raises:
        KitError: they are not.
    """
    try:
        cert, key = (state / "rootCA.pem").read_bytes(), (state / "rootCA.key").read_bytes()
    except OSError as error:
        raise KitError(f"{error.filename}: {error.strerror}", hint="the project's root key is needed") from error
    return CertificateAuthority.load(project, cert, key)


def _mark(path: Path, new: Participant) -> None:
    try:
        body = json.loads(path.read_bytes())
        body["participants"].append({"name": new.name, "role": new.role})
        atomic_write(path, json.dumps(body, indent=2).encode() + b"\n", mode=0o644)
    except OSError as error:
        raise FedhelmError(f"{path}: {error.strerror}") from error
