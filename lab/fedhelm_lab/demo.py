"""``fedhelm demo``: a federation on this machine loses its primary in the middle of a job, and finishes it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhelm.clock import SystemClock
from fedhelm.errors import ExitStatus, FedhelmError, Interrupted, UsageError, WorkspaceExists
from fedhelm.output import CommandParser, Format, add_output_option, emit, format_of, guarded
from fedhelm_lab.workspace import ADMIN, Workspace

if TYPE_CHECKING:
    from fedhelm_lab.demo_acts import Acts, Outcome
    from fedhelm_lab.demo_stage import Stage

__all__ = ["main"]

_ABOUT = """\
Watch a federation survive the death of its primary server: an overseer, two servers, two sites and an admin start on
this machine, train a PyTorch model on handwritten digits, lose the primary to SIGKILL in the second round, and bring
the result home. Takes less than a minute. Everything is stopped at the end; the result stays.
"""

_TITLE = """\
Fedhelm demo: a federation on this machine loses its primary server in the
middle of a training job, and finishes the job all the same."""

_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="fedhelm demo",
        description=_ABOUT,
        epilog="Exit statuses: 0 done, 1 failed, 2 usage, 130 interrupted; whatever happens, no process stays behind.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--sites", type=int, default=2, metavar="N", help="number of sites (default 2)")
    parser.add_argument("--base-port", type=int, metavar="P", help="first of five ports (default: any that are free)")
    parser.add_argument(
        "-w",
        "--workspace",
        type=Path,
        metavar="DIR",
        help="an empty or new folder for all files (default: a new temporary one)",
    )
    parser.add_argument("--keep", action="store_true", help="leave the federation running, and open the admin console")
    add_output_option(parser)
    return parser


def _require_learning() -> None:
    missing = [name for name in ("torch", "sklearn") if importlib.util.find_spec(name) is None]
    if missing:
        raise FedhelmError(f"the demo's job needs {' and '.join(missing)}", hint="pip install 'fedhelm[torch]'")


def _make_folder(given: Path | None) -> Path:
    if given is None:
        return Path(tempfile.mkdtemp(prefix="fedhelm-demo-")).resolve()
    folder = given.resolve()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}", hint="choose another with -w") from error
    if not empty:
        raise WorkspaceExists(f"{folder} is not empty", hint="choose another with -w, or leave -w out")
    return folder


@contextlib.contextmanager
def _endings(handler: Any) -> Iterator[None]:
    """Treat a closed terminal and a request to end like Ctrl-C, or nothing at all of it (``SIG_IGN``)."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    numbers = _ENDINGS if handler is not signal.SIG_IGN else (signal.SIGINT, *_ENDINGS)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, old in before.items():
        if old not in (signal.SIG_IGN, None):  # nohup, or not set from Python: leave it
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            if old not in (signal.SIG_IGN, None):
                signal.signal(number, old)


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _end(acts: Acts, folder: Path, *, save_logs: bool) -> None:
    """Stop every process and remove the workspace; with ``save_logs`` the participants' logs go to ``logs/``."""
    with _endings(signal.SIG_IGN):
        acts.close()
        # By its place: also a workspace that was being started when the interruption came.
        if (folder / "poc").exists():
            workspace = Workspace.open(folder / "poc")
            workspace.stop()
            if save_logs:
                _save_logs(workspace, folder / "logs")
            workspace.clean()
        with contextlib.suppress(OSError):
            folder.rmdir()  # nothing to be seen in it


def _save_logs(workspace: Workspace, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for home in workspace.running_homes:
        with contextlib.suppress(OSError):  # it never started, or the disk is full: the others' may be there
            shutil.copyfile(home.root / "log.txt", target / f"{home.name}.txt")


def _tensorboard(logs: Path) -> str:
    beside = Path(sys.executable).with_name("tensorboard")
    program = "tensorboard" if shutil.which("tensorboard") or not beside.exists() else str(beside)
    return f"{program} --logdir {logs}"


def _tell_files(stage: Stage, outcome: Outcome) -> None:
    stage.say(
        f"The result: {outcome.path}\n"
        "  summary.json   every round: members, weights, metrics, model hash, epoch\n"
        "  models/        final.safetensors, best.safetensors\n"
        "  tensorboard/   each site's curves, streamed while it trained\n"
        "  logs/  job/    what sites and servers wrote; what was submitted"
    )
    stage.say("\nNext, look at the curves:")
    stage.command("$", _tensorboard(outcome.path / "tensorboard"))


def _tell_running(stage: Stage, acts: Acts) -> list[str]:
    """Say what is left running; return the console's arguments."""
    assert acts.workspace is not None
    root = acts.workspace.root
    stage.heading("Left running, as --keep wants it")
    stage.command("$", str(acts.workspace.kit(ADMIN).startup / "fl_admin.sh"), "# the admin console")
    stage.command("$", f"fedhelm poc status -w {root}")
    stage.command("$", f"fedhelm poc clean -w {root}", "# stops everything")
    return [str(acts.workspace.kit(ADMIN).root)]


def _play(stage: Stage, folder: Path, args: argparse.Namespace) -> tuple[Outcome, list[str]]:
    """Play all acts; return the outcome, and the console's arguments where the federation is kept."""
    from fedhelm_lab.demo_acts import Acts

    acts = Acts(stage, folder)
    began = SystemClock().boottime()
    try:
        acts.start(args.sites, args.base_port)
        acts.submit()
        acts.train()
        outcome = acts.fetch()
        kept: list[str] = []
        if args.keep:
            kept = _tell_running(stage, acts)
            acts.close()
        else:
            stage.heading("5. Stop everything")
            stage.command("$", f"fedhelm poc clean -w {folder / 'poc'}")
            _end(acts, folder, save_logs=False)
            stage.say("no process is left; the workspace with its keys is removed")
    except KeyboardInterrupt:
        stage.say("\ninterrupted: stopping everything ...")
        _end(acts, folder, save_logs=False)
        raise Interrupted("interrupted: everything was stopped and removed") from None
    except BaseException:  # whatever it was, no process stays
        _end(acts, folder, save_logs=True)
        if (folder / "logs").is_dir():
            stage.say(f"everything was stopped; the participants' logs: {folder / 'logs'}")
        raise
    stage.say()
    _tell_files(stage, outcome)
    stage.say(f"\nAll in {SystemClock().boottime() - began:.0f} s.")
    return outcome, kept


def _run(argv: list[str], fmt: Format) -> int:
    args = _parser().parse_args(argv)
    _require_learning()
    from fedhelm_console.terminal import style_of
    from fedhelm_lab.demo_stage import Stage

    stream = sys.stderr if fmt == "json" else sys.stdout
    stage = Stage(stream, style_of(stream))
    with _endings(_interrupt):
        folder = _make_folder(args.workspace)
        stage.title(_TITLE)
        outcome, console = _play(stage, folder, args)
        workspace = str(folder / "poc") if console else None
        emit({**outcome.to_json(), "workspace": workspace}, fmt)
    if console and fmt == "table" and sys.stdin.isatty() and sys.stdout.isatty():
        from fedhelm_console.cli import main as console_main

        status = console_main(console)
        stage.say(f"\nStill running; this stops it: fedhelm poc clean -w {workspace}")
        return status
    return ExitStatus.OK


def _run_unread(argv: list[str], fmt: Format) -> int:
    try:
        return _run(argv, fmt)
    except BrokenPipeError:
        # Whoever read our output has gone; nothing more can be said, and Python must not try at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.FAILED


def main(argv: list[str]) -> int:
    """Run ``fedhelm demo ARGV``; return its exit status."""
    fmt = format_of(argv)
    return guarded(lambda: _run_unread(argv, fmt), fmt)
