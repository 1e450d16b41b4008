"""Which blobs a whole log allows to be gone: what the library's store tools ask of the server's rules."""

from __future__ import annotations

from collections.abc import Collection

from fedhelm.persist import Batch
from fedhelm_server.collector import collectable
from fedhelm_server.job_book import JobBook

__all__ = ["may_be_gone"]


def may_be_gone(batch: Batch, owners: Collection[str]) -> Collection[str]:
    """Return those of ``owners`` that a server may have deleted; see ``fedhelm.persist.references.Closed``."""
    book = JobBook() if batch.base is None else JobBook.restore(batch.base.state)
    for record in batch.records:
        book.apply(record)
    return collectable(book, owners)
