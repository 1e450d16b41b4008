"""Give up the capabilities that open other processes, devices and the kernel, where the job process is root.

Landlock binds root too, but root could go round it: read other processes through ``CAP_PERFMON``, make a device node of
the disk, load a module. What ordinary scripts of root need (owning and reading files) stays.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["GIVEN_UP", "give_up"]

_PR_CAPBSET_DROP = 24
_VERSION_3 = 0x20080522

GIVEN_UP = {
    "DAC_READ_SEARCH": 2,
    "SYS_MODULE": 16,
    "SYS_RAWIO": 17,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
    "MKNOD": 27,
    "PERFMON": 38,
    "BPF": 39,
    "CHECKPOINT_RESTORE": 40,
}


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def give_up() -> None:
    """Give them up, for this process and all it will start. Without any (an ordinary user) nothing changes.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for number in GIVEN_UP.values():
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # refused to an ordinary user, who has none to hand on
    header = _Header(_VERSION_3, 0)
    sets = (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capget: " + os.strerror(ctypes.get_errno()))
    for number in GIVEN_UP.values():
        keep = ~(1 << (number % 32)) & 0xFFFFFFFF
        word = sets[number // 32]
        word.effective &= keep
        word.permitted &= keep
        word.inheritable &= keep
    if libc.capset(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capset: " + os.strerror(ctypes.get_errno()))
