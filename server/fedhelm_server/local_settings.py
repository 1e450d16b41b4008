"""A server's own settings, in ``local/server.json`` of its kit; :mod:`fedhelm.config.server_settings` reads them."""

from __future__ import annotations

from fedhelm.config.server_settings import SETTINGS_FILE, LocalSettings, read_settings

__all__ = ["SETTINGS_FILE", "LocalSettings", "read_settings"]
