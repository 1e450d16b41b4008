"""How a participant comes to its audit trail, and what it writes of a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fedhelm.clock import Clock
from fedhelm.config.json_source import load_commented
from fedhelm.config.kit import Kit
from fedhelm.errors import BadInput, FedhelmError, NotAuthorised
from fedhelm.security.audit import AUDIT_FILE, MAX_BYTES, AuditFile, AuditTrail
from fedhelm.security.audit_lines import Entry, Outcome
from fedhelm.security.audit_memory import MEMORY_FILE
from fedhelm.security.identity import Principal
from fedhelm.security.syslog import SyslogSink

__all__ = ["AUDIT_SETTINGS", "AuditSettings", "entry_of", "open_trail", "read_audit_settings"]

AUDIT_SETTINGS: Final = "audit.json"
"""Name of the file in ``local/``: JSON with comments, as :class:`AuditSettings`."""

_MOST: Final = {"max_mb": 65536, "keep": 100_000}


@dataclasses.dataclass(frozen=True)
class AuditSettings:
    """What ``local/audit.json`` may say.

    Attributes:
        syslog: where lines go besides: ``udp://HOST:PORT`` or ``tcp://HOST:PORT``.
        sync: whether each batch of lines is forced to the disk.
        max_mb: size in MiB from which on the file is set aside and a new one begun.
        keep: how many files that were set aside are kept; None: all of them.
    """

    syslog: str | None = None
    sync: bool = True
    max_mb: int = MAX_BYTES >> 20
    keep: int | None = None


def read_audit_settings(local: Path) -> AuditSettings:
    """Return what ``local/audit.json`` says; the defaults where there is none.

    Raises:
        BadInput: a mistake in it, with file, line and column.
    """
    path = local / AUDIT_SETTINGS
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return AuditSettings()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    document = load_commented(text, str(path))
    if not isinstance(document.value, dict):
        raise BadInput(f"{document.where()}: an object {{...}} is needed")
    for key, value in document.value.items():
        wrong = _wrong(key, value)
        if wrong is not None:
            raise document.error((key,), wrong)
    return AuditSettings(**document.value)


def _wrong(key: str, value: object) -> str | None:
    if key == "sync":
        return None if isinstance(value, bool) else "true or false is needed"
    if key in _MOST:
        good = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST[key]
        return None if good else f"a whole number from 1 to {_MOST[key]} is needed"
    if key != "syslog":
        return "unknown key; there is syslog, sync, max_mb, keep"
    if not isinstance(value, str):
        return "a text is needed"
    try:
        SyslogSink(value, "")
    except BadInput as error:
        return error.message
    return None


def open_trail(kit: Kit, *, clock: Clock | None = None) -> AuditTrail:
    """Open the participant's audit file, as its settings say. Call it once, in the one process that writes.

    Raises:
        AlreadyRunning: another process writes it.
        BadInput: a mistake in the settings.
        OSError: the file cannot be opened, read or written.
    """
    settings = read_audit_settings(kit.local)
    file = AuditFile(
        kit.root / AUDIT_FILE,
        clock=clock,
        sync=settings.sync,
        max_bytes=settings.max_mb << 20,
        keep=settings.keep,
        memory=kit.run / MEMORY_FILE,
    )
    if settings.syslog is None:
        return AuditTrail(file, clock=clock)
    sink = SyslogSink(settings.syslog, kit.name)
    return AuditTrail(file, [sink], clock=clock, on_close=sink.close)


def entry_of(
    action: str, by: Principal | None, object_: Mapping[str, object], error: BaseException | None = None
) -> Entry:
    """Return what is written of a call: allowed, denied with the rule, or failed with the error.

    Args:
        action: ``Service.Method`` or ``VERB /path``.
        by: who called; None where no certificate said so.
        object_: what it was about; what is None in it is left out.
        error: how it ended, where it did not succeed.
    """
    told = {key: value for key, value in object_.items() if value is not None}
    if error is None:
        return Entry(action, Outcome.ALLOWED, by, told)
    outcome = Outcome.DENIED if isinstance(error, NotAuthorised) else Outcome.FAILED
    # What else may be in an error that nobody foresaw is for the log, not for whoever reads this.
    why = f"{error.code}: {error.message}" if isinstance(error, FedhelmError) else type(error).__name__
    return Entry(action, outcome, by, told, why)
