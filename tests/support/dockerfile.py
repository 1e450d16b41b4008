"""Run the build stage of the Dockerfile on this machine: its own commands, with its two folders elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

from fedhelm.provision.image import DOCKERFILE

TREE = Path(__file__).parents[2]


def instructions(text: str = DOCKERFILE) -> list[tuple[str, str]]:
    """Return the instructions as (word, rest): comments gone, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, rest in (line.split(maxsplit=1) for line in joined.splitlines())]


def build_commands() -> list[str]:
    """Return what the first stage runs."""
    found = instructions()
    second = [index for index, (word, _) in enumerate(found) if word == "FROM"][1]
    return [rest for word, rest in found[:second] if word == "RUN"]


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this tree; with hatchling at hand nothing is fetched for that."""
    isolation = ["--no-build-isolation"] if util.find_spec("hatchling") else []
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", *isolation]
    subprocess.run([*command, "--wheel-dir", folder, TREE], check=True, timeout=120)
    (wheel,) = folder.glob("fedhelm-*.whl")
    return wheel


def run_command(command: str, build: Path, target: Path) -> None:
    """Run one command of the first stage: /build is ``build``, /opt/fedhelm is ``target``, Python is this one."""
    tools = build / ".tools"
    if not tools.exists():
        tools.mkdir()
        for name, words in {"python": "", "pip": " -m pip"}.items():
            (tools / name).write_text(f'#!/bin/sh\nexec "{sys._base_executable}"{words} "$@"\n')
            (tools / name).chmod(0o755)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL"))}
    env |= {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    here = command.replace("/opt/fedhelm", str(target)).replace("/build/", f"{build}/")
    subprocess.run(["sh", "-euc", here], env=env, cwd=build, check=True, timeout=900)
