"""Escapes that are known and not mended yet: an input for each, and what would mend it.

Each has to escape still: who mends one takes its line out. Whatever else escapes fails the tests.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["KNOWN", "Known"]

Change = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Known:
    """``decoder`` lets ``escape`` out when it eats its first seed after ``change``; ``mend`` says what to do."""

    decoder: str
    escape: str
    change: Change
    mend: str


def these(data: bytes) -> Change:
    return lambda _: data


def edited(edit: Callable[[Any], object]) -> Change:
    def change(seed: bytes) -> bytes:
        value = json.loads(seed)
        edit(value)
        return json.dumps(value).encode()

    return change


def replaced(old: bytes, new: bytes) -> Change:
    def change(seed: bytes) -> bytes:
        assert old in seed
        return seed.replace(old, new)

    return change


def in_pem(change: Change) -> Change:
    """Change what is inside a PEM block."""

    def outer(seed: bytes) -> bytes:
        first, *lines, last = [*seed.split(b"-----END")[0].strip().split(b"\n"), b"-----END CERTIFICATE-----"]
        der = change(base64.b64decode(b"".join(lines)))
        return first + b"\n" + base64.encodebytes(der) + last + b"\n"

    return outer


def _position_version(value: Any) -> None:
    value["version"] = []


def _state_position_version(value: Any) -> None:
    value["position"]["version"] = []


def _off_the_curve(der: bytes) -> bytes:
    at = der.index(POINT) + len(POINT)
    return der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :]


DEEP = these(b"[" * 100_000)
CURVE, POINT = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("03420004")

RECURSION = "except (..., RecursionError): json.loads raises it for lists in lists in lists"
INFINITE = "except (..., OverflowError): int(float('inf')) raises it"

KNOWN: tuple[Known, ...] = (
    # -- overseer, server, client, persist and wire -------------------------------------------------------------------
    Known(
        "checkpoint: position",
        "TypeError in chain.from_json",
        edited(_position_version),
        "Tip.from_json: `type(version) is not int or version not in READABLE_VERSIONS`",
    ),
    Known("checkpoint: blob", "TypeError in chain.from_json", edited(_state_position_version), "as above"),
    Known(
        "segment of lines and rounds",
        "RecursionError in segments._read",
        these(b"[" * 100_000 + b"\n"),
        f"_read: {RECURSION}",
    ),
    Known("error on the wire", "RecursionError in faults._from_metadata", DEEP, f"_from_metadata: {RECURSION}"),
    Known(
        "error on the wire",
        "AssertionError outside our code",
        these(b'{"code":"CONFLICT","message":"","hint":[1]}'),
        "_from_metadata: a hint that is no text is none",
    ),
    Known(
        "epoch on the wire",
        "ValueError in faults.epoch_of",
        these(b"9" * 5000),
        "epoch_of: a text of more than 16 digits is no epoch; int() refuses 4,300",
    ),
    Known("run/epoch.json", "RecursionError in follow.load_epoch", DEEP, f"load_epoch: {RECURSION}"),
    Known(
        "run/epoch.json",
        "OverflowError in follow.load_epoch",
        these(b'{"project":"poc","cluster":"c","epoch":Infinity}'),
        f"load_epoch: {INFINITE}",
    ),
    Known("run/orders.json", "RecursionError in orders.__init__", DEEP, f"Orders: {RECURSION}"),
    Known("run/servers.json", "RecursionError in roster.known_servers", DEEP, f"known_servers: {RECURSION}"),
    Known(
        "run/outbox: lines",
        "OverflowError in journal._entry",
        these(b'{"n":Infinity,"line":{}}\n'),
        f"_entry: {INFINITE}",
    ),
    Known(
        "run/outbox: result",
        "TypeError in outbox._load",
        edited(lambda value: value["id"].update(step=[])),
        "Saved.from_json: check that the id's parts are whole numbers and its kind a word, else ValueError",
    ),
    Known(
        "run/outbox: result",
        "OSError in outbox.from_json",
        edited(lambda value: value.update(file="a" * 5000)),
        "Saved.from_json: `file` must be the id's own name (key.safetensors), else ValueError",
    ),
    # -- the rest -----------------------------------------------------------------------------------------------------
    Known(
        "certificate: DER",
        "ValueError in identity.principal_from_certificate",
        replaced(b"\x06\x03U\x04\n\x0c\x06nvidia", b"\x06\x03U\x04\nV\x06nvidia"),
        "principal_from_certificate: `subject` may raise ValueError too: put it into the try",
    ),
    Known(
        "certificate: DER",
        "DuplicateExtension in identity.principal_from_certificate",
        replaced(bytes.fromhex("0603551d25"), bytes.fromhex("0603551d0f")),
        "principal_from_certificate: except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)",
    ),
    Known(
        "kit: manifest of a folder",
        "UnicodeEncodeError in signing._read",
        edited(lambda value: value["files"].update({"\ud800": "0" * 64})),
        "parse_manifest: a file's name that is not printable is refused",
    ),
    Known(
        "kit: configuration",
        "ValueError in kit.kit_from_json",
        edited(lambda value: value.update(store="a\0b")),
        "kit_from_json: except (BadInput, ValueError): a path with a NUL",
    ),
    Known(
        "kit: fed_client.json",
        "ValueError in kit.kit_from_json",
        edited(lambda value: value.update(store="a\0b")),
        "as above",
    ),
    Known(
        "kit: rootCA.pem",
        "UnsupportedAlgorithm in pki._verify",
        in_pem(replaced(CURVE, CURVE[:-1] + b"\x63")),
        "_verify: public_key() raises ValueError and UnsupportedAlgorithm: BadCertificate",
    ),
    Known("kit: rootCA.pem", "ValueError in pki._verify", in_pem(_off_the_curve), "as above"),
    Known("workspace marker", "RecursionError in workspace.open", DEEP, f"Workspace.open: {RECURSION}"),
    Known("backup.json", "RecursionError in project_backup.read_backup", DEEP, f"read_backup: {RECURSION}"),
)
