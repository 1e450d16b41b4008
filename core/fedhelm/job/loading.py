"""A job's folder, or its bundle, checked as a whole: the same rules before upload and at the server."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedhelm.config.yaml_source import Document, load_yaml
from fedhelm.errors import BadInput
from fedhelm.job import bundle
from fedhelm.job.model import JobConfig
from fedhelm.job.rules import parse_document

__all__ = ["JOB_FILE", "Job", "load_bundle", "load_job"]

JOB_FILE: Final = "job.yaml"


@dataclass(frozen=True)
class Job:
    """A checked job folder; ``files`` are the paths that travel, sorted."""

    config: JobConfig
    folder: Path
    files: tuple[str, ...]


def _check_files(config: JobConfig, document: Document, files: Collection[str]) -> None:
    if config.script_path not in files:
        scripts = [path.removeprefix(f"{config.app}/") for path in files if path.startswith(f"{config.app}/")]
        if not scripts:
            raise document.error(("deploy", config.app), f"there is no folder {config.app} with files in it")
        near = difflib.get_close_matches(config.script, scripts, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise document.error(("script",), f"there is no {config.script_path} in the job folder{hint}")
    if config.initial_model is not None and config.initial_model not in files:
        raise document.error(("initial_model",), f"there is no {config.initial_model} in the job folder")


def _check_model(document: Document, read: Callable[[], object]) -> None:
    try:
        read()
    except BadInput as wrong:
        raise document.error(("initial_model",), wrong.message) from None


def load_job(folder: Path) -> Job:
    """Read and check a job folder: what it says, and that everything it names is there.

    Raises:
        NotSupportedYet: a key that a later version will serve.
        BadInput: no such folder, no ``job.yaml``, a link that leads out, a wrong key or value (``file:line:col``), a
            script that is missing, an initial model that is missing or no safetensors file.
    """
    found = dict(bundle.members(folder))
    if JOB_FILE not in found:
        raise BadInput(f"{folder}: no {JOB_FILE} in the job folder")
    document = load_yaml(found[JOB_FILE], str(folder / JOB_FILE))
    config = parse_document(document)
    _check_files(config, document, found.keys())
    if config.initial_model is not None:
        from fedhelm.tensors.codec import read_header  # numpy only where a model comes along

        model = found[config.initial_model]
        _check_model(document, lambda: read_header(model))
    return Job(config, folder, tuple(sorted(found)))


def load_bundle(archive: Path) -> JobConfig:
    """Check a bundle from outside by the rules of `load_job`, without unpacking it.

    Raises:
        NotSupportedYet, BadInput: as `load_job`, or the archive is damaged or hostile.
    """
    places = bundle.index(archive)
    try:
        text = bundle.read_member(archive, JOB_FILE).decode()
    except UnicodeDecodeError:
        raise BadInput(f"{JOB_FILE}: not UTF-8 text") from None
    document = load_yaml(text, JOB_FILE)
    config = parse_document(document)
    _check_files(config, document, places.keys())
    if config.initial_model is not None:
        from fedhelm.tensors.codec import read_header

        name = config.initial_model
        offset, size = places[name]
        _check_model(document, lambda: read_header(archive, name, offset, size))
    return config
