"""Which contributions fit a round, by what their headers say. Pure: the same round gives the same answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fedhelm.learning.refusals import Undecided
from fedhelm.tensors.header import Header

__all__ = ["misfits"]

_Table = tuple[tuple[str, str, tuple[int, ...]], ...]


def misfits(headers: Mapping[str, Header], model: Header | None = None, members: int | None = None) -> dict[str, str]:
    """Return site -> why its tensors do not fit: other names, types or shapes. Where they lie in the file is nothing.

    They have to be those of the round's model. Where more than half of the round's members agree on others, these
    count: the job's script may well answer with another type than it was given. Without a model they have to be those
    of more than half of the contributions.

    Args:
        headers: of the contributions, by site.
        model: of the model that the round started from.
        members: how many sites the round was opened for; None: as many as there are contributions.

    Raises:
        Undecided: there is no model, and no more than half agree: nobody can tell whose fault it is.
    """
    table_of = {header: _table(header) for header in headers.values()}
    tables = {site: table_of[header] for site, header in headers.items()}
    if not tables:
        return {}
    common, count = Counter(tables[site] for site in sorted(tables)).most_common(1)[0]
    agreed = headers[next(site for site in sorted(tables) if tables[site] == common)]
    if model is not None and 2 * count <= (members or len(headers)):
        expected, whose = model, "the round's model"
    elif 2 * count > len(headers):
        expected, whose = agreed, "most contributions"
    else:
        one = min(tables)
        other = next(site for site in sorted(tables) if tables[site] != tables[one])
        wrong = _difference(headers[one], headers[other])
        raise Undecided(f"the contributions of {one} and {other} do not fit one another: {wrong}", hint=_HINT)
    wanted = _table(expected)
    return {
        site: f"does not fit {whose}: {_difference(expected, headers[site])}"
        for site in sorted(tables)
        if tables[site] != wanted
    }


_HINT = "a job with an initial_model has a model that every contribution must fit"


def _table(header: Header) -> _Table:
    return tuple(sorted((entry.name, entry.dtype, entry.shape) for entry in header))


def _difference(expected: Header, found: Header) -> str | None:
    """Say in which tensor they differ, with both in one layout."""
    return _laid_out(expected).difference(_laid_out(found))


def _laid_out(header: Header) -> Header:
    return Header.of((entry.name, entry.dtype, entry.shape) for entry in header)
