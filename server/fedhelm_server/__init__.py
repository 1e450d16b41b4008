"""The FL server: a small supervisor that keeps the lease, and its child that serves and writes the log."""

from __future__ import annotations

__all__: list[str] = []
