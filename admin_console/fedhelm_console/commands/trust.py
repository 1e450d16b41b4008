"""The command that hands over which certificates count no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fedhelm.admin.models import Revocations, Told
from fedhelm.errors import BadInput, ExitStatus, FedhelmError
from fedhelm_console import render
from fedhelm_console.context import Console
from fedhelm_console.registry import Arg, Command, Result

__all__ = ["TRUST_COMMANDS"]

TIMEOUT = 60.0

_MAX_BYTES = 4 * 1024 * 1024
_NAMED = 5


def revoke_certificates(
    console: Console,
    file: Annotated[str, Arg("file", "the signed list that `fedhelm pki revoke` wrote", metavar="FILE")],
) -> Result:
    """Hand the list of revoked certificates to every overseer; within 2 s nobody takes them any more."""
    path, data = _read(console, file)
    try:
        found = console.session.read_revocations(data)
    except FedhelmError as error:
        raise BadInput(f"{path}: {error.message}", hint=error.hint or "take state/revoked.json") from error
    named = ", ".join(found.names[:_NAMED]) + (
        f" and {len(found.names) - _NAMED} more" if len(found.names) > _NAMED else ""
    )
    what = f"version {found.version}, {render.counted(found.certificates, 'certificate')} of {named}"
    me = " You are among them." if found.own else ""
    console.confirm(f"Hand over the list of revoked certificates: {what}.{me}")
    told = console.session.revoke_certificates(data, timeout=console.limit(TIMEOUT))
    status = ExitStatus.OK if all(one.error is None for one in told) else ExitStatus.FAILED
    return Result(_data(found, told), "\n".join([what, *map(_line, told)]), status)


def _read(console: Console, text: str) -> tuple[Path, bytes]:
    """Return the file, under the current directory or under ``transfer/``, and what is in it."""
    given = Path(text).expanduser()
    places = [given] if given.is_absolute() else [Path.cwd() / given, console.transfer / given]
    path = next((place for place in places if place.exists()), places[0])
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read: {error.strerror}", hint="`fedhelm pki revoke` says where its list is"
        ) from error
    if len(data) > _MAX_BYTES:
        raise BadInput(f"{path} is larger than {_MAX_BYTES // 1024**2} MiB: not a list of revoked certificates")
    return path, data


def _line(one: Told) -> str:
    if one.error is not None:
        return f"{one.overseer}: {one.error.message}" + (f"\n  hint: {one.error.hint}" if one.error.hint else "")
    return f"{one.overseer}: {'in force' if one.taken else 'had it already'}"


def _data(found: Revocations, told: tuple[Told, ...]) -> dict[str, object]:
    return {
        "version": found.version,
        "certificates": found.certificates,
        "overseers": [
            {
                "name": one.overseer,
                "taken": one.taken,
                "error": None if one.error is None else {"code": one.error.code, "message": one.error.message},
            }
            for one in told
        ],
    }


TRUST_COMMANDS = (
    Command(
        "revoke_certificates",
        revoke_certificates,
        "hand the list of revoked certificates to every overseer",
        ("revoke_certificates state/revoked.json", "revoke_certificates revoked.json --yes"),
        grade=1,
        errors=("BAD_INPUT", "REFUSED", "NOT_AUTHORISED", "UNREACHABLE"),
    ),
)
