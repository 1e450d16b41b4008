"""One request to an overseer's application as uvicorn makes it; what is read of it, and when, is the test's to see."""

from __future__ import annotations

import asyncio
import dataclasses
import json

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding


@dataclasses.dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes
    read: bool  # whether anything of the request's body was asked for

    @property
    def told(self):
        return self.status, json.loads(self.body)["code"]

    @property
    def message(self):
        return json.loads(self.body)["message"]


def der_of(kit):
    return x509.load_pem_x509_certificate(kit.cert.read_bytes()).public_bytes(Encoding.DER)


def ends_of(kit):
    return x509.load_pem_x509_certificate(kit.cert.read_bytes()).not_valid_after_utc


async def request(app, kit, method, path, body=b"", *, headers=(), heard=lambda _piece: None):
    """Ask ``app`` with the certificate of ``kit`` (None: without one); ``heard`` gets each piece of the answer."""
    told = {"read": False, "body": b""}
    never = asyncio.Event()

    async def receive():
        if told["read"]:
            await never.wait()  # the caller stays, and says no more
        told["read"] = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            told["status"] = message["status"]
            told["headers"] = {key.decode(): value.decode() for key, value in message["headers"]}
        else:
            told["body"] += message.get("body", b"")
            heard(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path.partition("?")[0],
        "raw_path": path.partition("?")[0].encode(),
        "query_string": path.partition("?")[2].encode(),
        "root_path": "",
        "headers": [(b"host", b"overseer"), (b"content-type", b"application/json"), *headers],
        "client": ("192.0.2.7", 4711),
        "server": ("127.0.0.1", 8443),
        "extensions": {"tls": {"client_cert_der": None if kit is None else der_of(kit)}},
    }
    await app(scope, receive, send)
    return Answered(told["status"], told["headers"], told["body"], told["read"])
