"""Identifiers and the patterns that names must match before anything touches a path."""

from __future__ import annotations

import re
import secrets
import time

from fedhelm.errors import BadInput

__all__ = [
    "JOB_ID",
    "SITE_NAME",
    "check_admin_name",
    "check_host_name",
    "check_job_id",
    "new_cluster_id",
    "new_incarnation",
    "new_job_id",
    "new_nonce",
    "new_request_id",
]

# ASCII order of the letters is their order of value, so ids sort by time.
_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
_EPOCH_2020 = 1_577_836_800

JOB_ID = re.compile(r"[2-7a-z]{12}")
SITE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?){0,8}")
_ADMIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}@[A-Za-z0-9]([A-Za-z0-9.-]{0,126}[A-Za-z0-9])?")


def _base32(value: int, digits: int) -> str:
    return "".join(_ALPHABET[(value >> (5 * i)) & 31] for i in reversed(range(digits)))


def new_job_id() -> str:
    """Return 12 lower-case base-32 characters: 40 bits of centiseconds since 2020, then 20 random bits.

    Ids made later sort later (to the centisecond).
    """
    centiseconds = int((time.time() - _EPOCH_2020) * 100) & ((1 << 40) - 1)
    return _base32(centiseconds << 20 | secrets.randbits(20), 12)


def new_request_id() -> str:
    """Return a fresh id for one write: a time-ordered job-id-like prefix and 40 more random bits."""
    return new_job_id() + _base32(secrets.randbits(40), 8)


def new_incarnation() -> str:
    """Return the random id of one child process of a server, or of one agent: 16 hex digits."""
    return secrets.token_hex(8)


def new_nonce() -> str:
    """Return the random id of one append attempt: 16 hex digits."""
    return secrets.token_hex(8)


def new_cluster_id() -> str:
    """Return the id of a provisioned federation: 32 hex digits."""
    return secrets.token_hex(16)


def check_job_id(value: str) -> str:
    """Return ``value`` if it is a job id.

    Raises:
        BadInput: it is not.
    """
    if not JOB_ID.fullmatch(value):
        raise BadInput(f"{value!r} is not a job id (12 characters of a-z and 2-7)")
    return value


def check_host_name(value: str, what: str = "name") -> str:
    """Return ``value`` if it may name an overseer, a server or a site.

    Raises:
        BadInput: it is not a lower-case host name of at most 253 characters.
    """
    if len(value) > 253 or not SITE_NAME.fullmatch(value):
        raise BadInput(f"{what} {value!r} is not a host name (lower-case letters, digits, '-' and '.')")
    return value


def check_admin_name(value: str) -> str:
    """Return ``value`` if it may name an admin.

    Raises:
        BadInput: it does not have the form of an address such as admin@nvidia.com.
    """
    if not _ADMIN_NAME.fullmatch(value) or ".." in value:
        raise BadInput(f"admin name {value!r} does not have the form name@domain")
    return value
