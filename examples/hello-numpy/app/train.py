"""The smallest job there is: no framework, no data, and a result to be computed by hand (see README.md)."""

from __future__ import annotations

import numpy as np

import fedhelm.script as fl

with fl.connect() as site:
    number = site.members.index(site.name) + 1  # 1 at site-1, 2 at site-2, ...
    weight = 2 * number - 1  # 1, 3, 5, ...: what this site counts for in the average
    for task in site.tasks():
        x = np.zeros(4) if task.model is None else task.model.numpy()["x"]
        x = x + number
        site.log("x", x[0], task.round)
        task.submit({"x": x}, weight=weight, metrics={"x": x[0]})
