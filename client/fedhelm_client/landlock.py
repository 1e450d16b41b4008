"""Landlock: the kernel keeps a job process from the keys of the participant that runs it.

File modes do not protect against code that runs as the same user, so the job process gives up, before the user's
script runs, everything below the *protected* folders (see :mod:`fedhelm_client.reach`), and the right to write below
those of the agent's own code; it keeps everything else. Landlock grants whole hierarchies and cannot take anything
back, so the rules name the siblings along the path from ``/`` to each protected folder, never a folder above one.
Consequences, all of them harmless to ordinary scripts:

* a folder above a protected one cannot take new files, nor can ``/tmp``, where the agent's sockets are (``TMPDIR``
  points into the job's work folder);
* listing stays free everywhere (Python's importer lists folders above, where people keep their projects), so names in
  a protected folder can be seen, contents cannot;
* files that appear in a folder above a protected one after the start cannot be opened.

Where the kernel can, signals to processes outside and abstract Unix sockets are refused too. Tracing a process outside
is refused by Landlock itself, so ``/proc/<agent>/mem`` and ``/proc/<agent>/environ`` are closed.

What no version of Landlock takes away: to change modes, owners, times and attributes. What those before version 3 do
not take away, :mod:`fedhelm_client.syscalls` does.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedhelm_client.syscalls import forbid_truncate

__all__ = ["abi", "allow_list", "restrict", "restrict_processes"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_WRITE_FILE, _READ_FILE = 1 << 1, 1 << 2
_REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))
_MAKE_DEVICES = (1 << 6) | (1 << 11)
_REFER = 1 << 13  # from ABI 2: rename and link between folders
_TRUNCATE = 1 << 14  # from ABI 3
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2  # from ABI 6


class _RulesetAttr(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    libc = _libc()
    libc.syscall.restype = ctypes.c_long
    result = int(libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"landlock: {os.strerror(error)}")
    return result


def abi() -> int:
    """Return the version of Landlock that this kernel offers; 0 where there is none."""
    try:
        return _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    except OSError:
        return 0


def allow_list(protected: Iterable[Path]) -> Iterator[Path]:
    """Yield what may be granted so that everything is reachable but the protected folders.

    Symbolic links are left out: what they point to is granted, or not, under its own name.

    Args:
        protected: files and folders; those that do not exist keep their place protected.
    """
    closed = {path.resolve() for path in protected}
    above = {parent for path in closed for parent in path.parents}
    for folder in sorted(above - closed):
        if any(parent in closed for parent in folder.parents):
            continue
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue  # does not exist, or the user may not look into it: nothing to grant
        for entry in entries:
            path = folder / entry.name
            if not entry.is_symlink() and path not in above and path not in closed:
                yield path


def _readable(path: Path, protected: Iterable[Path]) -> Iterator[Path]:
    """Yield what may be granted so that ``path`` is readable but for what is protected inside it."""
    path = path.resolve()
    inside = [one for one in (other.resolve() for other in protected) if one != path and one.is_relative_to(path)]
    if inside:
        yield from (one for one in allow_list(inside) if one.is_relative_to(path))
    else:
        yield path


def _grant(ruleset: int, path: Path, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return  # gone in the meantime, or not ours to open
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        rule = _PathBeneathAttr(allowed_access=access, parent_fd=fd)
        _syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0))
    except OSError:
        return  # a kernel-internal file that takes no rules: it stays closed
    finally:
        os.close(fd)


def _ruleset(files: int, version: int) -> int:
    scoped = _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if version >= 6 else 0
    attributes = _RulesetAttr(handled_access_fs=files, handled_access_net=0, scoped=scoped)
    return _syscall(
        _CREATE_RULESET,
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
        ctypes.c_uint32(0),
    )


def _enter(ruleset: int) -> None:
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    _syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))


def restrict(protected: Iterable[Path], read: Iterable[Path] = (), write: Iterable[Path] = ()) -> int:
    """Take from this process, for ever, and from all it will start, everything below ``protected``.

    Args:
        protected: files and folders to close.
        read: folders inside them that may be read. One that is itself protected may be read but for what else is
            protected in it.
        write: folders inside them that may be read and written.

    Returns:
        The version of Landlock in force; 0 where the kernel has none and nothing was done.

    Raises:
        OSError: the kernel has Landlock and refused.
    """
    version = abi()
    if version < 1:
        return 0
    protected = list(protected)
    everything = _WRITE_FILE | _READ_FILE | _REMOVE_AND_MAKE
    everything |= (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    ruleset = _ruleset(everything, version)
    try:
        for path in allow_list(protected):
            _grant(ruleset, path, everything)
        for path in read:
            for part in _readable(path, protected):
                _grant(ruleset, part, _READ_FILE)
        for path in write:
            _grant(ruleset, path, everything)
        _enter(ruleset)
    finally:
        os.close(ruleset)
    if not everything & _TRUNCATE:
        forbid_truncate()
    return version


def restrict_processes() -> int:
    """Take from this process, for ever, all that Landlock can take but files: for one whose files are hidden already.

    It can no longer trace or, from ABI 6, signal processes outside, nor change mounts, nor make device nodes.

    Returns:
        The version of Landlock in force; 0 where the kernel has none and nothing was done.

    Raises:
        OSError: the kernel has Landlock and refused.
    """
    version = abi()
    if version < 1:
        return 0
    ruleset = _ruleset(_MAKE_DEVICES, version)
    try:
        _enter(ruleset)
    finally:
        os.close(ruleset)
    return version
