"""``privacy.json``: what a site does to every result before it leaves, as its file says it.

The project's defaults are ``startup/privacy.json``, signed; the site's own is ``local/privacy.json``. Both apply, the
site's own last, so it can only take more away. JSON with comments (``#`` and ``//``)::

    {"format_version": "1.0",
     "filters": [{"type": "clip", "norm": 1.0}],            in this order, on every result
     "metrics": {"only": ["loss"], "digits": 3},            of results, and of streamed numbers
     "lines": ["scalar"],                                   kinds of lines that may leave
     "show_parameters": false}                              whether others see more than the filters' names
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Self

import pydantic

from fedhelm.config.json_source import load_commented
from fedhelm.config.yaml_source import Document
from fedhelm.errors import BadInput, NotSupportedYet

__all__ = [
    "LINE_KINDS",
    "PRIVACY_SAMPLE",
    "Clip",
    "Exclude",
    "Filter",
    "GaussianNoise",
    "KeepLargest",
    "Limits",
    "Metrics",
    "MinSamples",
    "PrivacyPolicy",
    "Weight",
    "told",
]

LINE_KINDS: Final = ("scalar", "text", "image", "log")
"""Kinds of lines that a script streams; what it prints is ``log``."""

_FORMAT: Final = "1.0"
_MAX_FILTERS: Final = 32

_Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
_Glob = Annotated[str, pydantic.Field(min_length=1, max_length=200)]


class _Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class MinSamples(_Frozen):
    """Nothing leaves of a result whose weight, as the script gave it, is below ``samples``; evaluations too."""

    type: Literal["min_samples"]
    samples: _Positive


class Weight(_Frozen):
    """The weight that leaves is ``value``, whatever the script gave: the number of samples stays here."""

    type: Literal["weight"]
    value: _Positive


class Limits(_Frozen):
    """An update of more ``tensors``, or of more ``bytes`` of elements, does not leave."""

    type: Literal["limits"]
    tensors: Annotated[int, pydantic.Field(ge=1)] | None = None
    bytes: Annotated[int, pydantic.Field(ge=1)] | None = None


class Exclude(_Frozen):
    """Tensors whose name one of these globs matches leave as the round's model has them; ``*`` also matches dots."""

    type: Literal["exclude"]
    tensors: Annotated[tuple[_Glob, ...], pydantic.Field(min_length=1, max_length=1000)]


class Clip(_Frozen):
    """The change of all float tensors together is scaled down to an L2 norm of at most ``norm``."""

    type: Literal["clip"]
    norm: _Positive


class GaussianNoise(_Frozen):
    """As ``clip``, then noise of the standard deviation ``norm * multiplier`` is added to each float element."""

    type: Literal["gaussian_noise"]
    norm: _Positive
    multiplier: _Positive


class KeepLargest(_Frozen):
    """Only the ``share`` of elements that changed most leave changed, each by at most ``limit``."""

    type: Literal["keep_largest"]
    share: Annotated[float, pydantic.Field(gt=0, le=1)]
    limit: _Positive | None = None


Filter = MinSamples | Weight | Limits | Exclude | Clip | GaussianNoise | KeepLargest


_TYPES: Final = ("min_samples", "weight", "limits", "exclude", "clip", "gaussian_noise", "keep_largest")


class Metrics(_Frozen):
    """Of metrics and streamed numbers only those that a glob of ``only`` matches leave, with so many ``digits``."""

    only: Annotated[tuple[_Glob, ...], pydantic.Field(max_length=1000)] | None = None
    digits: Annotated[int, pydantic.Field(ge=1, le=15)] | None = None

    def admits(self, name: str) -> bool:
        """Tell whether this metric may leave."""
        return self.only is None or any(fnmatch.fnmatchcase(name, one) for one in self.only)

    def rounded(self, value: float) -> float:
        """Return a number with the significant digits that may leave; what is not finite stays."""
        return value if self.digits is None or not math.isfinite(value) else float(f"{value:.{self.digits - 1}e}")


class _File(_Frozen):
    format_version: str
    filters: tuple[Annotated[Filter, pydantic.Field(discriminator="type")], ...] = ()
    metrics: Metrics | None = None
    lines: tuple[Literal["scalar", "text", "image", "log"], ...] | None = None
    show_parameters: bool = True


def _check_types(document: Document) -> None:
    filters = document.value.get("filters")
    for place, one in enumerate(filters if isinstance(filters, list) else []):
        type_ = one.get("type") if isinstance(one, dict) else None
        if type_ in _TYPES:
            continue
        known = ", ".join(_TYPES)
        if type_ is None:
            raise document.error(("filters", place), f"a filter is an object with a type; there is {known}")
        near = difflib.get_close_matches(str(type_), _TYPES, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise document.error(("filters", place, "type"), f"unknown filter {type_!r:.60}{meant}; there is {known}")


@dataclasses.dataclass(frozen=True)
class PrivacyPolicy:
    """What a site does to all that leaves it; the empty one does nothing.

    Attributes:
        filters: in their order.
        metrics: rules that must all admit a metric.
        lines: the kinds of a script's lines that may leave.
        show_parameters: whether others see more of the filters than their types.
    """

    filters: tuple[Filter, ...] = ()
    metrics: tuple[Metrics, ...] = ()
    lines: frozenset[str] = frozenset(LINE_KINDS)
    show_parameters: bool = True

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """Read a file.

        Args:
            text: its content.
            where: how messages call it; its path.

        Raises:
            BadInput: ``file:line:col: key: what is wrong``, the first mistake.
        """
        document = load_commented(text, where)
        if isinstance(document.value, dict):
            for key in ("scopes", "default_scope"):
                if key in document.value:
                    what = "there are no scopes: filters apply to every job of this site"
                    raise document.error((key,), what, NotSupportedYet)
            _check_types(document)
        try:
            file = document.validate(_File)
        except BadInput as error:
            raise BadInput(error.message.split("\n", 1)[0]) from None
        if file.format_version != _FORMAT:
            raise document.error(("format_version",), f'this program reads "{_FORMAT}"')
        if len(file.filters) > _MAX_FILTERS:
            raise document.error(("filters",), f"{len(file.filters)} filters are more than {_MAX_FILTERS}")
        for place, one in enumerate(file.filters):
            if isinstance(one, Limits) and one.tensors is None and one.bytes is None:
                raise document.error(("filters", place), "limits needs tensors, bytes, or both")
        return cls(
            file.filters,
            () if file.metrics is None else (file.metrics,),
            frozenset(LINE_KINDS if file.lines is None else file.lines),
            file.show_parameters,
        )

    @classmethod
    def of_texts(cls, texts: Sequence[tuple[str, str]]) -> Self:
        """Return what several files say together, each applied after the one before.

        Args:
            texts: how messages call the file, and its content.

        Raises:
            BadInput: as `parse`.
        """
        whole = cls()
        for where, text in texts:
            whole = whole.followed_by(cls.parse(text, where))
        return whole

    def followed_by(self, other: Self) -> Self:
        """Return the policy of which both apply, ``other`` last: nothing that one takes away comes back."""
        return dataclasses.replace(
            self,
            filters=(*self.filters, *other.filters),
            metrics=(*self.metrics, *other.metrics),
            lines=self.lines & other.lines,
            show_parameters=self.show_parameters and other.show_parameters,
        )

    def describe(self) -> tuple[str, ...]:
        """Return all that is done as others may see it: filters in their order, rules for metrics and lines last."""
        lines = {"only": sorted(self.lines)}
        rule = () if self.lines == frozenset(LINE_KINDS) else (told("lines", lines, self.show_parameters),)
        return (*self.describe_result(tensors=True), *rule)

    def describe_result(self, *, tensors: bool) -> tuple[str, ...]:
        """Return what is done to one result, as others may see it.

        Args:
            tensors: whether it has any; those of an evaluation are metrics alone.
        """
        show = self.show_parameters
        filters = (one for one in self.filters if tensors or isinstance(one, MinSamples | Weight))
        return (
            *(told(one.type, one.model_dump(exclude={"type"}, exclude_none=True), show) for one in filters),
            *(told("metrics", rule.model_dump(exclude_none=True), show) for rule in self.metrics),
        )

    def outgoing_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of a result that may leave, as they may leave."""
        found = dict(metrics)
        for rule in self.metrics:
            found = {name: rule.rounded(value) for name, value in found.items() if rule.admits(name)}
        return found

    def outgoing_line(self, line: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a line of a script as it may leave; None: it stays."""
        if line["kind"] not in self.lines:
            return None
        value = line["value"]
        if line["kind"] == "scalar":
            for rule in self.metrics:
                if not rule.admits(line["tag"]):
                    return None
                value = rule.rounded(value) if isinstance(value, int | float) else value
        return {**line, "value": value}


def told(type_: str, parameters: Mapping[str, Any], show: bool) -> str:
    """Return a filter as ``type(name=value, ...)``, at most 200 characters; the type alone if ``show`` is false."""
    values = ", ".join(f"{name}={_short(value)}" for name, value in parameters.items())
    text = f"{type_}({values})" if show and values else type_
    text = "".join(one if one.isprintable() else "?" for one in text)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _short(value: Any) -> str:
    return "|".join(map(str, value)) if isinstance(value, tuple | list) else f"{value:.12g}"


PRIVACY_SAMPLE: Final = """\
{
  // What this site does to every result before it leaves, whatever a job asks. A sample: save it as privacy.json to use
  // it. Where the kit has startup/privacy.json, that applies first, and this file after it.
  // A change is for the next job. A mistake in it keeps the site from starting.
  "format_version": "1.0",

  // In this order. "The change" is what an update changes in the round's model.
  "filters": [
    // {"type": "min_samples", "samples": 50},          // nothing leaves of results of fewer samples
    // {"type": "weight", "value": 1},                  // the number of samples stays here
    // {"type": "limits", "tensors": 500, "bytes": 500000000},
    // {"type": "exclude", "tensors": ["head.*"]},      // these leave as the round's model has them
    // {"type": "clip", "norm": 1.0},                   // the L2 norm of the change
    // {"type": "gaussian_noise", "norm": 1.0, "multiplier": 0.8},   // clips, then adds noise
    // {"type": "keep_largest", "share": 0.1, "limit": 0.01}
  ],

  // Of results, and of streamed numbers: which may leave (globs), and with how many significant digits.
  // "metrics": {"only": ["loss", "accuracy"], "digits": 3},

  // Which lines of a script may leave: scalar, text, image, log (what it prints, and its messages when it fails).
  // "lines": ["scalar"],

  // Whether others see the filters' numbers too, or their names only.
  "show_parameters": true
}
"""
"""A file that changes nothing, and shows all there is."""
