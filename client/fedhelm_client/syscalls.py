"""Take from this process the calls that cut files off by their path, where the kernel's Landlock does not know them.

Before version 3 (Linux 6.2) Landlock lets a process truncate a file that it may neither read nor write: with
``truncate``, or by opening it in the access mode 3, which asks for neither. A seccomp filter refuses both. It cannot
look into the arguments of ``openat2`` and ``io_uring``, so those are not there any more, and neither are the calls of
another architecture (32-bit programs). ``ftruncate`` and ``open`` as programs use them stay.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

__all__ = ["forbid_truncate"]

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000

_LOAD, _IF_EQUAL, _IF_AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in the kernel's struct seccomp_data
_OTHER_ABI: Final = 0x40000000  # x32

# Of each machine: its architecture for the kernel, then truncate, and what opens files with the place of its flags.
_MACHINES: Final = {
    "x86_64": (0xC000003E, 76, {2: 1, 257: 2}),
    "aarch64": (0xC00000B7, 45, {56: 2}),
}
_OPAQUE: Final = (425, 437)  # io_uring_setup, openat2: the same number everywhere


def _program(architecture: int, truncate: int, opening: dict[int, int]) -> bytes:
    """Return the filter: ``struct sock_filter`` after one another. Pure."""

    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    refused, missing, allowed = (
        step(_RETURN, _ERRNO | errno.EPERM),
        step(_RETURN, _ERRNO | errno.ENOSYS),
        step(_RETURN, _ALLOW),
    )
    program = [step(_LOAD, _ARCHITECTURE), step(_IF_EQUAL, architecture, 1), missing, step(_LOAD, _NUMBER)]
    program += [step(_IF_AT_LEAST, _OTHER_ABI, 0, 1), missing]
    for number in _OPAQUE:
        program += [step(_IF_EQUAL, number, 0, 1), missing]
    program += [step(_IF_EQUAL, truncate, 0, 1), refused]
    flags = os.O_TRUNC | os.O_ACCMODE
    for number, place in opening.items():
        program += [
            step(_IF_EQUAL, number, 0, 5),
            step(_LOAD, _ARGUMENTS + 8 * place),  # the lower half: both machines are little-endian
            step(_AND, flags),
            step(_IF_EQUAL, flags, 0, 1),
            refused,
            allowed,
        ]
    return b"".join([*program, allowed])


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid_truncate() -> bool:
    """Refuse them to this process, for ever, and to all that it will start.

    Returns:
        Whether it was done; False on another machine than x86_64 and aarch64, or where the kernel has no seccomp.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        return False
    steps = _program(*machine)
    program = _Program(len(steps) // 8, steps)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)
