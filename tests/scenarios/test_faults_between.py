"""Every kind of fault of networks, disks, clocks and several overseers, once; what a machine cannot do is skipped."""

from __future__ import annotations

from tests.support.faults import check, federations, parametrized, specs

__all__ = ["federations"]


@parametrized("three", "wired", "mounted", "small-disk", "pair", "clocks")
def test_fault(federations, spec):
    check(federations, spec)


def test_every_variant_is_in_one_of_the_two_files():
    everything = specs("plain", "three", "wired", "mounted", "small-disk", "pair", "clocks")
    assert {spec.kind.name for spec in everything} == {spec.kind.name for spec in _all()}


def _all():
    from bench.faults.laboratory import VARIANTS

    return specs(*VARIANTS)
