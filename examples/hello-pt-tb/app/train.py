"""Federated training of a small network on handwritten digits, with curves for TensorBoard while it runs."""

from __future__ import annotations

import hashlib

import digits
import torch
from model import fit, new_model, test

import fedhelm.script as fl

torch.set_num_threads(1)  # the number of threads changes the order of sums, and with it the last bits
torch.use_deterministic_algorithms(True)

with fl.connect() as site:
    train_images, test_images = digits.load(site.members.index(site.name), len(site.members))
    writer = site.summary_writer()
    for task in site.tasks():
        # From site and round alone: a task that is repeated after a crash ends in the same bits.
        seed = hashlib.sha256(f"{site.name} {task.round}".encode()).digest()[:4]
        model = new_model()
        torch.manual_seed(int.from_bytes(seed))
        if task.model is not None:
            model.load_state_dict(task.model.torch())

        if task.kind == "evaluate":
            accuracy, loss = test(model, test_images)
            writer.add_scalar("held-out/accuracy", accuracy, task.round)
            writer.add_scalar("held-out/loss", loss, task.round)
            task.submit(weight=len(test_images.labels), metrics={"accuracy": accuracy, "loss": loss})
            continue

        loss = fit(model, train_images, **site.options, done_before=task.round - 1, log=site.log)
        accuracy, _ = test(model, train_images)
        writer.add_scalar("train/accuracy", accuracy, task.round)
        if task.round == 1:
            writer.add_image("train/examples", torch.cat(list(train_images.pixels[:8]), dim=2).numpy(), 0)
        task.submit(
            model.state_dict(),
            weight=len(train_images.labels),
            metrics={"train_loss": loss, "train_accuracy": accuracy},
        )
