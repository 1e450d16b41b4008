"""Certificates that count no longer: a list with a rising version, signed by the project's root, small and read whole.

Whoever gets the list verifies it against its own kit's root, so nobody who passes it on has to be trusted. It names
project and cluster, so that no other federation's list can be passed off as this one's.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

from fedhelm.errors import BadCertificate, KitError
from fedhelm.plain_json import NotPlainJson, parse_plain
from fedhelm.security.pki import CertificateAuthority, verify_by_root

__all__ = ["MAX_BYTES", "RevocationList", "Revoked"]

MAX_BYTES: Final = 4 * 1024 * 1024
"""Largest list that is read: some 20,000 certificates."""

_FORMAT: Final = 1
_MAX_DEPTH: Final = 8
_DOMAIN: Final = b"fedhelm revocations\n"  # a signature over anything else cannot be passed off as one of these
_SERIAL: Final = re.compile(r"[1-9a-f][0-9a-f]{0,39}")
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")
_KEYS: Final = {"format", "project", "cluster", "version", "issued", "entries", "signature"}


@dataclasses.dataclass(frozen=True)
class Revoked:
    """One certificate that counts no longer.

    Attributes:
        serial: the certificate's, hex in lower case.
        role: of whom it was.
        name: of whom it was.
        at: when it was revoked, ISO 8601 UTC with milliseconds.
        reason: why, in the administrator's words.
    """

    serial: str
    role: str
    name: str
    at: str
    reason: str


@dataclasses.dataclass(frozen=True)
class RevocationList:
    """All certificates of one federation that were revoked.

    Attributes:
        project: the project's name.
        cluster: the federation's id.
        version: rises with every change; 0 is the empty list that nobody signed.
        issued: when it was signed, ISO 8601 UTC with milliseconds.
        entries: what was revoked.
    """

    project: str
    cluster: str
    version: int = 0
    issued: str = ""
    entries: tuple[Revoked, ...] = ()

    @cached_property
    def _by_serial(self) -> Mapping[str, Revoked]:
        return {one.serial: one for one in self.entries}

    def revoked(self, serial: str) -> Revoked | None:
        """Return the entry of the certificate with this serial (hex, lower case); None if it still counts."""
        return self._by_serial.get(serial)

    def newer_than(self, other: RevocationList | None) -> bool:
        """Tell whether this list replaces ``other``; an older one and one of the same version do not."""
        return other is None or self.version > other.version

    def with_revoked(self, new: tuple[Revoked, ...], issued: str) -> RevocationList:
        """Return the next version, which has these entries too; who is listed already stays as listed."""
        known = {one.serial for one in self.entries}
        added = tuple(one for one in new if one.serial not in known)
        return dataclasses.replace(self, version=self.version + 1, issued=issued, entries=(*self.entries, *added))

    def to_bytes(self, authority: CertificateAuthority) -> bytes:
        """Return the signed list as JSON."""
        body = _body_of(self)
        signature = base64.b64encode(authority.sign(_signed_bytes(body))).decode()
        return json.dumps({**body, "signature": signature}, indent=2).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes, root_pem: bytes, project: str, cluster: str) -> RevocationList:
        """Read a signed list.

        Args:
            data: the list, from whomever it came.
            root_pem: the content of the reader's own ``rootCA.pem``.
            project: the reader's project.
            cluster: the reader's federation.

        Raises:
            KitError: not a list, not signed by one of these roots, or of another project or cluster.
        """
        body = _parse_json(data)
        found = _from_body(body)
        signature = _signature(body)
        try:
            good = verify_by_root(root_pem, signature, _signed_bytes(_body_of(found)))
        except BadCertificate as error:
            raise KitError(f"the list of revoked certificates cannot be verified: {error}") from error
        if not good:
            raise KitError("the list of revoked certificates was not signed by this project's root")
        if (found.project, found.cluster) != (project, cluster):
            raise KitError(
                f"the list of revoked certificates is of project {found.project!r}, cluster {found.cluster!r}, "
                f"not of {project!r}, {cluster!r}"
            )
        return found


def _body_of(revocations: RevocationList) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "project": revocations.project,
        "cluster": revocations.cluster,
        "version": revocations.version,
        "issued": revocations.issued,
        "entries": [dataclasses.asdict(one) for one in revocations.entries],
    }


def _signed_bytes(body: Mapping[str, Any]) -> bytes:
    return _DOMAIN + json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _wrong(what: str) -> KitError:
    return KitError(f"not a list of revoked certificates: {what}")


def _parse_json(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise _wrong(f"{len(data)} bytes, at most {MAX_BYTES} are read")
    try:
        body: Any = parse_plain(data, max_depth=_MAX_DEPTH)
    except NotPlainJson as error:
        raise _wrong(f"it cannot be read as JSON: {error}") from error
    if not isinstance(body, dict) or set(body) != _KEYS or body["format"] != _FORMAT:
        raise _wrong(f"not an object of format {_FORMAT}")
    return body


def _signature(body: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(body["signature"], validate=True)
    except (ValueError, TypeError, binascii.Error) as error:
        raise _wrong("signature is not base64") from error


def _text(value: Any, key: str, limit: int = 1024) -> str:
    if not isinstance(value, str) or len(value) > limit or not value.isprintable():
        raise _wrong(f"{key} is not a text of at most {limit} characters")
    return value


def _time(value: Any, key: str) -> str:
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise _wrong(f"{key} is not a time")
    return value


def _entry(value: Any, index: int) -> Revoked:
    where = f"entries[{index}]"
    if not isinstance(value, dict) or set(value) != {"serial", "role", "name", "at", "reason"}:
        raise _wrong(f"{where} has other keys")
    serial = value["serial"]
    if not isinstance(serial, str) or not _SERIAL.fullmatch(serial):
        raise _wrong(f"{where}.serial is not a serial number")
    return Revoked(
        serial,
        _text(value["role"], f"{where}.role", 64),
        _text(value["name"], f"{where}.name", 256),
        _time(value["at"], f"{where}.at"),
        _text(value["reason"], f"{where}.reason"),
    )


def _from_body(body: Mapping[str, Any]) -> RevocationList:
    version, entries = body["version"], body["entries"]
    if type(version) is not int or not 0 < version < 2**63:
        raise _wrong("version is not a positive number")
    if not isinstance(entries, list):
        raise _wrong("entries is not a list")
    found = tuple(_entry(value, index) for index, value in enumerate(entries))
    if len({one.serial for one in found}) != len(found):
        raise _wrong("a serial number is listed twice")
    return RevocationList(
        _text(body["project"], "project", 256),
        _text(body["cluster"], "cluster", 64),
        version,
        _time(body["issued"], "issued"),
        found,
    )
