"""All that a policy does to one result, from the script's own file to the one that may leave."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from fedhelm.errors import BadInput, FedhelmError, ProtocolError, Refused
from fedhelm.privacy.noise import Random
from fedhelm.privacy.policy import (
    Clip,
    Exclude,
    Filter,
    GaussianNoise,
    KeepLargest,
    Limits,
    MinSamples,
    PrivacyPolicy,
    Weight,
)

__all__ = ["MAY_LEAVE", "Result", "check_round", "filter_result"]

MAY_LEAVE: Final = "may-leave"
"""How the names of files begin that no longer need to stay at the site; all other files of a call are deleted."""

_CHANGING = (Exclude, Clip, GaussianNoise, KeepLargest)
_ON_TENSORS = (Limits, *_CHANGING)


@dataclasses.dataclass(frozen=True)
class Result:
    """A result, as a script gives it, or as it may leave.

    Attributes:
        file: its tensors, None if it has none.
        weight: in the average.
        metrics: names and numbers.
    """

    file: Path | None
    weight: float
    metrics: Mapping[str, float]


def filter_result(
    policy: PrivacyPolicy,
    result: Result,
    *,
    model: Path | None,
    folder: Path,
    key: str,
    random: Random = os.urandom,
    go_on: Callable[[], None] = lambda: None,
) -> tuple[Result, tuple[str, ...]]:
    """Apply a policy to a result; blocking, with memory that does not grow with the model.

    Args:
        policy: of the site.
        result: its file is the script's own, on the file system of ``folder``; it is taken away from the script.
        model: that of the round, which the update changes; None where it has none.
        folder: a private one, for files that end in ``.safetensors``.
        key: of the task, unique in ``folder``.
        random: where noise comes from.
        go_on: called every few MiB; what it raises ends the call, and its files are deleted.

    Returns:
        What may leave, and what each filter did, for the site's own log alone.

    Raises:
        Refused: nothing may leave. The message says why without saying what the script chose, or what is secret here;
            the hint has that, for the site's own log.
        ProtocolError: the script's file is no plain file.
        OSError: the disk refused.
    """
    weight, did = _weigh(policy, result.weight)
    file = result.file
    if file is not None and any(isinstance(one, _ON_TENSORS) for one in policy.filters):
        files = _Files(folder, key)
        try:
            file = _Passes(model, files, random, go_on, did).take(policy, file)
        except BadInput as error:
            raise _named(
                None, Refused("the update, or the round's model, cannot be read", hint=error.message)
            ) from None
        finally:
            files.tidy()
    return Result(file, weight, policy.outgoing_metrics(result.metrics)), tuple(did)


def _named(filter_: Filter | None, error: FedhelmError) -> Refused:
    which = "the privacy filters" if filter_ is None else f"the privacy filter {filter_.type}"
    return Refused(f"{which} of this site: {error.message}", hint=error.hint)


def _weigh(policy: PrivacyPolicy, weight: float) -> tuple[float, list[str]]:
    did, sent = [], weight
    for one in policy.filters:
        if isinstance(one, MinSamples):
            if weight < one.samples:
                hint = f"the script gave the weight {weight:.12g}, at least {one.samples:.12g} is needed"
                raise _named(one, Refused("the result is of too few samples to leave", hint=hint))
            did.append(f"min_samples: {weight:.12g} are enough")
        elif isinstance(one, Weight):
            sent = one.value
            did.append(f"weight: {weight:.12g} became {sent:.12g}")
    return sent, did


class _Files:
    """The files of one call: those that are not asked to stay are deleted at its end."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key
        self._made: list[Path] = []

    def new(self, what: str) -> Path:
        path = self._folder / f"{what}-{self._key}.safetensors"
        path.unlink(missing_ok=True)
        self._made.append(path)
        return path

    def keep(self, path: Path) -> Path:
        kept = path.rename(self._folder / f"{MAY_LEAVE}-{self._key}.safetensors")
        self._made.remove(path)
        return kept

    def drop(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def tidy(self) -> None:
        for path in self._made:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _Passes:
    """What the passes over one update share; ``did`` takes what each filter did."""

    model: Path | None
    files: _Files
    random: Random
    go_on: Callable[[], None]
    did: list[str]

    def take(self, policy: PrivacyPolicy, source: Path) -> Path:
        """Take the script's file away, apply the filters, and return the file that may leave."""
        from fedhelm.privacy.updates import check_plain, copy_in  # numpy: a site without such filters does not need it

        # Moved first, then looked at: here the script cannot put a link in the place of what was looked at.
        taken = self.files.new("taken")
        try:
            source.rename(taken)
        except FileNotFoundError as error:
            raise ProtocolError(f"the result's file cannot be opened: {error.strerror}") from error
        check_plain(taken)
        check_round(policy, has_model=self.model is not None)
        changing = [one for one in policy.filters if isinstance(one, _CHANGING)]
        limits = [one for one in policy.filters if isinstance(one, Limits)]
        copy = self.files.new("step-0")
        try:
            copy_in(
                taken,
                copy,
                tensors=min((one.tensors for one in limits if one.tensors is not None), default=None),
                size=min((one.bytes for one in limits if one.bytes is not None), default=None),
                like=self.model if changing else None,
                go_on=self.go_on,
            )
        except Refused as error:
            raise _named(None, error) from None
        self.files.drop(taken)
        return self.files.keep(self._change(changing, copy, self.model) if changing and self.model else copy)

    def _change(self, filters: Sequence[Filter], current: Path, model: Path) -> Path:
        from fedhelm.privacy.filters import change_update
        from fedhelm.privacy.updates import TensorFile, Update

        held: set[str] = set()
        with TensorFile(model, "the round's model") as base:
            for number, one in enumerate(filters, start=1):
                target = self.files.new(f"step-{number}")
                with TensorFile(current, "the update") as own:
                    update = Update(own, base, held, self.go_on)
                    try:
                        self.did.append(f"{one.type}: {change_update(one, update, target, self.random)}")
                    except Refused as error:
                        raise _named(one, error) from None
                    held = update.held
                self.files.drop(current)
                current = target
        return current


def check_round(policy: PrivacyPolicy, *, has_model: bool) -> None:
    """Refuse a training round before anything is trained for it whose update could not leave.

    Raises:
        Refused: a filter works on what an update changes, and there is no model to change.
    """
    first = next((one for one in policy.filters if isinstance(one, _CHANGING)), None)
    if first is not None and not has_model:
        what = "it works on what an update changes, and this round has no model: the job needs an initial_model"
        raise _named(first, Refused(what))
