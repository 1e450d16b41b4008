"""Bodies of the overseer's HTTP API: frozen values, checked where they enter.

Every model ignores keys it does not know, so that neighbours may be one version apart. Numbers of records are slots of
the log: the last record read, ``-1`` before genesis. Ages and durations are seconds; times are ISO 8601 UTC.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "API_ROOT",
    "REVOCATIONS_HEADER",
    "ActivateRequest",
    "Announcement",
    "BeatRequest",
    "Check",
    "ErrorBody",
    "Event",
    "EventKind",
    "ExplainView",
    "Health",
    "HistoryEntry",
    "Intent",
    "LeaseState",
    "LeaseView",
    "OperateRequest",
    "PrimaryView",
    "PromoteReply",
    "PromoteRequest",
    "RegisterReply",
    "RegisterRequest",
    "ReleaseRequest",
    "RenewReply",
    "RenewRequest",
    "RevocationsView",
    "Role",
    "ServerState",
    "ServerView",
    "SystemView",
]

API_ROOT = "/api/v1"
"""Prefix of every route but ``/healthz``."""

REVOCATIONS_HEADER = "fedhelm-revocations"
"""Header of every answer: the version of the list of revoked certificates that this overseer has, 0 for none."""

LeaseState = Literal["never", "granted", "active", "released"]
Role = Literal["STANDBY", "PROMOTING", "ACTIVE", "DRAINING", "FENCED", "UNLEASED", "READONLY"]
ServerState = Literal["STANDBY", "PROMOTING", "ACTIVE", "DRAINING", "FENCED", "UNLEASED", "READONLY", "DOWN"]
EventKind = Literal[
    "grant",
    "active",
    "release",
    "failover",
    "promote",
    "member_up",
    "member_down",
    "member_added",
    "member_removed",
    "pause",
    "resume",
    "shutdown",
    "revoke",
    "alarm",
]

_Id = Annotated[str, Field(pattern=r"^[0-9A-Za-z._-]{1,64}$")]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,252}$")]
_Epoch = Annotated[int, Field(ge=0, lt=2**53)]
_Slot = Annotated[int, Field(ge=-1, lt=2**53)]
_StoreToken = Annotated[str, Field(pattern=r"^[0-9A-Za-z._~-]{1,255}$")]
_Reason = Annotated[str, Field(max_length=2000)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ErrorBody(_Body):
    """What every answer of 400 and above carries: ``code`` is one of :mod:`fedhelm.errors`."""

    code: str
    message: str
    hint: str | None = None


class Health(_Body):
    """Answer of ``/healthz``. ``audit``: why its lines cannot be written, so that commands are refused."""

    status: str
    project: str
    version: str
    audit: str | None = None


class Intent(_Body):
    """A planned switchover that an admin asked for."""

    target: _Name
    request_id: _Id


class LeaseView(_Body):
    """The lease row.

    ``version`` changes with every decision (grant, activate, release, intent), not with renewals; it is what
    ``wait_lease`` compares. ``log_seq`` is the last slot a holder reported: who promotes with a shorter log refuses.

    ``shutdown`` is the request id of the newest shutdown that an admin asked for. The last three say what the answering
    overseer sees of the servers, and do not change ``version``: ``log_version`` is the highest version of the log that
    all registered servers read; ``store_tokens`` the name that each live server made in the store (each of the others
    must see it there); ``standby_store_ok`` whether a live standby's write probe of the store succeeds.
    """

    version: int
    epoch: _Epoch
    holder: str | None = None
    incarnation: str | None = None
    renew_seq: int = 0
    state: LeaseState = "never"
    intent: Intent | None = None
    paused: bool = False
    log_seq: int = -1
    cause: str | None = None
    shutdown: str | None = None
    log_version: int = 1
    store_tokens: dict[str, str] = Field(default_factory=dict)
    standby_store_ok: bool = False


class Announcement(_Body):
    """What a server's signed kit says of it: the signed manifest, and the configuration file that it covers.

    An overseer whose own kit does not list the server takes name and addresses from here, once the signature is
    verified against the project's root; never from the body itself.
    """

    manifest: Annotated[str, Field(max_length=100_000)]
    config: Annotated[str, Field(max_length=1_000_000)]


class RegisterRequest(_Body):
    """A server announces its child.

    ``replaces`` is the incarnation whose process the supervisor has reaped: it may be taken for dead at once.
    ``cluster`` is the id in the genesis record it read, None while it could not read one. ``reason`` says why it is not
    ready, for people. ``log_versions`` are the versions of the log that its software reads.
    """

    incarnation: _Id
    replaces: _Id | None = None
    cluster: str | None = Field(default=None, max_length=64)
    log_epoch: _Epoch = 0
    log_seq: _Slot = -1
    unleased: bool = False
    store_ok: bool = True
    ready: bool = False
    role: Role = "STANDBY"
    reason: _Reason | None = None
    store_token: _StoreToken | None = None
    log_versions: Annotated[tuple[int, ...], Field(min_length=1, max_length=8)] = (1,)
    software: Annotated[str, Field(max_length=64)] = ""
    announcement: Announcement | None = None


class RegisterReply(_Body):
    """``accepted`` is False while another incarnation of the name is live, or for another cluster's log.

    With ``retry_after_s`` the caller tries again after that time; without, it will never be accepted as it is.
    """

    accepted: bool
    lease: LeaseView
    retry_after_s: float | None = None
    message: str | None = None


class BeatRequest(_Body):
    """Sign of life of a registered incarnation, every R. ``ready``: tails the log and may be granted the lease.

    ``reason`` says why not, or why ``store_ok`` is False. ``leaving``: the last one, this incarnation is about to end.
    ``log_versions`` and ``software`` as in the registration, for an overseer that was started after it.
    """

    incarnation: _Id
    role: Role
    log_epoch: _Epoch
    log_seq: _Slot
    ready: bool
    leaving: bool = False
    store_ok: bool = True
    unleased: bool = False
    reason: _Reason | None = None
    store_token: _StoreToken | None = None
    log_versions: Annotated[tuple[int, ...], Field(max_length=8)] = ()
    software: Annotated[str, Field(max_length=64)] = ""


class RenewRequest(_Body):
    """The holder renews; also counts as its beat."""

    epoch: _Epoch
    incarnation: _Id
    log_epoch: _Epoch
    log_seq: _Slot
    role: Role


class RenewReply(_Body):
    """``held`` False: the row is somebody else's or released; demote now."""

    held: bool
    lease: LeaseView


class ActivateRequest(_Body):
    """The holder's fence is in the log, at or before slot ``log_seq``; ``jobs`` had begun before it and go on."""

    epoch: _Epoch
    incarnation: _Id
    log_seq: _Slot
    jobs: Annotated[int, Field(ge=0)] = 0


class ReleaseRequest(_Body):
    """The holder gives the lease back.

    ``refused``: it could not promote (``reason``), and is not asked again until it registers again. ``handoff``: it has
    drained for the intent in the row, whose target is then preferred.
    """

    epoch: _Epoch
    incarnation: _Id
    reason: _Reason
    refused: bool = False
    handoff: bool = False


class PromoteRequest(_Body):
    """An admin asks for a planned switchover to ``target``; repeating a ``request_id`` changes nothing."""

    target: _Name
    request_id: _Id


class OperateRequest(_Body):
    """An admin pauses or resumes failover, shuts servers down, or removes one; repeating a ``request_id`` is harmless.

    Who asks is taken from the certificate, ``reason`` is for the history and the events.
    """

    request_id: _Id
    reason: _Reason = ""


class SystemView(_Body):
    """What admins decided of the whole system, at ``GET /system``; also the answer to pause, resume and shutdown.

    ``paused``: nothing is granted but what an admin asks for; ``paused_by`` and ``reason`` where they are known.
    ``shutdown`` is the request id of the newest shutdown; ``down``: servers were told, and none has registered since.
    The calls: ``POST /failover/pause``, ``/failover/resume``, ``/shutdown`` and ``/servers/{name}/remove`` take an
    :class:`OperateRequest`; ``GET /servers/{name}/explain`` gives an :class:`ExplainView`.
    """

    paused: bool = False
    paused_by: str | None = None
    reason: str | None = None
    shutdown: str | None = None
    down: bool = False


class RevocationsView(_Body):
    """The list of revoked certificates in force at an overseer, in figures; the answer to ``POST /revocations``.

    ``version`` is 0 and ``issued`` empty where there is none. ``taken``: the list that was handed over is newer than
    what this overseer had. The body of the call is the list as it was signed, and so is the answer to
    ``GET /revocations``: 204 where it is no newer than the query's ``after``.
    """

    version: int
    certificates: int = 0
    issued: str = ""
    taken: bool = False


class PromoteReply(_Body):
    """The intent is in the row. ``epoch`` and ``primary`` are those before the switchover."""

    epoch: _Epoch
    primary: str
    target: str
    request_id: str


class ServerView(_Body):
    """One server of the project as this overseer sees it.

    ``state`` is the role it last reported, DOWN without a beat for T. ``epoch`` is the lease's, for its holder only.
    ``candidate``: it could be granted the lease now; ``note`` says why not. ``lag`` counts the records it has not read.
    """

    name: str
    state: ServerState
    host: str = ""
    candidate: bool = False
    lag: int | None = None
    log_versions: tuple[int, ...] = ()
    software: str = ""
    epoch: int | None = None
    incarnation: str | None = None
    log_epoch: int | None = None
    log_seq: int | None = None
    fed_learn_port: int
    admin_port: int
    beat_age_s: float | None = None
    note: str | None = None


class Check(_Body):
    """One condition of being granted the lease; ``text`` is the finding, for people."""

    name: str
    ok: bool
    text: str


class ExplainView(_Body):
    """Why a server is or is not a candidate, and what would happen now if the primary died.

    ``verdict`` is one sentence; ``next`` the server that would be granted the lease, None if nobody could.
    """

    name: str
    candidate: bool
    verdict: str
    checks: tuple[Check, ...]
    next: str | None = None


class PrimaryView(_Body):
    """Who leads: its fence is in the log, and its renewals are younger than T. ``ssid`` is ``<project>:<epoch>``."""

    name: str
    epoch: _Epoch
    host: str
    fed_learn_port: int
    admin_port: int
    ssid: str


class HistoryEntry(_Body):
    """One epoch.

    ``gap_s`` runs from the last renewal (or the release) of the epoch before, as this overseer saw it, to this one's
    activation; None for the first epoch and before activation. ``previous`` is the holder before. ``by`` is the admin
    who asked for it, ``jobs`` how many running jobs went on in it.
    """

    epoch: int
    holder: str
    incarnation: str
    cause: str
    granted_at: str
    active_at: str | None = None
    gap_s: float | None = None
    previous: str | None = None
    by: str | None = None
    jobs: int | None = None


class Event(_Body):
    """One line for people, with its facts in ``data``. Ids rise; a stream resumes after the last one seen.

    A reader takes a ``kind`` that it does not know for what its text says.
    """

    id: int
    time: str
    kind: EventKind | str
    text: str
    data: dict[str, Any] = Field(default_factory=dict)
