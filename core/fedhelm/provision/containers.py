"""What a project needs to run in containers: each kit's ``docker.sh``, and the files that make image and services.

``docker.sh`` plays the part of ``start.sh`` where Docker is the way to start: it finds its kit through links and from
any working directory, reads what the participant sets itself in ``local/docker.conf``, and refuses with one line what
cannot work. The container is the narrowest that a participant runs in: the user who owns the kit, a root file system
that is read-only, no capabilities, no new privileges; of the kit ``startup/`` and ``local/`` cannot be written.
"""

from __future__ import annotations

from fedhelm.config.kit import SQLITE
from fedhelm.provision.compose import compose_file
from fedhelm.provision.docker_script import docker_script
from fedhelm.provision.image import image_files
from fedhelm.provision.project import Participant, Project
from fedhelm.provision.units import unit_files

__all__ = ["container_files", "project_files"]


def container_files(project: Project, participant: Participant) -> dict[str, str]:
    """Return name -> text of what ``startup/`` gets for containers: ``docker.sh`` where the project names an image.

    Raises:
        BadInput: the resources of a site name GPUs in a form that no container can be told.
    """
    if project.docker_image is None:
        return {}
    return {"docker.sh": docker_script(project, participant)}


def project_files(project: Project) -> dict[str, str]:
    """Return name -> text of what ``resources/`` gets: what the image is built from, the Compose file, systemd's units.

    All are files of that one folder, and none holds a secret.

    Raises:
        BadInput: as :func:`container_files`.
        NotFound: this Fedhelm is not installed, so the versions of what it needs are not known.
    """
    extras = () if project.lease_store == SQLITE else ("postgres",)
    return {**image_files(extras), "compose.yaml": compose_file(project), **unit_files(project)}
