"""Every kind of fault that needs no more than processes and files, once: nothing lost, nothing doubled, the same bits."""

from __future__ import annotations

from tests.support.faults import check, federations, parametrized

__all__ = ["federations"]


@parametrized("plain")
def test_fault(federations, spec):
    check(federations, spec)
