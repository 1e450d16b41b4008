"""What escaped once, and is refused now: an input for each. Whoever mends another escape adds its input here."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["MENDED", "Mended"]

Change = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Mended:
    """``decoder`` let ``escape`` out when it ate its first seed after ``change``."""

    decoder: str
    escape: str
    change: Change


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
    """Change what is inside the first PEM block."""

    def outer(seed: bytes) -> bytes:
        first, *lines = seed.split(b"-----END")[0].strip().split(b"\n")
        last = first.replace(b"BEGIN", b"END")
        der = change(base64.b64decode(b"".join(lines)))
        return first + b"\n" + base64.encodebytes(der) + last + b"\n"

    return outer


def _position_version(value: Any) -> None:
    value["version"] = []


def _deep_fence(value: Any) -> None:
    value["fence"] = "[" * 100_000


def _state_position_version(value: Any) -> None:
    value["position"]["version"] = []


def _off_the_curve(der: bytes) -> bytes:
    at = der.index(POINT) + len(POINT)
    return der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :]


DEEP = these(b"[" * 100_000)
VERSION = bytes.fromhex("a003020102")
CURVE, POINT = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("03420004")

MENDED: tuple[Mended, ...] = (
    Mended("checkpoint: position", "TypeError in chain.from_json", edited(_position_version)),
    Mended("checkpoint: position", "RecursionError in chain.from_json", edited(_deep_fence)),
    Mended("checkpoint: blob", "TypeError in chain.from_json", edited(_state_position_version)),
    Mended("segment of lines and rounds", "RecursionError in segments._read", these(b"[" * 100_000 + b"\n")),
    Mended("error on the wire", "RecursionError in faults._from_metadata", DEEP),
    Mended(
        "error on the wire", "AssertionError outside our code", these(b'{"code":"CONFLICT","message":"","hint":[1]}')
    ),
    Mended("epoch on the wire", "ValueError in faults.epoch_of", these(b"9" * 5000)),
    Mended("run/epoch.json", "RecursionError in follow.load_epoch", DEEP),
    Mended(
        "run/epoch.json",
        "OverflowError in follow.load_epoch",
        these(b'{"project":"poc","cluster":"c","epoch":Infinity}'),
    ),
    Mended("run/orders.json", "RecursionError in orders.__init__", DEEP),
    Mended("run/servers.json", "RecursionError in roster.known_servers", DEEP),
    Mended("run/outbox: lines", "OverflowError in journal._entry", these(b'{"n":Infinity,"line":{}}\n')),
    Mended("run/outbox: result", "TypeError in outbox._load", edited(lambda value: value["id"].update(step=[]))),
    Mended("run/outbox: result", "OSError in outbox.from_json", edited(lambda value: value.update(file="a" * 5000))),
    Mended(
        "certificate: DER",
        "ValueError in identity.principal_from_certificate",
        replaced(b"\x06\x03U\x04\n\x0c\x06nvidia", b"\x06\x03U\x04\nV\x06nvidia"),
    ),
    Mended(
        "certificate: DER",
        "DuplicateExtension in identity.principal_from_certificate",
        replaced(bytes.fromhex("0603551d25"), bytes.fromhex("0603551d0f")),
    ),
    Mended(
        "certificate: DER", "InvalidVersion in identity.principal_from_der", replaced(VERSION, VERSION[:-1] + b"\x08")
    ),
    Mended("kit: rootCA.pem", "InvalidVersion in pki.load_roots", in_pem(replaced(VERSION, VERSION[:-1] + b"\x08"))),
    Mended(
        "certificate request",
        "InvalidVersion in requests.read_request",
        in_pem(replaced(b"\x02\x01\x00\x30", b"\x02\x01\x08\x30")),
    ),
    Mended(
        "kit: manifest of a folder",
        "UnicodeEncodeError in signing._read",
        edited(lambda value: value["files"].update({"\ud800": "0" * 64})),
    ),
    Mended("kit: configuration", "ValueError in kit.kit_from_json", edited(lambda value: value.update(store="a\0b"))),
    Mended("kit: fed_client.json", "ValueError in kit.kit_from_json", edited(lambda value: value.update(store="a\0b"))),
    Mended("kit: rootCA.pem", "UnsupportedAlgorithm in pki._verify", in_pem(replaced(CURVE, CURVE[:-1] + b"\x63"))),
    Mended("kit: rootCA.pem", "ValueError in pki._verify", in_pem(_off_the_curve)),
    Mended("workspace marker", "RecursionError in workspace.open", DEEP),
    Mended(
        "state/project.json", "TypeError in provisioned.last_prod", edited(lambda value: value.update(last_prod=[]))
    ),
    Mended("yaml: job.yaml", "ValueError in yaml_source.validate", these(b"app: 0x" + b"f" * 5000)),
    Mended("project.yml", "ValueError in yaml_source.validate", these(b"api_version: 0x" + b"f" * 5000)),
    Mended("project.yml: of FLARE", "ValueError in flare._short", these(b"builders:\n  - path: 0x" + b"f" * 5000)),
    Mended("download: list of files", "ValueError in transfer.receive", replaced(b"6437b3ac", b"6437\0\0ac")),
    Mended("console: metrics", "OverflowError in render._metrics", these(b'{"a":1' + b"0" * 400 + b"}")),
    Mended("console: metrics", "RecursionError in render._metrics", DEEP),
    Mended("backup.json", "RecursionError in project_backup.read_backup", DEEP),
    Mended("script: lines", "OverflowError in policy.rounded", replaced(b'"nan"', b"1" + b"0" * 400)),
)
