"""Protocols between processes of one machine: standard library only."""
