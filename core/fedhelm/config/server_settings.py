"""A server's own settings, in ``local/server.json`` of its kit: not signed, read at its start."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedhelm.errors import BadInput

__all__ = ["SETTINGS_FILE", "LocalSettings", "read_settings"]

SETTINGS_FILE: Final = "server.json"
_UNLEASED: Final = ("serve", "stop")


@dataclass(frozen=True)
class LocalSettings:
    """What the file may say.

    Attributes:
        unleased: ``serve`` (default) or ``stop``: what a primary does when its lease is over and no overseer answers.
        metrics_port: where figures for Prometheus are served; None: nowhere.
    """

    unleased: str = "serve"
    metrics_port: int | None = None

    @property
    def stop_when_unleased(self) -> bool:
        """Whether a primary ends rather than serve without a lease."""
        return self.unleased == "stop"


def read_settings(local: Path) -> LocalSettings:
    """Return the settings in ``local/server.json``, the defaults when there is no such file.

    Raises:
        BadInput: not a JSON object, an unknown key or a wrong value; the message names file and key.
    """
    path = local / SETTINGS_FILE
    try:
        data: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        return LocalSettings()
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: not a JSON object")
    unknown = sorted(set(data) - {"unleased", "metrics_port"})
    if unknown:
        raise BadInput(f"{path}: unknown: {', '.join(unknown)}", hint="it may say unleased and metrics_port")
    unleased, port = data.get("unleased", "serve"), data.get("metrics_port")
    if unleased not in _UNLEASED:
        raise BadInput(f"{path}: unleased is {unleased!r}, it must be one of {', '.join(_UNLEASED)}")
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536):
        raise BadInput(f"{path}: metrics_port is {port!r}, it must be a port number")
    return LocalSettings(unleased, port)
