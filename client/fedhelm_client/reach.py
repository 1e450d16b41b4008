"""What a job's script may reach: nothing of any kit, project or key that lies near its site's own kit. Paths only.

The **place** is the folder in which the kit lies, or, where the kit lies in a project's folder as ``fedhelm provision``
makes it, the folder in which that lies. All of the place is closed, and what is harmless in it is given back. So what
comes into it later stays closed too: a newer kit's zip, another participant's kit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedhelm.config.kit import Kit
from fedhelm_client.folders import RUNTIME_BASE, RUNTIME_PREFIX, JobFolder, code_roots, later_code
from fedhelm_client.landlock import allow_list

__all__ = ["Reach", "protected_paths", "reach_of"]

_KEYS: Final = (".key", ".pfx", ".pass")
"""Ends of names: a private key, what opens one."""

_KIT: Final = ".zip"
"""End of the name of a kit that is handed over. In other folders, a zip is taken for data."""

_DRAFT: Final = ".kit."
"""How the name of a kit begins that is being unpacked."""

_SIGNS: Final = (
    "startup",  # a kit
    ".startup.new",  # one whose installation was broken off
    "state/project.json",  # a provisioned project
    "state/rootCA.key",  # a workspace of `fedhelm poc`
    "rootCA.key",
    ".fedhelm-workspace.json",
    "backup.json",  # a backup: kits and the root key
)
"""What a folder with private keys in it has."""


@dataclass(frozen=True)
class Reach:
    """What a job process closes, and what it keeps of that; see :func:`fedhelm_client.landlock.restrict`.

    Attributes:
        protect: files and folders that are closed.
        read: what may be read in them.
        write: what may be read and written in them.
    """

    protect: tuple[Path, ...]
    read: tuple[Path, ...]
    write: tuple[Path, ...]


def reach_of(kit: Kit, folder: JobFolder, door: Path) -> Reach:
    """Return what the script of a job reaches; looks into the folders near the kit.

    Args:
        kit: the site's.
        folder: the job's.
        door: the folder of the job's socket, the only one of those that its script reaches.
    """
    code = code_roots()
    protected = [*protected_paths(kit), *later_code()]
    write, read = [folder.work, folder.results], [folder.bundle, folder.models, door, *code]
    for path in _given_back(_place(kit), [*protected, *code]):
        (read if any(path.is_relative_to(root) for root in code) else write).append(path)
    return Reach(
        protect=(*protected, *code),
        read=tuple(path.resolve() for path in read),
        write=tuple(path.resolve() for path in write),
    )


def protected_paths(kit: Kit) -> list[Path]:
    """Return what a job process must not open: the kit, all keys near it, the shared store, the sockets of other jobs.

    The place is closed as a whole, unless it is the root of the file system: that cannot be.
    """
    place = _place(kit)
    found = [_outer(kit), kit.root, place / "store", place / "state", *_secrets_in(place)]
    # The folders in which agents have the sockets of all their jobs: of these kits, and of others of the same user.
    found += [link for path in found if (link := path / "run" / "runtime").is_symlink()]
    found += RUNTIME_BASE.glob(f"{RUNTIME_PREFIX}*")
    if kit.store is not None:
        found.append(kit.store)
    return found if place == place.parent else [place, *found]


def _outer(kit: Kit) -> Path:
    """Return the project's folder, or the kit where it is in none."""
    return next((path for path in kit.root.parents if os.path.lexists(path / "state" / "project.json")), kit.root)


def _place(kit: Kit) -> Path:
    return _outer(kit).parent


def _secrets_in(place: Path) -> Iterator[Path]:
    for entry in _entries(place):
        path = Path(entry.path)
        if entry.name.startswith(_DRAFT) or entry.name.endswith((_KIT, *_KEYS)) or _has_keys(path):
            yield path
        elif entry.is_dir(follow_symlinks=False):
            # `workspace/PROJECT` beside a kit of it, where one machine has the project and a site; `keys/site-1.key`.
            # All of them: a script that filled a folder must not hide what is put there later.
            for one in _entries(path):
                if one.name.endswith(_KEYS) or (not one.is_file(follow_symlinks=False) and _has_keys(Path(one.path))):
                    yield Path(one.path)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        return  # not there, or nothing that this user can look into: its scripts cannot either


def _has_keys(folder: Path) -> bool:
    return any(os.path.lexists(folder / sign) for sign in _SIGNS)


def _given_back(place: Path, closed: Iterable[Path]) -> list[Path]:
    """Return what is in the place, and is neither closed nor has anything of that inside."""
    inside = [path for path in (one.resolve() for one in closed) if place in path.parents]
    return [path for path in allow_list(inside) if place in path.parents] if place != place.parent else []
