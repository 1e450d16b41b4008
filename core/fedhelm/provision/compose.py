"""The Compose file of a project: all its participants on one machine, each as narrow as ``docker.sh`` starts it."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

import yaml

from fedhelm.process import OPEN_FILES
from fedhelm.provision.container_values import (
    DATA,
    HEALTH_COMMAND,
    HEALTH_TIMES,
    KIT,
    PIDS,
    SHM,
    STOP_SECONDS,
    TMPFS,
    gpus_of,
    host_of,
    needs_host_network,
    store_mount,
)
from fedhelm.provision.launch import COMMANDS
from fedhelm.provision.project import Participant, Project

__all__ = ["compose_file"]

_HEAD = """\
# The whole project {project} on one machine: to try it out, or for a machine that has several participants. Where each
# has a machine of its own, `startup/docker.sh` of its kit is the way. Say where things are, then start:
#
#   export FEDHELM_KITS=$PWD/prod_00     the folder that holds the kits, one folder each
#   export FEDHELM_UID=$(id -u) FEDHELM_GID=$(id -g)     who owns the kits; not root
#   export FEDHELM_STORE=/folder         the shared store{store}
#   export FEDHELM_DATA=/folder          a folder with one folder for each site, which sees it as {data}
#   docker compose -f resources/compose.yaml build     with the wheel of Fedhelm in resources/
#   docker compose -f resources/compose.yaml run --rm --entrypoint python {server} \\
#       -P -m fedhelm.provision.launch found-store {kit}     once: makes the shared store
#   docker compose -f resources/compose.yaml up -d
#   docker compose -f resources/compose.yaml run --rm {console}
"""


class _Dumper(yaml.SafeDumper):
    """Writes every value where it stands: no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Say that nothing is shared."""
        del data
        return True


def _literal(text: str) -> str:
    """Return text in which Compose replaces nothing."""
    return text.replace("$", "$$")


def _bind(source: str, target: str, *, read_only: bool = False, create: bool = False) -> dict[str, Any]:
    volume: dict[str, Any] = {"type": "bind", "source": source, "target": target}
    return volume | {"read_only": read_only, "bind": {"create_host_path": create}}


def _image(project: Project) -> str:
    if project.docker_image is not None:
        return _literal(project.docker_image)
    try:
        return f"fedhelm:{metadata.version('fedhelm')}"
    except metadata.PackageNotFoundError:
        return "fedhelm:latest"


def _common(project: Project, participant: Participant) -> dict[str, Any]:
    kit = "${FEDHELM_KITS:?name the folder that holds the kits}/" + participant.name
    return {
        "image": "${FEDHELM_IMAGE:-" + _image(project) + "}",
        "user": "${FEDHELM_UID:?name the uid that owns the kits}:${FEDHELM_GID:?name the gid that owns the kits}",
        "init": True,
        "read_only": True,
        "tmpfs": [f"{place}:{options}" for place, options in TMPFS.items()],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": PIDS,
        "ulimits": {"nofile": {"soft": OPEN_FILES, "hard": OPEN_FILES}},
        "working_dir": KIT,
        "entrypoint": ["fedhelm"],
        "logging": {"driver": "local"},
        "volumes": [
            _bind(kit, KIT),
            _bind(kit + "/startup", f"{KIT}/startup", read_only=True),
            _bind(kit + "/local", f"{KIT}/local", read_only=True),
        ],
    }


def _network(participant: Participant, *, on_host: bool) -> dict[str, Any]:
    if on_host:
        return {"network_mode": "host"}
    if not participant.ports:
        return {"networks": ["federation"]}
    return {
        "hostname": host_of(participant),
        "networks": {"federation": {"aliases": [host_of(participant)]}},
        "ports": [f"{port}:{port}" for port in participant.ports],
    }


def _gpus(participant: Participant) -> dict[str, Any]:
    gpus = gpus_of(participant)
    if not gpus:
        return {}
    which = {"count": gpus} if isinstance(gpus, int) else {"device_ids": list(gpus)}
    device = {"driver": "nvidia", "capabilities": ["gpu"], **which}
    return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}


def _service(project: Project, participant: Participant, *, on_host: bool) -> dict[str, Any]:
    service = _common(project, participant) | _network(participant, on_host=on_host)
    if participant.is_admin:
        return service | {
            "command": ["console", KIT],
            "profiles": ["console"],
            "stdin_open": True,
            "tty": True,
            "healthcheck": {"disable": True},
        }
    target = store_mount(project)
    if participant.role == "server" and target is not None:
        default = ":-" + _literal(project.store) if project.store.startswith("/") else ":?name the shared store"
        service["volumes"].append(_bind("${FEDHELM_STORE" + default + "}", target))
    if participant.role == "site":
        source = "${FEDHELM_DATA:-./data}/" + participant.name
        service["volumes"].append(_bind(source, DATA, read_only=True, create=True))
        service |= {"shm_size": SHM, **_gpus(participant)}
    return service | {
        "command": [COMMANDS[participant.role], "--kit", KIT],
        "restart": "on-failure",
        "stop_grace_period": f"{STOP_SECONDS}s",
        "healthcheck": {"test": ["CMD", *HEALTH_COMMAND], **HEALTH_TIMES},
    }


def _names(project: Project) -> dict[str, Participant]:
    """Return the services by name: the participant's, and ``console-...`` for people, whose names have an @."""
    found: dict[str, Participant] = {}
    for one in project.participants:
        name = "console-" + re.sub(r"[^a-zA-Z0-9._-]", "-", one.name) if one.is_admin else one.name
        while name in found:
            name += "-2"
        found[name] = one
    return found


def compose_file(project: Project) -> str:
    """Return ``compose.yaml``.

    A network of its own joins the participants under the names that their kits say; where a kit says an address, all of
    them are on the host's network instead.

    Raises:
        BadInput: the resources of a site name GPUs in a form that Compose cannot be told.
    """
    on_host = any(map(needs_host_network, project.participants))
    services = {name: _service(project, one, on_host=on_host) for name, one in _names(project).items()}
    if services:
        next(iter(services.values()))["build"] = {"context": ".", "dockerfile": "Dockerfile"}
    consoles = [name for name, one in _names(project).items() if one.is_admin]
    body: dict[str, Any] = {"name": re.sub(r"[^a-z0-9_-]", "-", project.name), "services": services}
    if not on_host:
        body["networks"] = {"federation": {"driver": "bridge"}}
    head = _HEAD.format(
        project=project.name,
        store=f"; without it {project.store}" if project.store.startswith("/") else "",
        data=DATA,
        kit=KIT,
        server=project.of("server")[0].name,
        console=consoles[0] if consoles else "NAME",
    )
    return head + yaml.dump(body, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
