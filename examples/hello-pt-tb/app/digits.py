"""scikit-learn's handwritten digits (1,797 images of 8x8), split between sites without overlap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits


class Images(NamedTuple):
    """Images of shape (n, 1, 8, 8) from 0 to 1, and what each of them shows."""

    pixels: torch.Tensor
    labels: torch.Tensor


def split(total: int, index: int, sites: int) -> slice:
    """Return the share of site ``index``, from 0: of three sites the second has twice, the third thrice the first's."""
    bounds = [round(total * k * (k + 1) / (sites * (sites + 1))) for k in range(sites + 1)]
    return slice(bounds[index], bounds[index + 1])


def load(index: int, sites: int) -> tuple[Images, Images]:
    """Return what site ``index`` of ``sites`` trains on, and what it holds back for tests.

    One image in five is held back and never trained on, by anybody. The order is shuffled, always in the same way.
    """
    data = load_digits()
    order = np.random.default_rng(2022).permutation(len(data.target))
    pixels = torch.tensor(data.images[order] / 16.0, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(data.target[order], dtype=torch.int64)
    held_back = len(order) // 5
    tests = split(held_back, index, sites)
    trains = split(len(order) - held_back, index, sites)
    return (
        Images(pixels[held_back:][trains], labels[held_back:][trains]),
        Images(pixels[:held_back][tests], labels[:held_back][tests]),
    )
