"""What a ``job.yaml`` must obey beyond the types of its values: nothing from the future, no contradictions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from fedhelm.config.yaml_source import Document, Key, load_yaml
from fedhelm.errors import NotSupportedYet
from fedhelm.job.model import ALL_SITES, FedAvgStep, JobConfig

__all__ = ["parse_config", "parse_document"]

_LATER_KEYS: Final = ("resources", "priority", "filters", "metrics")
_LATER_STEP_KEYS: Final = ("aggregator", "filters", "over_select", "early_stop", "server_optimizer")
_LATER_WORKFLOWS: Final = ("fedprox", "fedopt", "scaffold", "ditto", "cyclic", "fedbuff", "cross_site", "statistics")

_Finding = tuple[Key, str]


def _later(value: dict[str, Any]) -> Iterator[_Finding]:
    """Yield what a later version will serve."""
    for key in _LATER_KEYS:
        if key in value:
            yield (key,), "not supported yet"
    deploy, workflow = value.get("deploy"), value.get("workflow")
    if isinstance(deploy, dict) and len(deploy) > 1:
        yield ("deploy", list(deploy)[1]), "more than one app is not supported yet"
    steps = workflow if isinstance(workflow, list) else []
    for index, step in enumerate(steps):
        if isinstance(step, dict):
            yield from _later_in_step(index, step)
    if len(steps) > 1:
        yield ("workflow", 1), "more than one step is not supported yet"


def _later_in_step(index: int, step: dict[str, Any]) -> Iterator[_Finding]:
    if step.get("type") in _LATER_WORKFLOWS:
        yield ("workflow", index, "type"), f"{step['type']} is not supported yet"
    for key in _LATER_STEP_KEYS:
        if key in step:
            yield ("workflow", index, key), "not supported yet"


def _contradictions(config: JobConfig) -> Iterator[_Finding]:
    """Yield what cannot be true together."""
    names = config.deploy[config.app]
    where: Key = ("deploy", config.app)
    if ALL_SITES in names and len(names) > 1:
        yield where, f"{ALL_SITES} stands alone: it is every site"
    for key, listed in ((where, names), (("mandatory_sites",), config.mandatory_sites)):
        for name in sorted({name for name in listed if listed.count(name) > 1}):
            yield key, f"{name} is there twice"
    if ALL_SITES in config.mandatory_sites:
        yield ("mandatory_sites",), "names of sites are needed; leave min_sites out to wait for all"
    fewest = config.min_sites
    if config.sites is not None:
        fewest = fewest or len(names)
        if fewest > len(names):
            yield ("min_sites",), f"{fewest} is more than the {len(names)} sites of deploy"
        for name in config.mandatory_sites:
            if name not in names:
                yield ("mandatory_sites",), f"{name} is not among the sites of deploy"
    for index, step in enumerate(config.workflow):
        yield from _contradictions_in_step(("workflow", index), step, fewest)


def _contradictions_in_step(where: Key, step: FedAvgStep, fewest: int | None) -> Iterator[_Finding]:
    if step.min_responses is None:
        if step.deadline is not None:
            yield (*where, "deadline"), "needs min_responses (how many are enough then): else a round waits for all"
    elif fewest is not None and step.min_responses > fewest:
        yield (
            (*where, "min_responses"),
            f"{step.min_responses} is more than the {fewest} sites that the job may start with",
        )


def parse_document(document: Document) -> JobConfig:
    """Check a parsed ``job.yaml`` as far as it can be without its folder.

    Raises:
        NotSupportedYet: a key or value that a later version will serve.
        BadInput: anything else that is wrong; both with ``file:line:col`` and the key.
    """
    if isinstance(document.value, dict):
        for key, what in _later(document.value):
            raise document.error(key, what, NotSupportedYet)
    config = document.validate(JobConfig)
    for key, what in _contradictions(config):
        raise document.error(key, what)
    return config


def parse_config(text: str, file_name: str) -> JobConfig:
    """Return what the text of a ``job.yaml`` says; errors as `parse_document`."""
    return parse_document(load_yaml(text, file_name))
