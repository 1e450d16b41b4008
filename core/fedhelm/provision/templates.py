"""The scripts of a kit, and which texts ``startup/`` has for whom."""

from __future__ import annotations

import shlex

from fedhelm.config.log_levels import LOG_CONFIG
from fedhelm.privacy.files import PRIVACY_FILE
from fedhelm.provision.containers import container_files
from fedhelm.provision.kit_texts import log_config, policy, readme
from fedhelm.provision.project import Participant, Project
from fedhelm.security.retired import RETIRED_FILE

__all__ = ["startup_texts"]

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
        "sub_start.sh": script(f"Runs {name} in the foreground.", f'{launch} start "$kit" --foreground'),
        "stop_fl.sh": script(f"Stops {name}.", f'{launch} stop "$kit"'),
    }


def startup_texts(project: Project, participant: Participant, *, missing_key: str | None = None) -> dict[str, str]:
    """Return name -> content of the text files of ``startup/`` that are neither configuration nor certificate.

    Args:
        project: the project.
        participant: whose kit.
        missing_key: the serial of the certificate whose key the kit does not have; None if it has it.

    Raises:
        BadInput: a value that no container can be told.
    """
    texts = _scripts(project, participant) | container_files(project, participant)
    texts[LOG_CONFIG] = log_config(participant)
    if participant.role in ("overseer", "server", "site"):
        texts["authorization.json"] = policy(project)
    if participant.role == "site" and project.privacy is not None:
        texts[PRIVACY_FILE] = project.privacy
    roots = ["rootCA.pem", RETIRED_FILE] if project.retired_roots else ["rootCA.pem"]
    texts["readme.txt"] = readme(project, participant, [*texts, *roots], missing_key=missing_key)
    return texts
