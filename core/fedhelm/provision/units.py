"""systemd's units: one template for each role, ``fedhelm-server@server1`` runs the kit ``/var/lib/fedhelm/server1``."""

from __future__ import annotations

from fedhelm.process import OPEN_FILES
from fedhelm.provision.container_values import STOP_SECONDS, store_mount
from fedhelm.provision.launch import COMMANDS
from fedhelm.provision.project import Project

__all__ = ["KITS", "PROGRAM", "unit_files"]

KITS = "/var/lib/fedhelm"
"""The folder of the kits, one folder each, which belong to the user ``fedhelm``."""

PROGRAM = "/opt/fedhelm/bin/fedhelm"
"""Where the units look for the command: a virtual environment of its own."""

_UNIT = """\
# {role} %i of the project {project}. The kit is {kits}/%i and belongs to the user fedhelm:
#   systemctl enable --now fedhelm-{role}@NAME
# What is to be otherwise on this machine belongs into a drop-in: systemctl edit fedhelm-{role}@NAME
[Unit]
Description=Fedhelm {role} %i of {project}
Wants=network-online.target
After=network-online.target time-sync.target
AssertPathIsDirectory={kits}/%i/startup
{mounts}StartLimitIntervalSec=5min
StartLimitBurst=10

[Service]
Type=exec
User=fedhelm
Group=fedhelm
UMask=0077
WorkingDirectory={kits}/%i
ExecStart={program} {command} --kit {kits}/%i
Environment=PYTHONUNBUFFERED=1
# An end that was asked for is none to mend, and neither is a wrong kit or setting (2, 4): a person must.
Restart=on-failure
RestartSec=2s
RestartPreventExitStatus=2 4
# The participant ends its own processes; what is left after that is killed.
KillMode=mixed
TimeoutStopSec={stop}s
# A connection is an open file, and the store needs some too.
LimitNOFILE={open_files}

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ReadWritePaths={kits}/%i{store}
ReadOnlyPaths={kits}/%i/startup {kits}/%i/local
ProtectHome=yes
PrivateTmp=yes
{devices}ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service landlock_create_ruleset landlock_add_rule landlock_restrict_self
SystemCallErrorNumber=EPERM
KeyringMode=private

[Install]
WantedBy=multi-user.target
"""

_DEVICES = {"site": "# No PrivateDevices: jobs may need the GPUs.\n"}


def unit_files(project: Project) -> dict[str, str]:
    """Return name -> text of the units of this project: ``fedhelm-overseer@.service`` and so on."""
    store = store_mount(project, f"{KITS}/NAME")
    files = {}
    for role, command in COMMANDS.items():
        written = _quoted(store) if store is not None and role == "server" else None
        files[f"fedhelm-{role}@.service"] = _UNIT.format(
            role=role,
            project=project.name,
            kits=KITS,
            program=PROGRAM,
            command=command,
            stop=STOP_SECONDS,
            open_files=OPEN_FILES,
            mounts=f"RequiresMountsFor={written}\n" if written else "",
            store=f" {written}" if written else "",
            devices=_DEVICES.get(role, "PrivateDevices=yes\n"),
        )
    return files


def _quoted(path: str) -> str:
    """Return a path as a unit file says it."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if escaped != path or " " in path else path
