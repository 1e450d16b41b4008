"""The federation in use: kept over many trials, and replaced when it is worn out or broken."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Self

from bench.faults.kinds import Kind
from bench.faults.laboratory import VARIANTS, Laboratory, NotPossibleError, laboratory
from bench.faults.trial import Outcome, Spec, run_trial

__all__ = ["TRIALS_PER_FEDERATION", "Federations", "costs"]

TRIALS_PER_FEDERATION = 25


def costs(spec: Spec) -> tuple[str, bool]:
    """Sort key: one variant after the other, and in each those that need a rested federation first."""
    return spec.kind.variant, not spec.kind.rested


class Federations:
    """One federation at a time; another when the variant changes, it is worn out, or a trial broke it.

    Args:
        keep: where the folder of one that a trial broke is moved to; None: it is removed.
    """

    def __init__(self, keep: Path | None = None) -> None:
        self._keep = keep
        self._stack = ExitStack()
        self._now: Laboratory | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the federation in use."""
        self._stack.close()
        self._now = None

    def run(self, spec: Spec) -> Outcome:
        """Run one trial; one that this machine cannot do says so.

        Raises:
            TimeoutError: no federation can be started.
            FedhelmError: likewise.
        """
        try:
            return run_trial(self._get(spec.kind), spec)
        except NotPossibleError as why:
            names = {"seed": spec.seed, "trial": spec.trial, "kind": spec.kind.name, "class": spec.kind.klass}
            return names | {"verdict": "not run", "reason": str(why), "findings": []}

    def _get(self, kind: Kind) -> Laboratory:
        old = self._now
        if old is not None:
            worn = old.broken or old.trials >= TRIALS_PER_FEDERATION
            if worn or old.variant.name != kind.variant or (kind.rested and not old.is_rested):
                self.close()
        if self._now is None:
            self._now = self._stack.enter_context(laboratory(VARIANTS[kind.variant], self._keep))
        return self._now
