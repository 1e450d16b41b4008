"""The console's commands."""

from __future__ import annotations

from fedhelm_console.commands.jobs import JOB_COMMANDS
from fedhelm_console.commands.local import LOCAL_COMMANDS
from fedhelm_console.commands.operate import OPERATE_COMMANDS
from fedhelm_console.commands.system import SYSTEM_COMMANDS
from fedhelm_console.commands.trust import TRUST_COMMANDS
from fedhelm_console.registry import Registry

__all__ = ["REGISTRY"]

REGISTRY = Registry([*JOB_COMMANDS, *SYSTEM_COMMANDS, *OPERATE_COMMANDS, *TRUST_COMMANDS, *LOCAL_COMMANDS])
"""Every command of this version."""
