import json
import platform
import subprocess
import sys

import pytest

from fedhelm.process import child_env

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the filter knows these two")

TRY = """
import ctypes, errno, json, mmap, os, subprocess, tempfile
from pathlib import Path
from fedhelm_client.syscalls import forbid_truncate
out = {}
def said(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def syscall(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
def everything():
    path = Path("file")
    path.write_text("content")
    told = {"truncate": said(lambda: os.truncate(path, 0)), "content": path.read_text()}
    path.write_text("content")
    told["mode 3"] = said(lambda: os.close(os.open(path, os.O_TRUNC | os.O_ACCMODE)))
    told["mode 3 kept"] = path.read_text()
    told["openat2"] = said(lambda: syscall(437, -100, None, None, 0))
    told["io_uring"] = said(lambda: syscall(425, 0, None))
    told["child"] = subprocess.run(["truncate", "-s", "3", "file"]).returncode
    with path.open("r+b") as file:
        told["ftruncate"] = said(lambda: file.truncate(2))
    told["open to read and write"] = said(lambda: os.close(os.open(path, os.O_RDWR | os.O_TRUNC)))
    told["written"] = said(lambda: path.write_text("new")), path.read_text()
    return told
out["before"] = everything()
out["filter"] = forbid_truncate()
out["after"] = everything()
print(json.dumps(out))
"""


def test_nothing_is_cut_off_by_its_path_and_what_programs_do_goes_on(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-c", TRY], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        env=child_env(tmp_path, "test"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    ordinary = {"child": 0, "ftruncate": "done", "open to read and write": "done", "written": ["done", "new"]}
    assert {key: out["before"][key] for key in ordinary} == ordinary
    assert (out["before"]["truncate"], out["before"]["content"]) == ("done", "")
    assert (out["before"]["mode 3"], out["before"]["mode 3 kept"]) == ("done", "")
    assert out["filter"] is True
    assert out["after"] == {
        **ordinary,
        "truncate": "EPERM",
        "content": "content",
        "mode 3": "EPERM",
        "mode 3 kept": "content",
        "openat2": "ENOSYS",
        "io_uring": "ENOSYS",
    }
