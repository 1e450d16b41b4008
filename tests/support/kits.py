"""Kits for tests: a whole project's, made in a temporary folder in a few hundredths of a second."""

from __future__ import annotations

import dataclasses

from fedhelm.config.timing import PROFILES
from fedhelm.provision.kits import write_kits
from fedhelm.provision.project import Participant, Project
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.signing import SIGNATURE_FILE, make_manifest

ADMIN = "admin@nvidia.com"


def make_project(servers=1, sites=1, base_port=18443, *, timing="fast", name="poc", store="../store", admins=(ADMIN,)):
    """Overseer P, server k P+2k-1 and P+2k, on 127.0.0.1."""
    return Project(
        name=name,
        participants=(
            Participant("overseer", "overseer", "nvidia", "127.0.0.1", (base_port,)),
            *(
                Participant(f"server{k}", "server", "nvidia", "127.0.0.1", (base_port + 2 * k - 1, base_port + 2 * k))
                for k in range(1, servers + 1)
            ),
            *(Participant(f"site-{k}", "site", "nvidia", enable_byoc=True) for k in range(1, sites + 1)),
            *(Participant(admin, "project_admin", "nvidia") for admin in admins),
        ),
        timing=PROFILES[timing],
        store=store,
    )


def make_kits(tmp_path, servers=1, sites=1, base_port=18443, *, authority=None, cluster=None, **options):
    """Write kits below ``tmp_path`` and return name -> Kit. The store's folder is ``tmp_path/store``, not made.

    ``authority`` and ``cluster`` are those of kits made before, for more of the same project.
    """
    project = make_project(servers, sites, base_port, **options)
    project = project if cluster is None else dataclasses.replace(project, cluster=cluster)
    authority = authority or CertificateAuthority.create(project.name)
    return {name: open_kit(root) for name, root in write_kits(project, authority, tmp_path).items()}


def newer_kit(kit, authority, target, version, *, trusting=None, signer=None):
    """Write the ``startup/`` of a newer kit of the same participant, with another key and certificate, into ``target``.

    ``authority`` issues the certificate, ``signer`` signs the manifest, ``trusting`` is the roots to trust; both are
    ``authority`` where they are not given. Returns the new certificate's serial.
    """
    issued = authority.issue(kit.role, kit.name, kit.org)
    files = {path.name: path.read_bytes() for path in kit.startup.iterdir() if path.name != SIGNATURE_FILE}
    files |= {kit.cert.name: issued.cert, kit.key.name: issued.key, kit.ca.name: (trusting or authority).cert_pem}
    (target / "startup").mkdir(parents=True)
    for name, data in {**files, SIGNATURE_FILE: make_manifest(files, signer or authority, version)}.items():
        (target / "startup" / name).write_bytes(data)
    return issued.serial
