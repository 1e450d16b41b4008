"""Workflows and aggregators: what a round waits for, and what becomes of its contributions.

Nothing here knows a transport, a clock or a store: workflows are pure decisions over values, and aggregators read
bytes through a two-method protocol.
"""

from __future__ import annotations

__all__: list[str] = []
