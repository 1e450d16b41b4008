"""Figures as a Markdown table for people, and as lines of JSON for comparisons."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["Figure", "append", "markdown"]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One thing that was measured.

    Args:
        name: short and stable, for comparisons over time.
        what: what it is, for people.
        unit: of the values: ``s``, ``ms``, ``MB/s``, ``MiB``.
        values: one for each run, in order.
        how: how it was measured.
        goal: what the project promises, with its unit; None where nothing is promised.
        load: load average of the machine when it was measured.
    """

    name: str
    what: str
    unit: str
    values: Sequence[float]
    how: str
    goal: str | None = None
    load: float | None = None

    @property
    def median(self) -> float:
        """The middle one of the values."""
        return statistics.median(self.values)

    def row(self) -> list[str]:
        """Return its cells in the table."""
        return [
            self.what,
            f"{_short(self.median)} {self.unit}",
            f"{_short(min(self.values))} to {_short(max(self.values))}" if len(self.values) > 1 else "",
            str(len(self.values)),
            self.goal or "",
            "" if self.load is None else f"{self.load:.1f}",
        ]

    def line(self, machine: Mapping[str, Any], moment: datetime) -> dict[str, Any]:
        """Return its line of JSON."""
        return {
            "schema_version": 1,
            "time": moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "values": [round(value, 6) for value in self.values],
            "how": self.how,
            "load": self.load,
            "machine": dict(machine),
        }


def _short(value: float) -> str:
    """Three digits that say something."""
    if value == 0 or value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def markdown(figures: Sequence[Figure], machine: Mapping[str, Any]) -> str:
    """Return the table, below the machine and above what each figure means."""
    head = ["what", "median", "range", "runs", "goal", "load"]
    rows = [figure.row() for figure in figures]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    table = [line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)]
    notes = [f"* {figure.what}: {figure.how}" for figure in figures]
    return "\n".join([described(machine), "", *table, "", *notes])


def described(machine: Mapping[str, Any]) -> str:
    """Return the machine in one line."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"Python {machine['python']}, {machine['filesystem']}, {machine['fsync_ms']} ms for a durable 4 KiB file; "
        f"commit {machine['commit']}"
    )


def append(path: Path, figures: Sequence[Figure], machine: Mapping[str, Any], moment: datetime) -> None:
    """Append one line for each figure."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(figure.line(machine, moment)) + "\n" for figure in figures)
