"""Job folders for scenarios. Scripts count their calls in a file of their own, and can be held at a gate."""

from __future__ import annotations

import textwrap

# Each call of a site and round appends one line. A gate is a file that must appear before the site goes on.
COUNTING = """
    import os, pathlib, select
    import numpy as np
    import fedhelm.script as fl

    with fl.connect() as site:
        number = int(site.name.rsplit("-", 1)[1])
        folder = pathlib.Path(site.options["folder"])
        for task in site.tasks():
            with open(folder / f"calls-{site.name}.txt", "a") as calls:
                calls.write(f"{task.kind} {task.round}\\n")
            gate = folder / f"gate-{site.name}-{task.round}"
            if (folder / f"hold-{site.name}-{task.round}").exists():
                while not gate.exists():
                    select.select([], [], [], 0.02)
            model = task.model.numpy()["w"] if task.model else np.zeros(1000, np.float32)
            rng = np.random.default_rng([number, task.round])
            site.log("loss", 1.0 / task.round + number, task.round)
            task.submit({"w": model + rng.normal(size=1000).astype(np.float32)}, weight=number, metrics={"seen": number})
"""


def make_job(folder, script=COUNTING, *, rounds=3, name="counting", yaml=None, **step):
    """Write a job folder with one script; ``step`` holds more keys of the fedavg step."""
    shared = folder.parent / f"{folder.name}-files"
    shared.mkdir(parents=True, exist_ok=True)
    (folder / "app").mkdir(parents=True)
    (folder / "app" / "train.py").write_text(textwrap.dedent(script))
    more = "".join(f", {key}: {value}" for key, value in step.items())
    default = f"""
        name: {name}
        deploy: {{app: ["@ALL"]}}
        options: {{folder: "{shared}"}}
        workflow:
          - {{type: fedavg, rounds: {rounds}{more}}}
    """
    (folder / "job.yaml").write_text(textwrap.dedent(yaml or default))
    return folder, shared


def calls(shared, site):
    path = shared / f"calls-{site}.txt"
    return path.read_text().split("\n")[:-1] if path.exists() else []
