"""Which blobs a log refers to, and which of them it needs: for those who check, copy or mend a whole store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from fedhelm.errors import BadInput
from fedhelm.persist.blobs import BlobRef
from fedhelm.persist.chain import checkpoint_owner
from fedhelm.persist.log import Batch

__all__ = ["Closed", "blobs_in", "needed"]

Closed = Callable[[Batch, Collection[str]], Collection[str]]
"""Given the whole log, returns those of some owners that may have been deleted. What closes an owner of a job is known
to the server alone; who does not say so takes every owner for open."""


def blobs_in(value: Any) -> Iterator[BlobRef]:
    """Yield every blob reference in a JSON value, whatever it is part of."""
    if isinstance(value, dict):
        if value.keys() == {"owner", "digest", "size"}:
            try:
                yield BlobRef.from_json(value)
            except BadInput:  # three keys by accident: an option of a job may be anything
                return
        for inner in value.values():
            yield from blobs_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from blobs_in(inner)


def needed(batch: Batch, kept: Iterable[Any], low_water: int, closed: Closed | None) -> list[BlobRef]:
    """Return the blobs that have to be in the store, in a fixed order.

    Args:
        batch: The log as a reader gets it.
        kept: Everything else that refers to blobs: bodies of kept records that the base covers.
        low_water: The newest mark's.
        closed: Which owners may be gone.
    """
    values = [batch.base.state if batch.base else {}, *kept, *(record.body for record in batch.records)]
    refs = {ref for value in values for ref in blobs_in(value)}
    oldest = checkpoint_owner(max(0, low_water - 1))
    owners = {ref.owner for ref in refs if ref.owner.startswith("jobs/")}
    gone = set(closed(batch, sorted(owners))) if closed else set()
    return sorted(
        (ref for ref in refs if ref.owner not in gone and (ref.owner in owners or ref.owner >= oldest)),
        key=lambda ref: (ref.owner, ref.digest),
    )
