"""JSON that was written elsewhere, or by a process that a power cut ended: bounded, plain, and with one way to fail.

``json.loads`` alone raises ``RecursionError`` for lists in lists in lists, takes ``NaN`` and ``1e999`` (from which
``int()`` raises ``OverflowError``), and of a key that is there twice keeps the second.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, NoReturn

__all__ = ["MAX_DEPTH", "MAX_SIZE", "NotPlainJson", "parse_plain"]

MAX_SIZE: Final = 64 * 1024 * 1024
"""Bytes, or characters of a text, that are read unless the caller says how much it expects."""

MAX_DEPTH: Final = 100
"""Objects and lists inside one another; more than the bodies of the log's records may have."""


class NotPlainJson(ValueError):
    """What stands there is no JSON, or none that is read: too long, too deep, a key twice, a number that is none."""


def parse_plain(data: bytes | str, *, max_size: int = MAX_SIZE, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value of a JSON text: finite numbers, no key twice, within the bounds.

    Args:
        data: the text; bytes are UTF-8.
        max_size: bytes (characters of a text) that are read.
        max_depth: objects and lists inside one another.

    Raises:
        NotPlainJson: it is none; a ``ValueError``, so whoever catches that has caught all. One line says why.
    """
    if len(data) > max_size:
        raise NotPlainJson(f"longer than {max_size} bytes")
    try:
        text = data if isinstance(data, str) else data.decode()
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise NotPlainJson(f"nested deeper than {max_depth}") from None
    except json.JSONDecodeError as error:
        raise NotPlainJson(f"line {error.lineno} column {error.colno}: {error.msg}") from None
    except UnicodeDecodeError:
        raise NotPlainJson("not UTF-8") from None
    except NotPlainJson:
        raise
    except ValueError:  # int() of some thousand digits
        raise NotPlainJson("a number is too long") from None
    # Fewer brackets than levels: most texts need no look at each value.
    if text.count("{") + text.count("[") > max_depth:
        _check_depth(value, max_depth)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
        raise NotPlainJson(f"key {twice!r:.80} is there twice")
    return found


def _refuse(name: str) -> NoReturn:
    raise NotPlainJson(f"{name} is no JSON value")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotPlainJson(f"{text:.40} is too large")
    return number


def _check_depth(value: Any, most: int) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        parts = (one.values() if isinstance(one, dict) else one for one in level)
        level = [inner for part in parts for inner in part if isinstance(inner, dict | list)]
        if not level:
            return
    raise NotPlainJson(f"nested deeper than {most}")
