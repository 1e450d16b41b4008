"""A small convolutional network, one function that trains it, and one that tests it. Plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from digits import Images
from torch import nn
from torch.nn import functional


def new_model() -> nn.Module:
    """Return a network with the same first weights at every site: an average of different ones is worth little."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def fit(
    model: nn.Module,
    images: Images,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    done_before: int,
    log: Callable[[str, float, int], None],
) -> float:
    """Train, log the loss of every batch, and return the last epoch's mean loss.

    ``done_before`` is how many such trainings came before this one: the steps of the curve go on where those ended.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    model.train()
    batches = -(-len(images.labels) // batch_size)
    losses: list[float] = []
    for epoch in range(epochs):
        losses = []
        first = (done_before * epochs + epoch) * batches
        for step, batch in enumerate(torch.randperm(len(images.labels)).split(batch_size), first):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images.pixels[batch]), images.labels[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            log("train/loss", losses[-1], step)
    return sum(losses) / len(losses)


@torch.no_grad()
def test(model: nn.Module, images: Images) -> tuple[float, float]:
    """Return the share of images that are told right, and the mean loss."""
    model.eval()
    scores = model(images.pixels)
    accuracy = (scores.argmax(dim=1) == images.labels).float().mean().item()
    return accuracy, functional.cross_entropy(scores, images.labels).item()
