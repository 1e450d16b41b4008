"""Fedhelm: federated learning with an admin console and high availability.

Importing this package is cheap; names are loaded when they are first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["FedhelmError", "connect"]

_WHERE = {"FedhelmError": "fedhelm.errors", "connect": "fedhelm.admin"}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
