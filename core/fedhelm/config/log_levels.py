"""``log.config``: how much each logger says. A level for a logger, and nothing else: no handlers, no code.

::

    # comment
    [levels]
    fedhelm = INFO
    fedhelm.wire = DEBUG

``startup/log.config`` is the project's; ``local/log.config``, in the same form, is the participant's own and wins.
"""

from __future__ import annotations

import configparser
import logging
import re
from collections.abc import Mapping
from typing import Final

from fedhelm.config.kit import Kit
from fedhelm.errors import BadInput

__all__ = ["LOG_CONFIG", "apply_levels", "levels_of", "parse_levels"]

LOG_CONFIG: Final = "log.config"

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")

_MAX_BYTES: Final = 64 * 1024
_LOGGER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}(\.[A-Za-z0-9_]{1,64}){0,9}")


def parse_levels(text: str, where: str) -> dict[str, int]:
    """Return logger -> level, as :mod:`logging` numbers them.

    Args:
        text: the content of the file.
        where: how messages call it.

    Raises:
        BadInput: not of the form above; the message names file, and line or logger.
    """
    reader = configparser.RawConfigParser(
        delimiters=("=",), comment_prefixes=("#", ";"), empty_lines_in_values=False, default_section=""
    )
    reader.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        reader.read_string(text, where)
    except configparser.MissingSectionHeaderError as error:
        raise BadInput(f"{where}:{error.lineno}: [levels] is missing above this line") from error
    except configparser.ParsingError as error:
        line = error.errors[0][0] if error.errors else 1
        raise BadInput(f"{where}:{line}: not of the form `LOGGER = LEVEL`") from error
    except configparser.Error as error:
        raise BadInput(f"{where}: {' '.join(error.message.split())}") from error
    if reader.sections() != ["levels"]:
        raise BadInput(f"{where}: one section is needed, [levels]")
    found = {}
    for logger, level in reader.items("levels"):
        if not _LOGGER.fullmatch(logger):
            raise BadInput(f"{where}: {logger!r} is not the name of a logger, such as fedhelm.wire")
        if level not in LEVELS:
            raise BadInput(f"{where}: {logger}: {level!r} is not one of {', '.join(LEVELS)}")
        found[logger] = getattr(logging, level)
    return found


def levels_of(kit: Kit) -> Mapping[str, int]:
    """Return what a participant's kit says, and its own file above that; nothing where there is no file.

    Raises:
        BadInput: a file is wrong.
    """
    found: dict[str, int] = {}
    for folder in (kit.startup, kit.local):
        path = folder / LOG_CONFIG
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
            text = data.decode()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: not UTF-8 text") from error
        if len(data) > _MAX_BYTES:
            raise BadInput(f"{path}: larger than {_MAX_BYTES // 1024} KiB")
        found |= parse_levels(text, str(path))
    return found


def apply_levels(kit: Kit) -> None:
    """Set the levels of this process's loggers; call it after :func:`fedhelm.log.setup`.

    Raises:
        BadInput: as :func:`levels_of`.
    """
    for logger, level in levels_of(kit).items():
        logging.getLogger(logger).setLevel(level)
