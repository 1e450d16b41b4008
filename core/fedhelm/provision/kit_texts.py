"""The texts of a kit that people read: readme, default policy, levels of the log, the sample of ``local/``."""

from __future__ import annotations

from fedhelm.config.kit import CERT_STEM
from fedhelm.config.log_levels import LOG_CONFIG
from fedhelm.privacy.files import PRIVACY_FILE
from fedhelm.privacy.policy import PRIVACY_SAMPLE
from fedhelm.provision.project import Participant, Project
from fedhelm.security.authorization import DEFAULT_AUTHORIZATION
from fedhelm.security.retired import RETIRED_FILE

__all__ = ["local_texts", "log_config", "policy", "readme"]

_README = """\
{title}
{line}

Every file here is named in signature.json, which the project's root signed. A changed, missing or additional file is
refused at start by its name. What you want to set yourself belongs into ../local.

{files}
{key}"""

_FILES = {
    "start.sh": "starts {name} in the background; it writes to ../log.txt",
    "sub_start.sh": "runs {name} in the foreground, for systemd or a container",
    "stop_fl.sh": "stops it",
    "docker.sh": "runs it in a container; -h explains",
    "fl_admin.sh": "opens the admin console (-h explains); jobs and results are in ../transfer",
    "authorization.json": "who may do what; ../local/authorization.json may only tighten it",
    PRIVACY_FILE: "what this site does to results before they leave; ../local/privacy.json adds to it",
    LOG_CONFIG: "how much the log says; ../local/log.config goes above it",
    "rootCA.pem": "the project's root certificate: it says who belongs to the project",
    RETIRED_FILE: "former root certificates, for jobs and models that were signed before, and for nothing else",
}

_WITH_KEY = """\
{stem}.key is this participant's identity: keep it readable by its owner alone. {stem}.pfx holds the same key, with its
certificate, for programs that want one file.
"""

_WITHOUT_KEY = """\
THE KEY IS NOT IN THIS KIT. It is the key that belongs to {stem}.crt (serial {serial}): the one that you made yourself,
or the file {stem}.key of your former kit. Put it here as {stem}.key and keep it readable by its owner alone:

    chmod 600 {stem}.key
"""


def readme(project: Project, participant: Participant, names: list[str], *, missing_key: str | None = None) -> str:
    """Return ``readme.txt``.

    Args:
        project: the project.
        participant: whose kit.
        names: the other files of ``startup/``.
        missing_key: the serial of the certificate whose key the kit does not have; None if it has it.
    """
    role = participant.role.replace("_", " ")
    title = f"Start-up kit of {participant.name}, {role} of the project {project.name}"
    width = max(map(len, _FILES))
    stem = CERT_STEM[participant.role]
    key = _WITH_KEY.format(stem=stem) if missing_key is None else _WITHOUT_KEY.format(stem=stem, serial=missing_key)
    files = (
        f"{name:{width}}  {what.format(name=participant.name)}\n" for name, what in _FILES.items() if name in names
    )
    return _README.format(title=title, line="=" * len(title), files="".join(files), key=key)


_LOG_CONFIG = """\
# How much {name} writes into its log: DEBUG, INFO, WARNING or ERROR for each logger.
# This file is signed. Your own is ../local/log.config, in this same form; what it says goes above this.
[levels]
fedhelm = INFO
# {loggers}
"""

_LOGGERS = {
    "overseer": "fedhelm.overseer, fedhelm.wire",
    "server": "fedhelm.server, fedhelm.supervisor, fedhelm.runner, fedhelm.wire",
    "site": "fedhelm.client, fedhelm.wire",
}


def log_config(participant: Participant) -> str:
    """Return ``log.config``; see :mod:`fedhelm.config.log_levels` for its form."""
    loggers = _LOGGERS.get(participant.role, "fedhelm.wire")
    return _LOG_CONFIG.format(name=participant.name, loggers=f"more closely: {loggers}")


def policy(project: Project) -> str:
    """Return ``authorization.json``: what the project file says, or the default."""
    return DEFAULT_AUTHORIZATION if project.authorization is None else project.authorization


_LOCAL = """\
# Settings of {name} itself: nothing here is signed, and this folder survives a new kit.
# This version reads no key of this file yet.
"""


def local_texts(name: str, role: str) -> dict[str, str]:
    """Return name -> content of the files that a participant's ``local/`` begins with: its own, never signed."""
    sample = {f"{PRIVACY_FILE}.sample": PRIVACY_SAMPLE} if role == "site" else {}
    return {"local.yaml": _LOCAL.format(name=name), **sample}
