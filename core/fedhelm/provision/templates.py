"""The texts of a kit: scripts, readme, default policy, the sample of ``local/``."""

from __future__ import annotations

import json
import shlex

from fedhelm.provision.project import Participant, Project
from fedhelm.security.policy import PERMISSIONS

__all__ = ["local_texts", "startup_texts"]

# The folder is found through links and from any working directory, which stays the caller's. -P keeps modules in the
# caller's working directory from being imported.
_HEAD = """\
#!/bin/sh
# {what}
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

python=${{FEDHELM_PYTHON:-}}
recorded={python}
if [ -z "$python" ] && [ -x "$recorded" ]; then
    python=$recorded
fi
if [ -z "$python" ] && command -v fedhelm >/dev/null 2>&1; then
    python=$(sed -n '1s/^#! *//p' "$(command -v fedhelm)")
fi
if [ -z "$python" ]; then
    echo "error[BAD_KIT]: fedhelm is not installed here (hint: set FEDHELM_PYTHON to a Python that has it)" >&2
    exit 4
fi
exec "$python" -P -m {command} "$@"
"""


def _scripts(project: Project, participant: Participant) -> dict[str, str]:
    def script(what: str, command: str) -> str:
        return _HEAD.format(what=what, python=shlex.quote(project.interpreter), command=command)

    name = participant.name
    if participant.is_admin:
        return {"fl_admin.sh": script(f"The admin console of {name}.", 'fedhelm.cli console "$kit"')}
    launch = "fedhelm.provision.launch"
    return {
        "start.sh": script(f"Starts {name} in the background; --foreground stays.", f'{launch} start "$kit"'),
        "stop_fl.sh": script(f"Stops {name}.", f'{launch} stop "$kit"'),
    }


_README = """\
Start-up kit of {name}, {role} of the project {project}
{line}

Every file here is named in signature.json, which the project's root signed. A changed, missing or additional file is
refused at start by its name. What you want to set yourself belongs into ../local.

{scripts}
The key (*.key) is this participant's identity: keep it readable by its owner alone.
"""

_SCRIPT_LINES = {
    "start.sh": "start.sh       starts {name} in the background; it writes to ../log.txt (--foreground stays)\n",
    "stop_fl.sh": "stop_fl.sh     stops it\n",
    "fl_admin.sh": "fl_admin.sh    opens the admin console (-h explains); jobs and results are in ../transfer\n",
}


def _readme(project: Project, participant: Participant, scripts: list[str]) -> str:
    role = participant.role.replace("_", " ")
    title = f"Start-up kit of {participant.name}, {role} of the project {project.name}"
    return _README.format(
        name=participant.name,
        role=role,
        project=project.name,
        line="=" * len(title),
        scripts="".join(_SCRIPT_LINES[name].format(name=participant.name) for name in scripts),
    )


def _authorization() -> str:
    """Return the default policy as a file: what the program enforces, for people to read."""
    body = {
        "version": 1,
        "about": "permission -> the roles that have it; the role is part of the certificate",
        "permissions": {permission: sorted(roles) for permission, roles in PERMISSIONS.items()},
    }
    return json.dumps(body, indent=2) + "\n"


def startup_texts(project: Project, participant: Participant) -> dict[str, str]:
    """Return name -> content of the text files of ``startup/`` that are neither configuration nor certificate."""
    texts = _scripts(project, participant)
    texts["readme.txt"] = _readme(project, participant, list(texts))
    if participant.role in ("server", "site"):
        texts["authorization.json"] = _authorization()
    return texts


_LOCAL = """\
# Settings of {name} itself: nothing here is signed, and this folder survives a new kit.
# This version reads no key of this file yet{later}.
"""


def local_texts(participant: Participant) -> dict[str, str]:
    """Return name -> content of the files of ``local/``: the participant's own, never signed."""
    later = "; a site's data paths and resources will be named here" if participant.role == "site" else ""
    return {"local.yaml": _LOCAL.format(name=participant.name, later=later)}
