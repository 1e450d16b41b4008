"""Every decoder of outside data. A new one is one line in the module of its kind; a new kind is one line here."""

from __future__ import annotations

from pathlib import Path

from tests.hostile import handlers, jobs_and_models, participants, provisioned, sites, store, wire
from tests.hostile.decoder import Decoder

__all__ = ["decoders"]

KINDS = (jobs_and_models, store, wire, participants, provisioned, sites, handlers)


def decoders(place: Path) -> tuple[Decoder, ...]:
    """Return them all; the files that they need are made in ``place``."""
    found = []
    for kind in KINDS:
        folder = place / kind.__name__.rpartition(".")[2]
        folder.mkdir(parents=True, exist_ok=True)
        found += kind.decoders(folder)
    names = [one.name for one in found]
    assert len(set(names)) == len(names), names
    return tuple(found)
