"""The text of ``docker.sh``: shell that any POSIX ``sh`` reads, made of the parts that a role needs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from fedhelm.provision.container_values import (
    DATA,
    HEALTH_COMMAND,
    HEALTH_TIMES,
    KIT,
    PIDS,
    SHM,
    STOP_SECONDS,
    TMPFS,
    dials_loopback,
    gpus_of,
    host_of,
    needs_host_network,
    peers_of,
    store_mount,
)
from fedhelm.provision.launch import COMMANDS
from fedhelm.provision.project import Participant, Project

__all__ = ["docker_script"]

# The folder is found through links and from any working directory.
_FIND_KIT = """\
set -eu
self=$0
while [ -L "$self" ]; do
    link=$(readlink "$self")
    case $link in
        /*) self=$link ;;
        *) self=$(dirname "$self")/$link ;;
    esac
done
kit=$(CDPATH= cd -- "$(dirname "$self")/.." && pwd -P)

fail() { # code, message, hint, exit status
    printf 'error[%s]: %s (hint: %s)\\n' "$1" "$2" "$3" >&2
    exit "$4"
}

folder() { # one that is to be mounted, and what to do where it is not there
    case $1 in
        *[,\\"]*) fail BAD_INPUT "$1: docker cannot mount a folder with a comma or a quotation mark in its path" \\
            "move it" 2 ;;
        /*) [ -d "$1" ] || fail NOT_FOUND "$1: no such folder" "$2" 1 ;;
        *) fail BAD_INPUT "$1 is not an absolute path" "write it with / at its beginning" 2 ;;
    esac
}
"""

_ARGUMENTS = """\
mode=background
@BEGIN@while [ $# -gt 0 ]; do
    case $1 in
        -d | --detach) mode=background ;;
        --foreground) mode=foreground ;;
        --stop) mode=stop ;;
        --check) mode=check ;;
@FOUND@        -h | --help)
            echo "docker.sh [@USAGE@]: run $name in a container of $image"
            echo "  -d              in the background, as without an argument"
            echo "  --foreground    here"
            echo "  --stop          stop it"
            echo "  --check         only look whether it can work here, as fedhelm check does"
@HELP@            echo "$kit/local/docker.conf may change more: see how-to/deploy-with-docker in the documentation"
            exit 0
            ;;
        *) fail USAGE "docker.sh does not know the argument $1" "docker.sh -h" 2 ;;
    esac
    shift
done
"""

_SETTINGS = """\
settings=$kit/local/docker.conf
keys='@NAMES@'
if [ -f "$settings" ]; then
    number=0
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        value=${line#*=}
        case $line in
            '' | '#'*) ;;
@KEYS@
            *=*) fail BAD_INPUT "$settings:$number: ${line%%=*} is not one of $keys" "remove it" 2 ;;
            *) fail BAD_INPUT "$settings:$number: not of the form KEY=VALUE" "see how-to/deploy-with-docker" 2 ;;
        esac
    done <"$settings"
fi
"""

_ENGINE = """\
command -v docker >/dev/null 2>&1 ||
    fail NOT_FOUND "docker is not installed here" "install Docker Engine, or use @INSTEAD@" 1
said=$(docker version --format '{{.Server.Version}}' 2>&1) ||
    fail UNREACHABLE "docker does not answer: $(printf '%s' "$said" | tail -n 1)" "docker info says more" 3
"""

_IMAGE = """\
docker image inspect --format '{{.Id}}' "$image" >/dev/null 2>&1 ||
    fail NOT_FOUND "the image $image is not on this machine" "docker pull $image, or build it" 1
"""

_CONTAINER = """\
running=$(docker container inspect --format '{{.State.Running}}' "$container" 2>/dev/null) || running=
if [ "$mode" = stop ]; then
    case $running in
        true) docker stop "$container" >/dev/null ;;
        *) echo "$name is not running in a container" ;;
    esac
    [ -z "$running" ] || docker rm --force "$container" >/dev/null 2>&1 || true
    [ "$running" != true ] || echo "$name stopped"
    exit 0
fi
case $mode.$running in
    check.*) ;;
    *.true) fail ALREADY_RUNNING "$name is running already, container $container" "$kit/startup/docker.sh --stop" 1 ;;
    *.) ;;
    *) docker rm "$container" >/dev/null ;;
esac
"""

_OWNER = """\
if [ -z "$user" ]; then
    user=$(ls -dn "$kit/startup" | awk 'NR == 1 { print $3 ":" $4 }')
    case $user in
        0:*) fail REFUSED "$kit belongs to root, and no participant runs as root in a container" \\
            "chown -R it to an ordinary user" 2 ;;
    esac
fi
"""

# Names that the host knows from /etc/hosts alone are unknown in a container's own network.
_HOSTS = """\
if [ "$network" != host ]; then
    [ -r "$hosts" ] || fail NOT_FOUND "$hosts cannot be read" "mend hosts= in $settings" 1
    for peer in $peers; do
        address=$(awk -v name="$peer" '
            { sub(/#.*/, ""); for (i = 2; i <= NF; i++) if ($i == name) { print $1; exit } }' "$hosts")
        case $address in
            '') ;;
            127.* | ::1) set -- --add-host "$peer:host-gateway" "$@" ;;
            *) set -- --add-host "$peer:$address" "$@" ;;
        esac
    done@HOSTNAME@
fi
set -- --network "$network" "$@"
"""

_SITE_FLAGS = """\
set -- --shm-size "$shm" "$@"
if [ -n "$data" ]; then
    folder "$data" "mend data= in $settings"
    set -- --mount "type=bind,source=$data,target=@DATA@,readonly" "$@"
fi
case $gpus in
    '' | none) ;;
    all) set -- --gpus all "$@" ;;
    number:*) set -- --gpus "${gpus#number:}" "$@" ;;
    *) set -- --gpus "\\"device=$gpus\\"" "$@" ;; # the marks are docker's own: without them it takes the first alone
esac
"""

_STORE_FLAGS = """\
folder "$store" "mount the shared store there, or name it in local/docker.conf: store=FOLDER"
set -- --mount "type=bind,source=$store,target=@TARGET@" "$@"
"""

_LIMITS = """\
[ -z "$memory" ] || set -- --memory "$memory" "$@"
[ -z "$cpus" ] || set -- --cpus "$cpus" "$@"
"""

_COMMON = """\
folder "$kit" "unpack the kit again"
set -- \\
    --init \\
    --user "$user" \\
    --read-only \\
@TMPFS@
    --cap-drop ALL \\
    --security-opt no-new-privileges \\
    --pids-limit @PIDS@ \\
    --workdir @KIT@ \\
    --mount "type=bind,source=$kit,target=@KIT@" \\
    --mount "type=bind,source=$kit/startup,target=@KIT@/startup,readonly" \\
    --mount "type=bind,source=$kit/local,target=@KIT@/local,readonly" \\
    "$@"
"""

_FOUND = """\
if [ "$found" = yes ] && [ "$mode" != check ]; then
    docker run --rm --no-healthcheck --entrypoint python "$@" "$image" -P -m fedhelm.provision.launch found-store @KIT@
fi
"""

_RUN = """\
if [ "$mode" = check ]; then
    exec docker run --rm --no-healthcheck --entrypoint fedhelm "$@" "$image" check @KIT@
fi
@PUBLISH@
set -- --name "$container" --entrypoint fedhelm --stop-timeout @STOP@ --log-driver local \\
    --health-cmd '@HEALTH@' \\
    @TIMES@ \\
    "$@"
if [ "$mode" = foreground ]; then
    exec docker run --rm "$@" "$image" @COMMAND@ --kit @KIT@
fi
docker run --detach --restart on-failure "$@" "$image" @COMMAND@ --kit @KIT@ >/dev/null
echo "$name started, container $container, log $kit/log.txt"
"""

_CONSOLE = """\
if [ -t 0 ] && [ -t 1 ]; then
    set -- --tty --env "TERM=${TERM:-dumb}" "$@"
fi
exec docker run --rm --interactive --no-healthcheck --entrypoint fedhelm "$@"
"""

_ALL = ("image", "network", "user", "hosts", "memory", "cpus")
_OF_ROLE = {"site": (*_ALL, "data", "gpus", "shm"), "server": (*_ALL, "store")}


def _filled(text: str, **values: object) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def _defaults(project: Project, participant: Participant) -> dict[str, str]:
    """Return the shell variables that ``local/docker.conf`` may change, with the values they begin with."""
    values = dict.fromkeys(_OF_ROLE.get(participant.role, _ALL), "")
    values |= {"image": project.docker_image or "", "hosts": "/etc/hosts"}
    on_host = needs_host_network(participant) or dials_loopback(project, participant)
    values["network"] = "host" if on_host else "bridge"
    if participant.role == "site":
        gpus = gpus_of(participant)
        values["gpus"] = ",".join(gpus) if isinstance(gpus, tuple) else f"number:{gpus}" if gpus else "none"
        values["shm"] = SHM
    if participant.role == "server" and store_mount(project) is not None:
        values["store"] = project.store
    return values


def _assignments(project: Project, participant: Participant, defaults: dict[str, str]) -> Iterator[str]:
    if not participant.is_admin:
        yield f"name={shlex.quote(participant.name)}"
        yield f"container={shlex.quote(f'fedhelm-{project.name}-{participant.name}')}"
    yield f"peers={shlex.quote(' '.join(peers_of(project, participant)))}"
    for key, value in defaults.items():
        if key == "store" and value and not value.startswith("/"):
            quoted = shlex.quote(value)
            yield f'store=$(CDPATH= cd -- "$kit"/{quoted} 2>/dev/null && pwd -P) || store="$kit"/{quoted}'
        else:
            yield f"{key}={shlex.quote(value)}"


def _hostname(participant: Participant) -> str:
    """Return what makes its own name the container's address: that is where it listens."""
    if not participant.ports or needs_host_network(participant):
        return ""
    return f'\n    set -- --hostname {shlex.quote(host_of(participant))} "$@"'


def _publish(participant: Participant) -> str:
    if not participant.ports:
        return "# Nobody dials this participant: no port is published."
    published = " ".join(f"--publish {port}:{port}" for port in participant.ports)
    return f'[ "$network" = host ] || set -- {published} "$@"'


def _arguments(participant: Participant) -> str:
    begin, found, usage, line = "", "", "-d | --foreground | --stop | --check", ""
    if participant.role == "server":
        begin, found = "found=no\n", "        --found-store) found=yes ;;\n"
        usage += "] [--found-store"
        line = '            echo "  --found-store   the very first start of all: make the shared store first"\n'
    return _filled(_ARGUMENTS, BEGIN=begin, FOUND=found, USAGE=usage, HELP=line)


def _settings(keys: tuple[str, ...]) -> str:
    lines = "\n".join(f"            {key}=*) {key}=$value ;;" for key in keys)
    return _filled(_SETTINGS, KEYS=lines, NAMES=" ".join(keys))


def _health_times() -> str:
    return " ".join(f"--health-{key.replace('_', '-')} {value}" for key, value in HEALTH_TIMES.items())


def _flags(project: Project, participant: Participant) -> Iterator[str]:
    """Yield what puts docker's flags before ``"$@"``."""
    if participant.role == "site":
        yield _filled(_SITE_FLAGS, DATA=DATA)
    target = store_mount(project)
    if participant.role == "server" and target is not None:
        yield _filled(_STORE_FLAGS, TARGET=target)
    yield _LIMITS
    yield _filled(_HOSTS, HOSTNAME=_hostname(participant))
    tmpfs = "\n".join(f"    --tmpfs {place}:{options} \\" for place, options in TMPFS.items())
    yield _filled(_COMMON, TMPFS=tmpfs, PIDS=PIDS, KIT=KIT)


def _run(participant: Participant) -> str:
    return _filled(
        _RUN,
        PUBLISH=_publish(participant),
        STOP=STOP_SECONDS,
        HEALTH=" ".join(HEALTH_COMMAND),
        TIMES=_health_times(),
        COMMAND=COMMANDS[participant.role],
        KIT=KIT,
    )


def _parts(project: Project, participant: Participant) -> Iterator[str]:
    defaults = _defaults(project, participant)
    what = "Opens the admin console of" if participant.is_admin else "Runs"
    more = "" if participant.is_admin else "; docker.sh -h says more"
    yield f"#!/bin/sh\n# {what} {participant.name} in a container{more}."
    yield _FIND_KIT
    yield "\n".join(_assignments(project, participant, defaults)) + "\n"
    if not participant.is_admin:
        yield _arguments(participant)
    yield _filled(_ENGINE, INSTEAD="fl_admin.sh" if participant.is_admin else "start.sh")
    if not participant.is_admin:
        yield _CONTAINER
    yield _settings(tuple(defaults))
    yield _IMAGE
    yield _OWNER
    if participant.is_admin:
        # The console has the arguments, -h included.
        yield f'set -- "$image" console {KIT} "$@"'
    yield from _flags(project, participant)
    if participant.role == "server":
        yield _filled(_FOUND, KIT=KIT)
    yield _CONSOLE if participant.is_admin else _run(participant)


def docker_script(project: Project, participant: Participant) -> str:
    """Return ``docker.sh`` of one kit.

    Raises:
        BadInput: the resources of a site name GPUs in a form that docker cannot be told.
    """
    return "\n".join(_parts(project, participant))
