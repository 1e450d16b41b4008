"""A federation in one process, one task after the other: what an example script sees of Fedhelm, without Fedhelm."""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fedhelm.script
from fedhelm.job import load_job
from fedhelm.learning.aggregators import weighted_average
from fedhelm.learning.registry import workflow_of
from fedhelm.learning.sources import FileSource
from fedhelm.learning.workflow import (
    ClosedView,
    CloseRound,
    ContributionView,
    Fail,
    Finish,
    OpenRound,
    RoundView,
    StepView,
    weighted_metrics,
)
from fedhelm.tensors import Arrays, write_file


class FakeWriter:
    def __init__(self, site):
        self._site = site

    def add_scalar(self, tag, value, step=None):
        self._site.log(tag, value, step)

    def add_image(self, tag, image, step=None):
        self._site.images.append((tag, image.shape, step))


@dataclass
class FakeTask:
    kind: str
    round: int
    rounds: int
    model: Arrays | None
    answer: tuple[Any, float, dict[str, float]] | None = None

    def submit(self, arrays=None, *, weight=1.0, metrics=None):
        assert self.answer is None, "submitted twice"
        self.answer = (arrays, float(weight), {name: float(value) for name, value in (metrics or {}).items()})


@dataclass
class FakeSite:
    """One run of a script with one task; scripts keep nothing from one task to the next."""

    name: str
    members: tuple[str, ...]
    options: dict[str, Any]
    task: FakeTask
    job: str = "k7m3tq4w2bpx"
    scalars: list[tuple[str, float, int]] = field(default_factory=list)
    images: list[tuple[str, tuple[int, ...], int]] = field(default_factory=list)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        assert self.task.answer is not None, "the script left without an answer"

    def tasks(self):
        yield self.task

    def log(self, tag, value, step=None):
        self.scalars.append((tag, float(value), step))

    def summary_writer(self):
        return FakeWriter(self)


def run_script(script: Path, site: FakeSite, monkeypatch) -> None:
    """Run a script as a job process does: as the main program, its own folder first on the path."""
    own = {path.stem for path in script.parent.glob("*.py")}
    with monkeypatch.context() as patch:
        patch.setattr(fedhelm.script, "connect", lambda: site)
        patch.syspath_prepend(str(script.parent))
        try:
            runpy.run_path(str(script), run_name="__main__")
        finally:
            for name in own:
                sys.modules.pop(name, None)


@dataclass
class Federation:
    """Drives a job's own workflow and scripts; ``closed`` are its rounds, ``models`` the files of the averages."""

    folder: Path
    work: Path
    sites: tuple[str, ...]
    monkeypatch: Any
    closed: list[ClosedView] = field(default_factory=list)
    models: list[Path] = field(default_factory=list)
    runs: list[FakeSite] = field(default_factory=list)

    def run(self) -> None:
        config = load_job(self.folder).config
        workflow = workflow_of(config.to_json()["workflow"][0])
        opened = None
        while True:
            action = workflow.decide(StepView(tuple(self.closed), opened, self.sites))
            match action:
                case Finish():
                    return
                case OpenRound(number, rounds, kind):
                    answers = [self._ask(config, site, kind, number, rounds) for site in self.sites]
                    contributions = {one.site: one for one in answers}
                    opened = RoundView(0, number, kind, self.sites, contributions, 0.0)
                case CloseRound(sites):
                    if opened.kind == "train":
                        self._average([opened.contributions[site] for site in sites], opened.round)
                    metrics = weighted_metrics(opened.contributions.values())
                    self.closed.append(ClosedView(opened.round, opened.kind, metrics))
                    opened = None
                case Fail(reason):
                    raise AssertionError(reason)
                case _:
                    raise AssertionError(f"nobody is missing, and it waits: {action}")

    def _file(self, site: str) -> Path:
        return self.work / f"{site}.safetensors"

    def _ask(self, config, name, kind, number, rounds) -> ContributionView:
        model = Arrays(self.models[-1]) if self.models else None
        site = FakeSite(name, self.sites, dict(config.options), FakeTask(kind, number, rounds, model))
        run_script(self.folder / config.script_path, site, self.monkeypatch)
        self.runs.append(site)
        arrays, weight, metrics = site.task.answer
        if kind == "train":
            write_file(self._file(name), arrays, sync=False)
        return ContributionView(name, weight, metrics)

    def _average(self, contributions, number) -> None:
        target = self.work / f"model-{number}.safetensors"
        sources = [(one.site, one.weight, FileSource(self._file(one.site))) for one in contributions]
        with target.open("wb") as out:
            weighted_average(sources, out.write)
        for _, _, source in sources:
            source.close()
        self.models.append(target)
