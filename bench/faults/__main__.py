"""`python -m bench.faults`: run trials, or show what ran and what is missing."""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import bench.faults.network
import bench.faults.operators
import bench.faults.overseers
import bench.faults.processes
import bench.faults.storage
from bench.faults.bars import misses
from bench.faults.federations import Federations, costs
from bench.faults.kinds import KINDS, Kind
from bench.faults.lines import (
    RESULTS,
    append_line,
    code_state,
    deck,
    done_trials,
    is_counted,
    is_current,
    missing,
    read_lines,
)
from bench.faults.table import table, write_readme
from bench.faults.trial import Outcome, Spec
from bench.machine import REPOSITORY, describe
from fedhelm.errors import FedhelmError

# They enter their kinds into the table.
assert bench.faults.network
assert bench.faults.operators
assert bench.faults.overseers
assert bench.faults.processes
assert bench.faults.storage

_REPEATED = 1_000_000  # trial numbers of `--only-missing` begin here


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__, allow_abbrev=False)
    parser.add_argument("--n", type=int, default=200, help="trials of this seed (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="", metavar="A,B", help=f"only these: {', '.join(sorted(KINDS))}")
    parser.add_argument("--only-missing", action="store_true", help="run what --plan lists, at most --n")
    parser.add_argument("--quick", action="store_true", help="shortest freezes and outages")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="append here (%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the federation of a failed trial there")
    parser.add_argument("--plan", action="store_true", help="print what is still missing, and run nothing")
    parser.add_argument("--table", action="store_true", help="print the table, and run nothing")
    parser.add_argument("--check", action="store_true", help="print each bar that is missed; exit status 1 if one is")
    parser.add_argument("--write-readme", action="store_true", help="put the table into README.md")
    parser.add_argument("--all-lines", action="store_true", help="with --table, --plan, --check: older code too")
    parser.add_argument(
        "--mended", nargs=4, metavar=("AT", "SEED", "TRIAL", "BY"), help="note that commit BY mended a failure of AT"
    )
    return parser


def _kinds(text: str) -> list[Kind]:
    names = [name for name in text.split(",") if name] or list(KINDS)
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise SystemExit(f"unknown kinds {', '.join(unknown)}; there are {', '.join(sorted(KINDS))}")
    return [KINDS[name] for name in names]


def _specs(args: argparse.Namespace, kinds: Sequence[Kind]) -> Iterator[Spec]:
    lines = read_lines(args.results)
    if args.only_missing:
        wanted = list(missing([line for line in lines if is_counted(line)], kinds).elements())
        random.Random(args.seed).shuffle(wanted)  # so that a sitting that is cut short has some of everything
        used = [line["trial"] for line in lines if line.get("seed") == args.seed and line["trial"] >= _REPEATED]
        first = max(used, default=_REPEATED - 1) + 1
        for number, (name, phase) in enumerate(wanted[: args.n], first):
            yield Spec(args.seed, number, KINDS[name], phase, args.quick)
        return
    done = done_trials(lines, is_current if args.quick else is_counted)
    for number, (kind, phase) in enumerate(itertools.islice(deck(args.seed, kinds), args.n)):
        if (args.seed, number) not in done:
            yield Spec(args.seed, number, kind, phase, args.quick)


def _run(args: argparse.Namespace) -> int:
    machine = describe(Path(tempfile.gettempdir()))
    commit, dirty = code_state()
    fixed = {
        "v": 1,
        "commit": commit,
        "dirty": dirty,
        "machine": f"{machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {machine['filesystem']}, {machine['fsync_ms']} ms for a durable 4 KiB file",
    }
    # Kinds of one variant stand together within a handful of trials: a new federation costs seconds.
    specs = list(_specs(args, _kinds(args.kinds)))
    federations, failed = Federations(args.keep), 0
    try:
        for block in range(0, len(specs), 40):
            for spec in sorted(specs[block : block + 40], key=costs):
                outcome = federations.run(spec)
                append_line(args.results, fixed | outcome)
                failed += outcome["verdict"] == "failed"
                _say(outcome)
    except (FedhelmError, TimeoutError) as error:
        print(f"a federation did not start: {error}", file=sys.stderr)
        return 1
    finally:
        federations.close()
    return 1 if failed else 0


def _say(outcome: Outcome) -> None:
    if outcome["verdict"] == "not run":
        print(f"{outcome['kind']}: not run: {outcome['reason']}", flush=True)
        return
    gap = "" if outcome["gap_s"] is None else f" gap {outcome['gap_s']:.2f} s"
    print(
        f"{outcome['seed']}:{outcome['trial']} {outcome['kind']} in {outcome['phase']}:{gap} "
        f"epoch {outcome['epoch_before']} to {outcome['epoch_after']}, {outcome['seconds']:.0f} s, "
        f"{outcome['verdict']}",
        *outcome["findings"],
        sep="\n    ",
        flush=True,
    )


def _show(args: argparse.Namespace) -> int:
    everything = read_lines(args.results)
    full = [line for line in everything if "seed" in line and not line.get("quick")]
    lines = [line for line in full if args.all_lines or is_counted(line)]
    if args.check:
        found = misses(lines, everything)
        print(*found or [f"every bar is reached by {len(lines)} trials"], sep="\n")
        return 1 if found else 0
    if args.plan:
        wanted = missing(lines, _kinds(args.kinds))
        for (name, phase), count in sorted(wanted.items()):
            print(f"{name:28} {phase:12} {count}")
        print(f"{wanted.total()} trials are missing", file=sys.stderr)
        return 0
    text = table(lines, everything)
    if args.write_readme:
        write_readme(REPOSITORY / "README.md", text)
    else:
        print(text)
    return 0


def main(argv: list[str]) -> int:
    args = _arguments().parse_args(argv)
    if args.mended:
        at, seed, trial, by = args.mended
        append_line(args.results, {"mends": {"commit": at, "seed": int(seed), "trial": int(trial)}, "by": by})
        return 0
    return _show(args) if args.plan or args.table or args.check or args.write_readme else _run(args)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no federation is left behind
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
