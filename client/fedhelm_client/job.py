"""The job process: shuts itself in, then runs the user's script as ``__main__``. Started by the nanny only.

Usage: ``python -P -m fedhelm_client.job --parent PID --report-fd N PLAN``, where PLAN is a JSON file
``{script, app, work, protect: [...], read: [...], write: [...]}``. What the script raises is written, as
``{reason, traceback}``, to the report descriptor.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

from fedhelm.process import die_with_parent
from fedhelm_client import capabilities, landlock, mounts

__all__ = ["MAX_TRACEBACK", "main"]

MAX_TRACEBACK = 16 * 1024
"""Bytes of a traceback that are kept, from its end."""


def _describe(error: BaseException, script: str) -> dict[str, str]:
    """Return reason and traceback of what the script raised, without this program's own frames."""
    summary = traceback.TracebackException.from_exception(error)
    for place, frame in enumerate(summary.stack):
        if frame.filename == script:
            del summary.stack[:place]
            break
    text = "".join(summary.format()).encode(errors="replace")
    reason = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return {
        "reason": (reason[-1] if reason else type(error).__name__)[:1000].encode(errors="replace").decode(),
        "traceback": text[-MAX_TRACEBACK:].decode(errors="ignore"),
    }


def _run(plan: dict[str, Any], report_fd: int) -> None:
    script = str(plan["script"])
    sys.path.insert(0, str(plan["app"]))
    sys.argv = [script]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever the script raised is what this process reports
        description = _describe(error, script)
        sys.stdout.flush()
        sys.stderr.write(description["traceback"])
        sys.stderr.flush()
        # At most twice 16 KiB: a pipe takes that at once.
        os.write(report_fd, json.dumps(description, ensure_ascii=False).encode())
        sys.exit(1)


def _shut_in(protect: list[Path], read: list[Path], write: list[Path]) -> None:
    if mounts.hide(protect, read, write):
        capabilities.give_up()
        landlock.restrict_processes()
    else:
        capabilities.give_up()
        landlock.restrict(protect, read=read, write=write)


def main(argv: list[str]) -> int:
    """Shut this process in and run the script."""
    parser = argparse.ArgumentParser(prog="fedhelm_client.job")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--report-fd", type=int, required=True)
    parser.add_argument("plan", type=Path)
    arguments = parser.parse_args(argv)
    die_with_parent(arguments.parent)
    os.set_inheritable(arguments.report_fd, False)
    plan = json.loads(arguments.plan.read_bytes())
    _shut_in(*([Path(path) for path in plan[key]] for key in ("protect", "read", "write")))
    os.chdir(plan["work"])
    faulthandler.enable()
    _run(plan, arguments.report_fd)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
