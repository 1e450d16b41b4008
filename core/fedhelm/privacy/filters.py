"""The filters that change an update, each a pass or more over its blocks.

The sources of the methods:

* ``clip``: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1, line "clip gradient", on a
  site's whole change as McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, do.
* ``gaussian_noise``: the same, with the Gaussian mechanism (Dwork and Roth, 2014, appendix A) at each site.
* ``keep_largest``: Shokri and Shmatikov, "Privacy-Preserving Deep Learning", CCS 2015: upload the largest values.

Every filter counts and changes float tensors alone. It does not let through what it cannot bound: integer and boolean
tensors leave as the round's model has them. Numbers are taken and computed in float64, and rounded once to the
tensor's type: noisy ones to nearest even, the others not away from the model, so that a bound holds for what leaves.
An element whose change a filter leaves alone keeps its bits.
"""

from __future__ import annotations

import fnmatch
import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedhelm.errors import Refused
from fedhelm.learning.rounding import nearest, widen
from fedhelm.privacy.noise import Random, gaussian
from fedhelm.privacy.policy import Clip, Exclude, Filter, GaussianNoise, KeepLargest
from fedhelm.privacy.updates import Raw, Update
from fedhelm.tensors.header import Entry

__all__ = ["change_update"]


def change_update(filter_: Filter, update: Update, target: Path, random: Random = os.urandom) -> str:
    """Write what one filter makes of an update to ``target``.

    Args:
        filter_: one of those that change an update.
        update: what the filters before have left.
        target: a new file.
        random: where noise comes from.

    Returns:
        What it did, for the site's own log: it may say more than others should know.

    Raises:
        Refused: it cannot be applied: a change is not finite, or what would leave is not.
        OSError: the disk refused.
    """
    match filter_:
        case Exclude():
            return _exclude(filter_, update, target)
        case Clip():
            return _clip(update, target, filter_.norm)
        case GaussianNoise():
            return _add_noise(filter_, update, target, random)
        case KeepLargest():
            return _keep_largest(filter_, update, target)
    raise ValueError(f"{filter_.type} changes no update")


def _exclude(filter_: Exclude, update: Update, target: Path) -> str:
    found = [name for name in update.names if any(fnmatch.fnmatchcase(name, glob) for glob in filter_.tensors)]
    update.held.update(found)
    update.rewrite(target, lambda _entry, own, _model: own)
    return f"{len(found)} tensors left out" + (f": {_some(found)}" if found else "")


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _held_back(update: Update) -> str:
    names = update.hold_integers()
    return f"; {len(names)} integer tensors held back: {_some(names)}" if names else ""


def _norm(update: Update) -> float:
    """Return the L2 norm of all that may leave changed.

    Raises:
        Refused: it is not finite.
    """
    total = 0.0
    with np.errstate(over="ignore"):
        for entry in update.free:
            for block in update.changes(entry):
                total += float(np.sum(np.square(block, out=block)))
    if not math.isfinite(total):
        raise Refused("the norm of the change is not finite")
    return math.sqrt(total)


def _moved(entry: Entry, model: Raw, change: npt.NDArray[np.float64], *, bounded: bool = True) -> Raw:
    """Return the model's block with a change, in the tensor's own type; ``bounded``: changed by no more than that."""
    base = widen(model, entry.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = nearest(base + change, entry.dtype)
        if bounded:
            done = widen(moved, entry.dtype) - base
            moved = np.where(np.abs(done) > np.abs(change), _next_to(moved, up=done < 0), moved)
    if not np.isfinite(widen(moved, entry.dtype)).all():
        raise Refused(f"what would leave of tensor {entry.name!r} is beyond {entry.dtype}")
    return moved


def _next_to(values: Raw, *, up: npt.NDArray[np.bool_]) -> Raw:
    """Return the next number of the same type above each value, or below it."""
    # Without the sign, the bits of floats as whole numbers have the floats' order.
    bits = values.view(f"<i{values.itemsize}").astype(np.int64)
    sign = np.int64(-1) << np.int64(8 * values.itemsize - 1)
    ordered = np.where(bits < 0, sign - bits, bits) + np.where(up, 1, -1)
    back = np.where(ordered < 0, sign - ordered, ordered)
    return back.astype(f"<i{values.itemsize}").view(values.dtype)


def _change_of(entry: Entry, own: Raw, model: Raw) -> npt.NDArray[np.float64]:
    return widen(own, entry.dtype) - widen(model, entry.dtype)


def _clip(update: Update, target: Path, norm: float) -> str:
    held = _held_back(update)
    found = _norm(update)
    if found <= norm:
        update.rewrite(target, lambda _entry, own, _model: own)
        return f"the norm of the change is {found:.6g}, left as it is{held}"
    scale = norm / found
    update.rewrite(target, lambda entry, own, model: _moved(entry, model, _change_of(entry, own, model) * scale))
    return f"the norm of the change is {found:.6g}, scaled down to {norm:.6g}{held}"


def _add_noise(filter_: GaussianNoise, update: Update, target: Path, random: Random) -> str:
    held = _held_back(update)
    found = _norm(update)
    scale = min(1.0, filter_.norm / found) if found else 1.0
    deviation = filter_.norm * filter_.multiplier

    def blur(entry: Entry, own: Raw, model: Raw) -> Raw:
        change = _change_of(entry, own, model) * scale
        return _moved(entry, model, change + deviation * gaussian(len(change), random), bounded=False)

    update.rewrite(target, blur)
    return f"the norm of the change is {found:.6g}, scaled by {scale:.6g}; noise of deviation {deviation:.6g}{held}"


def _keep_largest(filter_: KeepLargest, update: Update, target: Path) -> str:
    held = _held_back(update)
    elements = sum(entry.elements for entry in update.free)
    kept = math.floor(filter_.share * elements)
    cutoff, ties = _cutoff(update, kept)
    choose = _Chooser(cutoff, ties)

    def cut(entry: Entry, own: Raw, model: Raw) -> Raw:
        change = _change_of(entry, own, model)
        block: Raw = np.where(choose(np.abs(change)), own, model)
        if filter_.limit is not None:
            beyond = (np.abs(change) > filter_.limit) & (block != model)
            if beyond.any():
                at_most = _moved(entry, model, np.clip(change, -filter_.limit, filter_.limit))
                block = np.where(beyond, at_most, block)
        return block

    update.rewrite(target, cut)
    return f"{kept} of {elements} elements may leave changed, those that changed by {cutoff:.6g} or more{held}"


class _Chooser:
    """Takes what is above a cutoff, and the first so many that are equal to it; blocks come in the file's order."""

    def __init__(self, cutoff: float, ties: int) -> None:
        self._cutoff, self._ties = cutoff, ties

    def __call__(self, sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        chosen: npt.NDArray[np.bool_] = sizes > self._cutoff
        if self._ties:
            equal = np.flatnonzero(sizes == self._cutoff)[: self._ties]
            chosen[equal] = True
            self._ties -= len(equal)
        return chosen


def _cutoff(update: Update, kept: int) -> tuple[float, int]:
    """Return the size of the ``kept``-th largest change, and how many of that very size are among the largest.

    Exact, in bounded memory: sizes are not negative, so their bits as whole numbers have the same order; 16 bits are
    found in each of four passes.
    """
    if kept == 0:
        return math.inf, 0
    prefix, left = 0, kept
    for shift in (48, 32, 16, 0):
        counts = _count(update, shift, prefix)
        above = np.cumsum(counts[::-1])  # how many have this digit or a higher one, from the highest on
        place = int(np.searchsorted(above, left))
        digit = len(counts) - 1 - place
        left -= int(above[place] - counts[digit])
        prefix = (prefix << 16) | digit
    return float(np.array([prefix], np.uint64).view(np.float64)[0]), left


def _count(update: Update, shift: int, prefix: int) -> npt.NDArray[np.int64]:
    counts = np.zeros(1 << 16, np.int64)
    for entry in update.free:
        for block in update.changes(entry):
            bits = np.abs(block).view(np.uint64)
            if shift < 48:
                bits = bits[(bits >> np.uint64(shift + 16)) == np.uint64(prefix)]
            digits = (bits >> np.uint64(shift)) & np.uint64(0xFFFF)
            counts += np.bincount(digits.astype(np.int64), minlength=1 << 16)
    return counts
