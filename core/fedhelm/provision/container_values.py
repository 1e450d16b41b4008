"""What a container of a participant looks like, whoever starts it: ``docker.sh`` or the Compose file."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Mapping
from types import MappingProxyType

from fedhelm.errors import BadInput
from fedhelm.provision.project import Participant, Project

__all__ = [
    "DATA",
    "HEALTH_COMMAND",
    "HEALTH_TIMES",
    "KIT",
    "PIDS",
    "SHM",
    "STOP_SECONDS",
    "TMPFS",
    "dials_loopback",
    "gpus_of",
    "host_of",
    "is_address",
    "needs_host_network",
    "peers_of",
    "store_mount",
]

KIT = "/kit"
"""Where a container sees its kit."""

DATA = "/data"
"""Where a site's container sees the folder with its data, read-only."""

STOP_SECONDS = 30
"""From SIGTERM to SIGKILL: longer than any participant and its children take (see :mod:`fedhelm.provision.stop`)."""

TMPFS: Mapping[str, str] = MappingProxyType(
    {
        "/tmp": "rw,noexec,nosuid,nodev,size=256m,mode=1777",  # noqa: S108 - the container's own
        "/run": "rw,noexec,nosuid,nodev,size=16m,mode=1777",
    }
)
"""The only places outside the kit that can be written, and they are in memory."""

HEALTH_COMMAND = ("python", "-P", "-m", "fedhelm.provision.health", KIT)
"""Asks the participant itself; exit status 0 or 1."""

HEALTH_TIMES: Mapping[str, str | int] = MappingProxyType(
    {"interval": "10s", "timeout": "5s", "retries": 3, "start_period": "60s"}
)

PIDS = 4096
"""Processes and threads of one container; scripts of jobs start many threads."""

SHM = "1g"
"""Shared memory of a site: loaders of training data use it."""

_GPU = re.compile(r"[0-9]{1,4}|(GPU|MIG)-[A-Za-z0-9./-]{1,100}")


def is_address(host: str) -> bool:
    """Tell whether ``host`` is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def host_of(participant: Participant) -> str:
    """Return what others dial."""
    return participant.host or participant.name


def needs_host_network(participant: Participant) -> bool:
    """Tell whether it listens at an address: only the host's own network has it."""
    return bool(participant.ports) and is_address(host_of(participant))


def dials_loopback(project: Project, participant: Participant) -> bool:
    """Tell whether it dials somebody at an address that means the host itself, and in a container the container."""
    dialled = (one for role in ("overseer", "server") for one in project.of(role) if one.name != participant.name)
    return any(is_address(host_of(one)) and ipaddress.ip_address(host_of(one)).is_loopback for one in dialled)


def peers_of(project: Project, participant: Participant) -> list[str]:
    """Return the names that this participant has to resolve, its own and addresses left out."""
    dialled = (*project.of("overseer"), *project.of("server"))
    hosts = dict.fromkeys(host_of(one) for one in dialled if one.name != participant.name)
    return [host for host in hosts if not is_address(host)]


def gpus_of(participant: Participant) -> tuple[str, ...] | int:
    """Return the GPUs that a site gives to jobs: their numbers or ids, or only how many; 0 for none.

    Raises:
        BadInput: ``gpu`` of its resources is neither.
    """
    value = participant.resources.get("gpu", 0)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    ids = tuple(map(str, value)) if isinstance(value, list | tuple) else ("",)
    if not all(map(_GPU.fullmatch, ids)):
        raise BadInput(
            f"{participant.name}: gpu {value!r} is neither a list of GPUs nor a number of them",
            hint="gpu: [0, 1]",
        )
    return ids or 0


def store_mount(project: Project, folder: str = KIT) -> str | None:
    """Return where a server of the kit in ``folder`` looks for the shared store, if that is outside its kit.

    None for one that is no directory (a URL) and for one inside the kit, which needs no mount of its own.
    """
    if "://" in project.store:
        return None
    place = posixpath.normpath(posixpath.join(folder, project.store))
    return None if place.startswith(folder + "/") else place
