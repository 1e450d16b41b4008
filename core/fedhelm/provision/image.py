"""The container image: its Dockerfile, the exact versions that go into it, and what its build may read.

``python -m fedhelm.provision.image FOLDER`` writes them where no project does. The wheel of Fedhelm is laid beside
them, then ``docker build -t NAME FOLDER`` makes the image.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable
from importlib import metadata
from pathlib import Path

from fedhelm.errors import NotFound
from fedhelm.output import CommandParser, emit, guarded
from fedhelm.provision.container_values import HEALTH_COMMAND, HEALTH_TIMES, KIT

__all__ = [
    "DOCKERFILE",
    "DOCKERIGNORE",
    "canonical",
    "image_files",
    "installed_closure",
    "main",
    "needs",
    "pinned_requirements",
]

_HEALTH = ", ".join(f'"{word}"' for word in HEALTH_COMMAND)
_TIMES = " ".join(f"--{key.replace('_', '-')}={value}" for key, value in HEALTH_TIMES.items())

DOCKERFILE = f"""\
# The image of every participant. Its folder has requirements.txt and the wheel of Fedhelm beside this file:
#   docker build -t NAME .
# For builds that can be repeated, name the base by its digest: --build-arg BASE=python@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${{BASE}} AS build
RUN python -m venv --without-pip /opt/fedhelm
COPY requirements.txt fedhelm-*.whl /build/
# Wheels alone: nothing is compiled, and nothing that a package brings runs while the image is made.
RUN pip --python /opt/fedhelm/bin/python install --no-cache-dir --only-binary :all: -r /build/requirements.txt
RUN pip --python /opt/fedhelm/bin/python install --no-cache-dir --no-deps --no-index /build/fedhelm-*.whl
RUN pip --python /opt/fedhelm/bin/python check
RUN /opt/fedhelm/bin/fedhelm --version

FROM ${{BASE}}
RUN groupadd --gid 10001 fedhelm \\
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin fedhelm \\
    && find / -xdev -type f -perm /6000 -exec chmod a-s {{}} +
COPY --from=build /opt/fedhelm /opt/fedhelm
# The user who owns a kit has no entry in /etc/passwd here: some libraries ask for a name and a home.
ENV PATH=/opt/fedhelm/bin:$PATH HOME=/tmp USER=fedhelm LOGNAME=fedhelm \\
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR {KIT}
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK {_TIMES} CMD [{_HEALTH}]
ENTRYPOINT ["fedhelm"]
CMD ["--help"]
"""

DOCKERIGNORE = "*\n!requirements.txt\n!fedhelm-*.whl\n"

_REQUIREMENTS_HEAD = """\
# The versions with which Fedhelm {version} ran where this file was made. Another way to the same environment:
#   python -m venv VENV && VENV/bin/pip install -r requirements.txt
#   VENV/bin/pip install --no-deps fedhelm-{version}-*.whl
# It has no hashes: pip believes the index that it asks. Where that is not enough, name an index of your own, or add
# hashes: pip-compile --generate-hashes, then pip install --require-hashes.
# What the scripts of your jobs import belongs below: torch==2.13.0, for example.
"""

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[([^\]]*)\])?")
_OF_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


def canonical(name: str) -> str:
    """Return the one form of a distribution's name: lower case, with dashes."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(requirements: Iterable[str], extras: Collection[str] = ()) -> dict[str, frozenset[str]]:
    """Return what requirements as ``importlib.metadata`` has them ask for: canonical name -> extras asked of it.

    Args:
        requirements: ``psycopg[binary]>=3.2; extra == "postgres"``, for example. Markers but ``extra`` count as true.
        extras: whose requirements count too.
    """
    found: dict[str, frozenset[str]] = {}
    for text in requirements:
        asked = _OF_EXTRA.search(text)
        match = _REQUIREMENT.match(text)
        if match and (asked is None or canonical(asked[1]) in extras):
            wanted = frozenset(canonical(one) for one in (match[2] or "").split(",") if one.strip())
            name = canonical(match[1])
            found[name] = found.get(name, frozenset()) | wanted
    return found


def installed_closure(wanted: dict[str, frozenset[str]]) -> dict[str, str]:
    """Return name -> installed version of all that ``wanted`` needs, itself included, by name.

    What is not installed although something names it is for another platform, and left out.
    """
    waiting = list(wanted.items())
    seen: set[tuple[str, frozenset[str]]] = set()
    versions: dict[str, str] = {}
    while waiting:
        name, extras = one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        waiting += needs(metadata.requires(name) or (), extras).items()
    return dict(sorted(versions.items()))


def pinned_requirements(extras: Collection[str] = ()) -> str:
    """Return a requirements file of all that Fedhelm needs, at the versions that are installed here.

    Args:
        extras: of Fedhelm, ``postgres`` for example.

    Raises:
        NotFound: Fedhelm itself is not installed: it runs from its source.
    """
    try:
        version = metadata.version("fedhelm")
        wanted = needs(metadata.requires("fedhelm") or (), extras)
    except metadata.PackageNotFoundError:
        hint = "install it, `pip install -e .` in its source for example"
        raise NotFound("fedhelm is not installed, so what it needs is not known", hint=hint) from None
    lines = (f"{name}=={pin}\n" for name, pin in installed_closure(wanted).items())
    return _REQUIREMENTS_HEAD.format(version=version) + "".join(lines)


def image_files(extras: Collection[str] = ()) -> dict[str, str]:
    """Return name -> text of the files that ``docker build`` needs, but for the wheel."""
    return {
        "Dockerfile": DOCKERFILE,
        ".dockerignore": DOCKERIGNORE,
        "requirements.txt": pinned_requirements(extras),
    }


def main(argv: list[str]) -> int:
    """Write the files into a folder; return the exit status."""
    parser = CommandParser(prog="fedhelm.provision.image", description="Write what the image is built from.")
    parser.add_argument("folder", type=Path, help="where Dockerfile and requirements.txt go; it exists")

    def body() -> int:
        folder: Path = parser.parse_args(argv).folder
        if not folder.is_dir():
            raise NotFound(f"{folder}: no such folder")
        for name, text in image_files(("postgres",)).items():
            (folder / name).write_text(text)
        return emit(None, human=f"{folder}: lay the wheel of Fedhelm there, then `docker build -t NAME {folder}`")

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
