"""A deterministic simulation of a whole federation: real decisions, virtual time, network and disk (docs/ha.md, 9)."""
