"""``python -m tests.simulation SEED [-v]``, ``--seeds A..B``, ``--minutes N``: run seeds, print those that fail."""

from __future__ import annotations

import argparse
import os
import sys
import time


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("seed", nargs="?", type=int)
    parser.add_argument("-v", "--verbose", action="store_true", help="print the trace")
    parser.add_argument("--seeds", help="A..B")
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--kind", help="benign, single or storm; with :FAULT,FAULT those alone")
    parser.add_argument("--quiet", action="store_true", help="one line for each failing seed")
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of names are walked in an order that the hash seed decides: the same in every run.
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    from tests.simulation.report import run_range, run_seed

    if options.seed is not None:
        return run_seed(options.seed, options.kind, verbose=options.verbose)
    first, last = (int(part) for part in (options.seeds or "1..1000000000").split(".."))
    end = None if options.minutes is None else time.monotonic() + options.minutes * 60
    return run_range(first, last, options.kind, end, quiet=options.quiet)


if __name__ == "__main__":
    sys.exit(main())
