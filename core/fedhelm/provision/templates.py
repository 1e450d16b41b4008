"""The texts of a kit: scripts, readme, logging, default policy, the sample of ``local/``."""

from __future__ import annotations

from fedhelm.provision.project import Participant, Project

__all__ = ["local_texts", "startup_texts"]


def startup_texts(project: Project, participant: Participant) -> dict[str, str]:
    """Return name -> content of the text files of ``startup/`` that are neither configuration nor certificate."""
    return {"readme.txt": f"Start-up kit of {participant.name} ({participant.role}) in project {project.name}.\n"}


def local_texts(participant: Participant) -> dict[str, str]:
    """Return name -> content of the files of ``local/``: the participant's own, never signed."""
    return {"local.yaml": f"# Settings of {participant.name}.\n"}
