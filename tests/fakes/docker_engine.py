"""A recording ``docker`` first on a PATH of its own: what a script asks of the engine is written down, nothing runs.

No real ``docker`` can be found from that PATH: it has links to the few tools that the scripts need, and nothing else.
"""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

TOOLS = ("awk", "dirname", "ls", "readlink", "tail")

_DOCKER = """\
#!/bin/sh
# Records each call as one line of NUL-separated words; a line's end within a word cannot be told from the line's end.
for word in "$@"; do printf '%s\\0' "$word"; done >>'{folder}/calls'
printf '\\n' >>'{folder}/calls'
case "$1 $2" in
    'version '*) [ ! -e '{folder}/silent' ] || {{ echo 'Cannot connect to the Docker daemon' >&2; exit 1; }}; echo 28.2.2 ;;
    'container inspect') [ -e '{folder}/container' ] || exit 1; read -r said <'{folder}/container'; echo "$said" ;;
    'image inspect') [ ! -e '{folder}/no-image' ] || {{ echo 'No such image' >&2; exit 1; }}; echo sha256:0 ;;
    'run '*) echo 0123456789abcdef ;;
esac
"""


class Docker:
    """One engine that is only played. ``folder`` has the tools' links, the script and what it recorded."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, tool
            (folder / tool).symlink_to(found)
        self.program = folder / "docker"
        self.program.write_text(_DOCKER.format(folder=folder))
        self.program.chmod(0o755)

    @property
    def path(self) -> str:
        return str(self.folder)

    def silent(self) -> None:
        (self.folder / "silent").touch()

    def without_image(self) -> None:
        (self.folder / "no-image").touch()

    def container(self, running: str) -> None:
        """Say what ``docker container inspect`` answers: ``true``, or ``false`` for one that ended."""
        (self.folder / "container").write_text(running + "\n")

    def replace(self, tool: str, script: str) -> None:
        path = self.folder / tool
        path.unlink()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)

    @property
    def calls(self) -> list[list[str]]:
        record = self.folder / "calls"
        lines = record.read_text().split("\0\n")[:-1] if record.exists() else []
        return [line.split("\0") for line in lines]

    @property
    def runs(self) -> list[Run]:
        return [Run(call[1:]) for call in self.calls if call[0] == "run"]

    @property
    def run(self) -> Run:
        (run,) = self.runs
        return run


class Run:
    """The arguments of one ``docker run``: flags with their values in order, then the image and what it runs."""

    SWITCHES = frozenset(
        {"--init", "--read-only", "--rm", "--detach", "--interactive", "--tty", "--no-healthcheck"},
    )

    def __init__(self, words: list[str]) -> None:
        self.switches: set[str] = set()
        self.flags: dict[str, list[str]] = {}
        rest = list(words)
        while rest and rest[0].startswith("--"):
            word = rest.pop(0)
            if word in self.SWITCHES:
                self.switches.add(word)
            else:
                self.flags.setdefault(word, []).append(rest.pop(0))
        self.image, *self.command = rest

    def one(self, flag: str) -> str:
        (value,) = self.flags[flag]
        return value

    @property
    def mounts(self) -> dict[str, tuple[str, bool]]:
        """Target -> (source, whether it can be written)."""
        found = {}
        for mount in self.flags["--mount"]:
            words = mount.split(",")
            values = dict(word.split("=", 1) for word in words if "=" in word)
            assert values["type"] == "bind", mount
            found[values["target"]] = (values["source"], "readonly" not in words)
        return found

    def __repr__(self) -> str:
        return json.dumps({"switches": sorted(self.switches), **self.flags, "command": [self.image, *self.command]})
