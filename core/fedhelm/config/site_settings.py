"""A site's own settings, in ``local/site.json`` of its kit: JSON with comments, not signed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedhelm.config.json_source import load_commented
from fedhelm.errors import BadInput

__all__ = ["SITE_SETTINGS", "SiteSettings", "read_site_settings"]

SITE_SETTINGS: Final = "site.json"
"""Name of the file in ``local/``."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


@dataclass(frozen=True)
class SiteSettings:
    """What the file may say.

    Attributes:
        environment: names of variables of the agent's environment that jobs' scripts get besides the usual ones.
    """

    environment: tuple[str, ...] = ()


def read_site_settings(local: Path) -> SiteSettings:
    """Return what ``local/site.json`` says; the defaults where there is none.

    Raises:
        BadInput: a mistake in it, with file, line and column.
    """
    path = local / SITE_SETTINGS
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return SiteSettings()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    document = load_commented(text, str(path))
    if not isinstance(document.value, dict):
        raise BadInput(f"{document.where()}: an object {{...}} is needed")
    for key in document.value:
        if key != "environment":
            raise document.error((key,), "unknown key; there is environment")
    names = document.value.get("environment", [])
    if not isinstance(names, list):
        raise document.error(("environment",), "a list of names is needed")
    for place, name in enumerate(names):
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise document.error(("environment", place), "the name of a variable is needed, such as DATA_ROOT")
    return SiteSettings(tuple(names))
