"""JSON with comments, as a person writes it: ``#`` and ``//`` up to the end of the line, outside of strings."""

from __future__ import annotations

import json
import re
from typing import Final

from fedhelm.config.yaml_source import Document, load_yaml
from fedhelm.errors import BadInput

__all__ = ["load_commented"]

MAX_TEXT: Final = 256 * 1024
"""Characters of the longest text that is read."""

_TOKENS = re.compile(r'"(?:[^"\\\n]|\\.)*"?|(#|//)[^\n]*|\t')  # always a match: linear


def load_commented(text: str, where: str) -> Document:
    """Read a JSON text with comments; every part of it knows its line and column.

    Args:
        text: the content of the file.
        where: how messages call the file.

    Raises:
        BadInput: ``file:line:col: what``: no JSON, a key that is there twice, too long or too deep.
    """
    if len(text) > MAX_TEXT:
        raise BadInput(f"{where}: longer than {MAX_TEXT} characters")
    # A comment ends its line, so nothing that stays behind changes its place.
    plain = _TOKENS.sub(_plain, text.removeprefix("\ufeff"))
    try:
        json.loads(plain, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not JSON: {error}") from None
    return load_yaml(plain, where)  # all JSON is YAML: this one adds the places, and refuses what is there twice


def _plain(found: re.Match[str]) -> str:
    if found[1]:
        return ""
    return " " if found[0] == "\t" else found[0]  # YAML takes no tab at the beginning of a line


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")
