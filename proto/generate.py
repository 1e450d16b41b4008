"""Generate core/fedhelm/v1/*_pb2.py and their stubs from the proto files; with --check, only compare."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "core" / "fedhelm" / "v1"


def generate(out: Path) -> None:
    """Write the generated files below ``out``."""
    protos = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    plugin = Path(sys.executable).parent / "protoc-gen-mypy"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", f"--python_out={out}"]
    command += [f"--plugin=protoc-gen-mypy={plugin}", f"--mypy_out=quiet:{out}", *protos]
    subprocess.run(command, check=True, cwd=ROOT / "proto")


def main() -> int:
    """Generate, or say what differs."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        made = sorted((Path(folder) / "fedhelm" / "v1").glob("*_pb2.py*"))
        stale = [path.name for path in made if not _same(path, TARGET / path.name)]
        if "--check" in sys.argv[1:]:
            if stale:
                sys.stderr.write(f"out of date: {', '.join(stale)} (run: make proto)\n")
            return 1 if stale else 0
        for path in made:
            shutil.copyfile(path, TARGET / path.name)
    return 0


def _same(made: Path, kept: Path) -> bool:
    return kept.exists() and made.read_bytes() == kept.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
