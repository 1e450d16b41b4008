"""What our code never uses, found in its syntax: a way from outside data to running code.

ruff has rules for a part of this, and they can be silenced with a comment; these cannot.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "core",
    "overseer",
    "server",
    "client",
    "admin_console",
    "lab",
    "bench",
    "examples",
    "docs",
    "proto",
    "tests",
)
MODULES = frozenset({"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "joblib"})
NAMES = frozenset({"eval", "exec", "compile", "__import__", "execfile"})
CALLS = frozenset(
    {
        "torch.load", "numpy.load", "np.load", "os.system", "os.popen", "pty.spawn", "code.interact", "yaml.load",
        "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load", "yaml.unsafe_load_all",
        "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.Loader", "yaml.CLoader", "yaml.CUnsafeLoader", "yaml.CFullLoader",
        "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "shutil.unpack_archive",
        "pandas.read_pickle",
    }
)  # fmt: skip
FLAGS = frozenset({"shell", "allow_pickle", "preexec_fn"})
UNPACKING = frozenset({"extractall", "extract"})
"""Of an archive: names from outside become paths. `fedhelm.job.bundle` does it with checks."""

EXCUSED = {
    # Tests of this suite alone: they prove that a ban or a watch notices the real thing, or read archives of their own.
    ("tests/hostile/evil.py", "eval"),
    ("tests/hostile/evil.py", "exec"),
    ("tests/hostile/evil.py", "__import__"),
    ("tests/hostile/evil.py", "pickle"),
    ("tests/hostile/evil.py", "marshal"),
    ("tests/hostile/evil.py", "os.system"),
    ("tests/scenarios/test_upgrade.py", "extractall"),
    ("tests/unit/test_provisioning.py", "extract"),
    ("tests/unit/test_docs.py", "compile"),
}


def _dotted(node: ast.AST) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _true(node: ast.AST | None) -> bool:
    return node is not None and not (isinstance(node, ast.Constant) and not node.value)


def banned(source: str) -> list[tuple[int, str]]:
    """Return line and name of everything that is not allowed."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, one.name) for one in node.names if one.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.partition(".")[0] in MODULES:
                found.append((node.lineno, node.module))
            names = [f"{node.module}.{one.name}" for one in node.names]
            found += [(node.lineno, name) for name in names if name in CALLS]
        elif isinstance(node, ast.Attribute) and _dotted(node) in CALLS:
            found.append((node.lineno, _dotted(node)))
        elif isinstance(node, ast.Call):
            found += _of_call(node)
    return sorted(found)


def _of_call(node: ast.Call) -> list[tuple[int, str]]:
    found = []
    if isinstance(node.func, ast.Name) and node.func.id in NAMES:
        found.append((node.lineno, node.func.id))
    if isinstance(node.func, ast.Attribute) and node.func.attr in UNPACKING:
        found.append((node.lineno, node.func.attr))
    found += [(node.lineno, f"{one.arg}=") for one in node.keywords if one.arg in FLAGS and _true(one.value)]
    return found


def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "v1" not in path.parts and "__pycache__" not in path.parts]


def test_none_of_it_is_in_our_code():
    found = []
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        what = banned(path.read_text(encoding="utf-8"))
        found += [f"{name}:{line}: {one}" for line, one in what if (name, one) not in EXCUSED]
    assert not found, "\n".join(found)


def test_every_folder_of_code_is_looked_at():
    places = {path.relative_to(ROOT).parts[0] for path in sources()}
    with_code = {
        path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py") if path.parts[len(ROOT.parts)][0] != "."
    }
    assert with_code - places == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import marshal",
        "import shelve",
        "import dill",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import yaml\nyaml.load('x', Loader=yaml.SafeLoader)",
        "import yaml\nyaml.unsafe_load('x')",
        "from yaml import full_load",
        "import yaml\nclass L(yaml.FullLoader): pass",
        "eval('1')",
        "exec('1')",
        "compile('1', '', 'eval')",
        "__import__(name)",
        "import os\nos.system('ls')",
        "import os\nos.popen('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.run('ls', shell=flag)",
        "import subprocess\nsubprocess.Popen(['ls'], preexec_fn=f)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "archive.extractall(place)",
        "import shutil\nshutil.unpack_archive('x')",
        "import asyncio\nasyncio.create_subprocess_shell('ls')",
    ],
)
def test_the_ban_bites(source):
    assert banned(source)


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('x')",
        "model.eval()",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "import yaml\nyaml.safe_load('x')",
        "asyncio.create_subprocess_exec('ls')",
    ],
)
def test_the_ban_does_not_bite_what_is_fine(source):
    assert banned(source) == []
