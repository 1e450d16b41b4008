"""Every decoder, fed by atheris, which is guided by the lines that an input reaches.

``python -m tests.hostile.atheris_run --seconds N [--only NAME] [--seed S]``; says how many inputs each decoder ate and
what escaped, and ends with status 1 if anything did. Not among the tests: what it finds belongs into ``mended.py``.

The first byte of an input chooses the decoder, the second whether its ``repair`` is used.
"""

from __future__ import annotations

import argparse
import base64
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["fedhelm", "fedhelm_client", "fedhelm_console", "fedhelm_lab", "fedhelm_overseer", "fedhelm_server"]
):
    from tests.hostile.decoder import Decoder
    from tests.hostile.eat import (
        _bytes_now,
        _eat,
        _forget_most_bytes,
        _import_late_modules,
        _most_bytes,
        _too_slow,
        where,
    )
    from tests.hostile.table import decoders
    from tests.hostile.watch import Watch

LONGEST = 8192


class Target:
    """What libFuzzer calls; at the end of its time it tells what it saw and ends the process."""

    def __init__(self, table: list[Decoder], seconds: float, scratch: Path) -> None:
        self._table, self._scratch, self._watch = table, scratch, Watch(scratch / "place")
        self._end = time.monotonic() + seconds
        self._begun, self._before = time.monotonic(), _bytes_now()
        self._eaten: Counter[str] = Counter()
        self._escaped: dict[tuple[str, str], tuple[str, bytes]] = {}

    def __call__(self, data: bytes) -> None:
        if time.monotonic() > self._end:
            sys.stdout.write(self.report())
            sys.stdout.flush()
            shutil.rmtree(self._scratch, ignore_errors=True)
            os._exit(1 if self._escaped or self._watch.forbidden or self._watch.outside else 0)
        if len(data) < 2:
            return
        decoder, data, fitted = self._table[data[0] % len(self._table)], data[2:], data[1] & 1
        self._eaten[decoder.name] += 1
        if fitted and decoder.repair is not None:
            data = decoder.repair(data)
        with self._watch:
            error = _eat(decoder, data)
        if error is not None:
            self._escaped.setdefault((decoder.name, where(error)), (str(error)[:200], data))

    def report(self) -> str:
        """Return what was eaten by whom, how far memory grew, and what escaped."""
        lines = [f"{count:9,} {name}" for name, count in sorted(self._eaten.items(), key=lambda one: -one[1])]
        total, took = sum(self._eaten.values()), time.monotonic() - self._begun
        grown = (_most_bytes() - self._before) >> 20
        lines.append(
            f"{total:9,} in {took:.0f} s, by {len(self._eaten)} of {len(self._table)} decoders; memory grew by {grown} MiB"
        )
        for (name, kind), (message, data) in self._escaped.items():
            lines.append(f"ESCAPED {name}: {kind}: {message}\n    base64 {base64.b64encode(data[:4000]).decode()}")
        lines += [f"FORBIDDEN {event}: {told}" for event, told in self._watch.forbidden.items()]
        lines += [f"OUTSIDE {path}" for path in self._watch.outside]
        return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.hostile.atheris_run")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", action="append", default=[], help="a decoder's name")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    _import_late_modules()
    scratch = Path(tempfile.mkdtemp(prefix="fedhelm-atheris-"))
    place, corpus = scratch / "place", scratch / "corpus"
    place.mkdir()
    corpus.mkdir()
    os.chdir(place)
    os.environ["HOME"] = os.environ["TMPDIR"] = tempfile.tempdir = str(place)
    table = [one for one in decoders(place) if not arguments.only or one.name in arguments.only]
    assert 0 < len(table) <= 256, len(table)
    signal.signal(signal.SIGPROF, _too_slow)
    for number, decoder in enumerate(table):
        for count, data in enumerate((*decoder.seeds, b"\xff", b"{}")):
            _eat(decoder, data)  # what is imported late is imported now
            for fitted in (0, 1) if decoder.repair else (0,):
                (corpus / f"{number}-{count}-{fitted}").write_bytes(bytes([number, fitted]) + data)
    _forget_most_bytes()
    target = Target(table, arguments.seconds, scratch)
    options = [f"-max_len={LONGEST}", f"-seed={arguments.seed}", "-timeout=30", "-rss_limit_mb=4096", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={scratch}/", str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
