"""Typed, frozen configuration: timing, kits, YAML with positions."""
