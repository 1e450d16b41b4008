"""A private key under a passphrase: PKCS 8 with PBES2, PBKDF2-HMAC-SHA256 and AES-256-CBC (RFC 8018), as openssl reads.

The library's own encryption of PKCS 8 stretches a passphrase by 2,048 rounds only, and lets nobody choose. Each guess
at the passphrase of a stolen file costs :data:`ROUNDS` here.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import textwrap
from typing import Final

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

__all__ = ["ROUNDS", "encrypted_pem"]

ROUNDS: Final = 600_000
"""Rounds of PBKDF2-HMAC-SHA256: what OWASP's password storage cheat sheet asks for."""

_SALT: Final = 16
_PBES2: Final = bytes.fromhex("06092a864886f70d01050d")
_PBKDF2: Final = bytes.fromhex("06092a864886f70d01050c")
_HMAC_SHA256: Final = bytes.fromhex("06082a864886f70d02090500")  # with its NULL parameter
_AES256_CBC: Final = bytes.fromhex("060960864801650304012a")


def encrypted_pem(pkcs8: bytes, passphrase: bytes) -> bytes:
    """Return a private key, ``PrivateKeyInfo`` in DER, as ``ENCRYPTED PRIVATE KEY`` in PEM.

    Keys that one process encrypts under one passphrase share the salt, so that a project's many kept keys cost one
    stretching; who guesses at one of them guesses at all in any case. Each has an IV of its own.
    """
    salt, key = _stretched(passphrase)
    iv = os.urandom(16)
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES256(key), modes.CBC(iv)).encryptor()
    secret = encryptor.update(padder.update(pkcs8) + padder.finalize()) + encryptor.finalize()
    rounds = ROUNDS.to_bytes((ROUNDS.bit_length() // 8) + 1)  # with a sign bit, which is 0
    stretching = _sequence(_PBKDF2, _sequence(_octets(salt), _der(0x02, rounds), _der(0x30, _HMAC_SHA256)))
    algorithm = _sequence(_PBES2, _sequence(stretching, _sequence(_AES256_CBC, _octets(iv))))
    lines = textwrap.wrap(base64.b64encode(_sequence(algorithm, _octets(secret))).decode(), 64)
    framed = ["-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, "-----END ENCRYPTED PRIVATE KEY-----", ""]
    return "\n".join(framed).encode()


@functools.lru_cache(maxsize=4)
def _stretched(passphrase: bytes) -> tuple[bytes, bytes]:
    salt = os.urandom(_SALT)
    return salt, hashlib.pbkdf2_hmac("sha256", passphrase, salt, ROUNDS, 32)


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    long = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(long)]) + long + content


def _sequence(*parts: bytes) -> bytes:
    return _der(0x30, b"".join(parts))


def _octets(content: bytes) -> bytes:
    return _der(0x04, content)
