"""Where the agent is root: hide the protected folders from the job process by a mount namespace of its own.

Landlock alone cannot close a folder without closing the folders above it to new files; an empty file system mounted
over the folder can, and what is to stay of it is mounted into that. What comes into a covered folder later, or takes
the place of something in it, stays outside. Only root may mount, so this is used where it can be, and Landlock's rules
where it cannot. The job process gives up ``CAP_SYS_ADMIN`` afterwards, and Landlock forbids it any change of mounts.
The kernel's settings are read-only for it too: who may write ``core_pattern`` has a program run outside, as root. The
disks' device nodes are hidden: what is on a disk can be read past all file systems.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["hide"]

_CLONE_NEWNS = 0x20000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_KERNEL_SETTINGS = Path("/proc/sys")
_DEVICES = Path("/dev")
_REFUSED = (errno.EPERM, errno.ENOSYS, errno.EACCES)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str | None, target: Path | str, kind: str | None, flags: int, data: str | None = None) -> None:
    def text(value: Path | str | None) -> bytes | None:
        return None if value is None else os.fsencode(value)

    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.mount(text(source), text(target), text(kind), ctypes.c_ulong(flags), text(data))
    _checked(result, f"mount over {target}")


def _outermost(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in sorted({path.resolve() for path in paths}):
        if path.exists() and not any(path.is_relative_to(other) for other in found):
            found.append(path)
    return found


def _own_namespace() -> bool:
    """Enter a mount namespace of this process's own; False where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        _checked(libc.unshare(_CLONE_NEWNS), "unshare")
        _mount(None, "/", None, _REC | _PRIVATE)
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        raise
    return True


def _mounts_below(path: Path) -> list[Path]:
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    places = (line.split(b" ")[4].decode("unicode_escape").encode("latin-1") for line in lines)
    return sorted({place for place in map(Path, map(os.fsdecode, places)) if place.is_relative_to(path)})


def _make_read_only(path: Path) -> None:
    """Put a folder over itself, read-only with all that is mounted in it."""
    _mount(str(path), path, None, _BIND | _REC)
    _seal(path)


def _seal(path: Path) -> None:
    for place in filter(os.path.lexists, _mounts_below(path)):  # what another mount hides is out of reach
        kept = os.statvfs(place).f_flag & (_NOSUID | _NODEV | _NOEXEC)
        _mount(None, place, None, _REMOUNT | _BIND | _RDONLY | kept)


def _cover(folder: Path, beneath: int, kept: list[Path], read_only: set[Path]) -> None:
    """Put an empty file system over a folder, and into it what is kept.

    Args:
        folder: what is covered.
        beneath: a descriptor of it, from before anything was mounted.
        kept: what stays of it, those above before those below.
        read_only: what of that may not be changed.
    """
    links = {path: path.readlink() for path in folder.iterdir() if path.is_symlink()}
    _mount("fedhelm", folder, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=0755")
    for path in kept:
        _bring_back(path, Path(f"/proc/self/fd/{beneath}", path.relative_to(folder)))
        if path in read_only:
            _seal(path)
    for path, target in links.items():  # what they lead to is hidden, or not, under its own name
        path.symlink_to(target)
    _mount(None, folder, None, _REMOUNT | _RDONLY | _NOSUID | _NODEV)


def _bring_back(path: Path, source: Path) -> None:
    """Mount what lay at ``path`` there again; nothing where it is gone, or a link leads elsewhere now."""
    with contextlib.suppress(FileNotFoundError, PermissionError):  # of FUSE, some refuse even root
        fd = os.open(source, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            itself = Path(f"/proc/self/fd/{fd}")
            mode = os.fstat(fd).st_mode
            if stat.S_ISLNK(mode) or itself.readlink() != path:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISDIR(mode):
                path.mkdir(exist_ok=True)
            else:
                path.touch()
            _mount(str(itself), path, None, _BIND | _REC)
        finally:
            os.close(fd)


def _disks() -> Iterator[Path]:
    with os.scandir(_DEVICES) as entries:
        for entry in entries:
            if stat.S_ISBLK(entry.stat(follow_symlinks=False).st_mode):
                yield Path(entry.path)


def hide(protected: Iterable[Path], read: Iterable[Path] = (), write: Iterable[Path] = ()) -> bool:
    """Put something empty over each of ``protected``, for this process and all it will start.

    Args:
        protected: files and folders to hide; those that do not exist are left alone.
        read: what stays readable inside them, by its path without links. A folder that is itself protected is not
            hidden, only read-only, but for what else is protected in it.
        write: what stays readable and writable inside them, by its path without links.

    Returns:
        Whether it was done; False where this process may not mount, and nothing has changed.

    Raises:
        OSError: a mount failed half-way; the script must not be run.
    """
    if os.geteuid() != 0 or not _own_namespace():
        return False
    read_only = set(read)
    closed = {path.resolve() for path in protected}
    covered = _outermost(closed - read_only)
    wanted = sorted({*read_only, *write})
    kept = {folder: [path for path in wanted if path.is_relative_to(folder)] for folder in covered}
    beneath = {folder: os.open(folder, os.O_PATH | os.O_CLOEXEC) for folder in covered if kept[folder]}
    try:
        for path in _outermost([*(closed & read_only), _KERNEL_SETTINGS]):
            _make_read_only(path)
        for path in _disks():
            _mount("/dev/null", path, None, _BIND)
        for path in covered:
            try:
                if path.is_dir():
                    _cover(path, beneath.get(path, -1), kept[path], read_only)
                else:
                    _mount("/dev/null", path, None, _BIND)
            except FileNotFoundError:
                # Another agent's socket folder may go at any moment with its agent: then nothing is left to hide.
                if os.path.lexists(path):
                    raise
    finally:
        for fd in beneath.values():
            os.close(fd)
    return True
