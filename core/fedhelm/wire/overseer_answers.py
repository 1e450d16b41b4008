"""What an overseer's HTTP answers and failures mean, for both clients; no I/O, and nothing heavy is imported."""

from __future__ import annotations

import dataclasses
import os
import ssl
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from fedhelm.config.kit import OverseerAddress
from fedhelm.errors import BadCertificate, FedhelmError, NoPrimary, ProtocolError, Unreachable, error_class
from fedhelm.wire.overseer_api import (
    REVOCATIONS_HEADER,
    ErrorBody,
    Event,
    HistoryEntry,
    RevocationsView,
    ServerView,
)

__all__ = [
    "EVENTS",
    "HISTORY",
    "SERVERS",
    "Answer",
    "Body",
    "HandedOver",
    "checked",
    "content_of",
    "failure",
    "headers",
    "parse",
    "parse_all",
    "path_of",
    "revocations_of",
    "unable",
    "unreachable",
    "who",
]

SERVERS = TypeAdapter(tuple[ServerView, ...])
HISTORY = TypeAdapter(tuple[HistoryEntry, ...])
EVENTS = TypeAdapter(tuple[Event, ...])

_ABOUT_US = ("CERTIFICATE", "UNKNOWN_CA")
"""Words of the TLS alerts with which the other side refuses our certificate."""

Body = BaseModel | bytes | None
"""What a request carries: a model, JSON that is sent as it is, or nothing."""

_M = TypeVar("_M", bound=BaseModel)
_T = TypeVar("_T")


class Answer(Protocol):
    """The part of an HTTP answer that both clients read."""

    @property
    def status_code(self) -> int:
        """The HTTP status."""

    @property
    def content(self) -> bytes:
        """The whole body."""


@dataclasses.dataclass(frozen=True)
class HandedOver:
    """What one overseer said to the list of revoked certificates: exactly one of ``view`` and ``error`` is set."""

    overseer: str
    view: RevocationsView | None = None
    error: FedhelmError | None = None


def who(address: OverseerAddress) -> str:
    """Return how messages call an overseer."""
    return f"{address.name} at {address.host}:{address.port}"


def path_of(address: OverseerAddress, path: str) -> str:
    """Return a route's path at this overseer."""
    return path if path == "/healthz" else address.api_root.rstrip("/") + path


def headers(body: Body) -> dict[str, str]:
    """Return the headers of a request with this body."""
    return {"content-type": "application/json"} if body is not None else {}


def content_of(body: Body) -> bytes | None:
    """Return what is sent of a body."""
    return body.model_dump_json().encode() if isinstance(body, BaseModel) else body


def revocations_of(headers: Mapping[str, str]) -> int | None:
    """Return the version of the list of revoked certificates that an answer names; None of an overseer of before."""
    said = headers.get(REVOCATIONS_HEADER, "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 20 else None


def unable(answer: Answer) -> str | None:
    """Return why this overseer cannot serve (its store does not answer, say), so that another is asked."""
    if answer.status_code < 500:
        return None
    try:
        told = ErrorBody.model_validate_json(answer.content)
    except ValidationError:
        return f"it answered {answer.status_code}"
    return None if told.code == NoPrimary.code else told.message


def checked(answer: Answer, address: OverseerAddress) -> bytes:
    """Return the answer's body, or raise the error it carries."""
    if answer.status_code < 400:
        return answer.content
    try:
        told = ErrorBody.model_validate_json(answer.content)
    except ValidationError:
        raise ProtocolError(f"overseer {address.name} answered {answer.status_code} without a reason") from None
    error: FedhelmError = error_class(told.code)(told.message, hint=told.hint)
    raise error


def parse(model: type[_M], data: bytes) -> _M:
    """Return a body as a model.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as exc:
        raise ProtocolError(f"the overseer's answer is not a {model.__name__}: {exc.errors()[0]['msg']}") from None


def parse_all(adapter: TypeAdapter[_T], data: bytes) -> _T:
    """The same for a list of models."""
    try:
        return adapter.validate_json(data)
    except ValidationError as exc:
        raise ProtocolError(f"the overseer's answer is malformed: {exc.errors()[0]['msg']}") from None


def failure(exc: BaseException, address: OverseerAddress) -> tuple[str, str]:
    """Return who did not answer, and why.

    Raises:
        BadCertificate: TLS failed over a certificate; another try would not help.
    """
    why = "no answer in time" if isinstance(exc, TimeoutError) else (str(exc) or type(exc).__name__)
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "verify_message", None) or cause.reason or ""
            if isinstance(cause, ssl.SSLCertVerificationError) or any(word in reason.upper() for word in _ABOUT_US):
                raise BadCertificate(
                    f"TLS with {who(address)} failed: {reason}",
                    hint="compare the kit's certificates, their dates, and this machine's clock",
                ) from None
        elif isinstance(cause, OSError) and cause.errno and not isinstance(cause, TimeoutError):
            why = os.strerror(cause.errno).lower()
        cause = cause.__cause__ or cause.__context__
    return who(address), why


def unreachable(failures: Sequence[tuple[str, str]]) -> Unreachable:
    """Return the error that says who was asked, and why each did not answer."""
    told = "; ".join(f"{name}: {why}" for name, why in failures) if failures else "the kit names none"
    error = Unreachable(f"no overseer answers ({told})", hint="is the overseer running? See its log.txt")
    error.tried = tuple(failures)
    return error
