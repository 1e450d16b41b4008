"""`python -m bench`: measure, print a table, append to bench/results.jsonl."""

from __future__ import annotations

import argparse
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench.machine import REPOSITORY, describe
from bench.measures import MEASURES
from bench.report import Figure, append, markdown

RESULTS = REPOSITORY / "bench" / "results.jsonl"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="fewer runs, smaller models")
    parser.add_argument("--only", action="append", choices=list(MEASURES), metavar="NAME", help=", ".join(MEASURES))
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="append here (%(default)s)")
    args = parser.parse_args(argv)
    machine = describe(Path(tempfile.gettempdir()))
    figures: list[Figure] = []
    for name in args.only or MEASURES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = list(MEASURES[name](args.quick))
        append(args.results, found, machine, datetime.now(UTC))
        figures += found
    print(markdown(figures, machine))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
