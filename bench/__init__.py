"""Measurements with real processes; `python -m bench`. Figures are printed and kept, never asserted in a test."""
