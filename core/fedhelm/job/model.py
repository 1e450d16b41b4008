"""What ``job.yaml`` says, typed and frozen. Unknown keys are refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import pydantic

from fedhelm.errors import BadInput
from fedhelm.ids import check_host_name
from fedhelm.job.bundle import wrong_path

__all__ = ["ALL_SITES", "FedAvgStep", "JobConfig"]

ALL_SITES: Final = "@ALL"

_Item = TypeVar("_Item")

_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d|)")
_MAX_DURATION: Final = 366 * 86400.0


def _seconds(value: Any) -> Any:
    """Return seconds for ``30s``, ``5m``, ``1.5h`` and plain numbers; the rest stays, for pydantic to refuse."""
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            raise ValueError("must be a duration such as 30s, 5m or 1h")
        value = float(found[1]) * _UNITS[found[2]]
    if isinstance(value, int | float) and not 0 < value <= _MAX_DURATION:
        raise ValueError("must be more than 0 and at most a year")
    return value


def _path(value: str) -> str:
    wrong = wrong_path(value)
    if wrong is not None:
        raise ValueError(f"{wrong}: a path inside the job folder is needed")
    if any(part.startswith(".") for part in value.split("/")):
        raise ValueError("hidden files stay behind when a job is sent")
    return value


def _script(value: str) -> str:
    if not value.endswith(".py"):
        raise ValueError("must be a Python file (.py)")
    return value


def _site(value: str) -> str:
    if value != ALL_SITES:
        try:
            check_host_name(value, "site name")
        except BadInput as wrong:
            raise ValueError(wrong.message) from None
    return value


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be made of finite numbers")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _json(part)
    return value


def _some(value: tuple[_Item, ...]) -> tuple[_Item, ...]:
    # min_length would also complain, a second time, where an entry is wrong
    if not value:
        raise ValueError("at least one entry is needed")
    return value


_FolderPath = Annotated[str, pydantic.AfterValidator(_path)]
_Sites = Annotated[tuple[Annotated[str, pydantic.AfterValidator(_site)], ...], pydantic.AfterValidator(_some)]


class _Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class FedAvgStep(_Frozen):
    """One step of the workflow: federated averaging. ``deadline`` is in seconds."""

    type: Literal["fedavg"]
    rounds: int = pydantic.Field(ge=1, le=1_000_000)
    min_responses: int | None = pydantic.Field(default=None, ge=1)
    deadline: Annotated[float | None, pydantic.BeforeValidator(_seconds)] = None
    evaluate: bool = False
    best_metric: str | None = pydantic.Field(default=None, min_length=1, max_length=200)


class JobConfig(_Frozen):
    """The whole of ``job.yaml``.

    Attributes:
        name: for people; a job's identity is its id.
        deploy: the app's folder and its sites: names, or ``@ALL`` for every site of the project.
        min_sites: with fewer connected the job waits; None: all that it is deployed to.
        mandatory_sites: without any one of these connected the job waits.
        script: the file in the app folder that each site runs.
        options: what the script finds in ``site.options``.
        initial_model: a safetensors file in the job folder, the first round's model; None: the sites begin.
        workflow: one step.
        durability: ``durable``: a contribution is in the servers' log before it is acknowledged; ``ephemeral``: the log
            has the rounds alone, and each site keeps its result until the round is closed. Neither loses finished work.
    """

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    deploy: dict[_FolderPath, _Sites] = pydantic.Field(min_length=1, max_length=1)
    min_sites: int | None = pydantic.Field(default=None, ge=1)
    mandatory_sites: tuple[Annotated[str, pydantic.AfterValidator(_site)], ...] = ()
    script: Annotated[_FolderPath, pydantic.AfterValidator(_script)] = "train.py"
    options: Annotated[dict[str, Any], pydantic.AfterValidator(_json)] = pydantic.Field(default_factory=dict)
    initial_model: _FolderPath | None = None
    workflow: Annotated[tuple[FedAvgStep, ...], pydantic.AfterValidator(_some)]
    durability: Literal["durable", "ephemeral"] = "durable"

    @property
    def app(self) -> str:
        """The folder that holds the script."""
        return next(iter(self.deploy))

    @property
    def sites(self) -> tuple[str, ...] | None:
        """The sites it is deployed to, sorted; None: every site of the project."""
        names = self.deploy[self.app]
        return None if ALL_SITES in names else tuple(sorted(names))

    @property
    def script_path(self) -> str:
        """The script's path in the job folder."""
        return f"{self.app}/{self.script}"

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values, defaults included."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the config that `to_json` gave ``value`` for.

        Raises:
            BadInput: it did not.
        """
        try:
            return cls.model_validate_json(json.dumps(dict(value)), strict=True)
        except (pydantic.ValidationError, TypeError, ValueError) as error:
            raise BadInput(f"not the configuration of a job: {' '.join(str(error).split())}") from None
