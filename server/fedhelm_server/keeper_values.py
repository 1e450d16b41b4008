"""What the keeper hears, what it asks for, and what it remembers: immutable values, no I/O (see `keeper`).

All times are seconds of boot time.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fedhelm.config.timing import Timing
from fedhelm_server.role import Role

__all__ = [
    "About",
    "Action",
    "Activate",
    "Answered",
    "Beat",
    "BreakGlass",
    "Child",
    "ChildActive",
    "ChildBeat",
    "ChildDrained",
    "ChildExited",
    "ChildFailed",
    "ChildFenced",
    "ChildHungUp",
    "ChildRefused",
    "ChildStarted",
    "ChildWantsRestart",
    "Event",
    "Failed",
    "Hold",
    "Intent",
    "KillChild",
    "Lease",
    "OverseerCall",
    "Phase",
    "Quit",
    "Register",
    "Release",
    "Renew",
    "Report",
    "Say",
    "SendToChild",
    "Settings",
    "Stage",
    "StartChild",
    "State",
    "StopRequested",
    "Tick",
    "WaitLease",
]


@dataclass(frozen=True)
class About:
    """What every registration says of the server's software and kit; ``announcement`` is the API's own value."""

    log_versions: tuple[int, ...] = (1,)
    software: str = ""
    announcement: Any = None


@dataclass(frozen=True)
class Settings:
    """What does not change while a supervisor lives."""

    name: str
    timing: Timing
    about: About = About()
    stop_when_unleased: bool = False  # policy `stop`: past deadline + M/2 the child is killed
    view_age: float = 0.0  # how old a row may be that an overseer shows: with several, each reads it in its own time
    start_grace: float = 30.0  # from the start of a child to its first beat (imports on a busy machine)
    stop_grace: float = 3.0  # from the stop frame to SIGKILL
    stop_limit: float = 4.3  # from the stop request to the end, answered or not
    drain_limit: float = 10.0
    readonly_limit: float = 10.0  # a holder that cannot write for longer gives the lease to one that can
    shutdown_limit: float = 3.0  # how long a holder waits for the standbys to go first
    unready_limit: float = 2.0  # a child that is not ready after this is registered anyway, so that people see why
    backoff: tuple[float, ...] = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)

    @property
    def beat_limit(self) -> float:
        """A child without a beat for this long is wedged."""
        return self.timing.lease / 2


@dataclass(frozen=True)
class Intent:
    """A planned switchover in the lease row."""

    target: str
    request_id: str


@dataclass(frozen=True)
class Lease:
    """The lease row as an overseer showed it."""

    version: int = 0
    epoch: int = 0
    holder: str | None = None
    incarnation: str | None = None
    state: str = "never"
    intent: Intent | None = None
    log_seq: int = -1
    cause: str | None = None
    shutdown: str | None = None
    log_version: int = 1
    store_tokens: Mapping[str, str] = field(default_factory=dict)
    standby_store_ok: bool = False


@dataclass(frozen=True)
class Report:
    """What a child says of itself in a beat."""

    role: str = Role.STANDBY
    epoch: int = 0
    ready: bool = False
    append_age: float = 0.0
    log_epoch: int = 0
    log_seq: int = -1
    cluster: str | None = None
    store_ok: bool = True
    reason: str | None = None
    store_token: str | None = None


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tick:
    """Time went on."""


@dataclass(frozen=True)
class StopRequested:
    """SIGTERM or SIGINT; a second one kills the child at once."""


@dataclass(frozen=True)
class BreakGlass:
    """An operator on this machine wants this server to lead without an overseer; ``cause`` goes into its fence."""

    cause: str


@dataclass(frozen=True)
class ChildStarted:
    """The process of a new incarnation runs."""

    incarnation: str


@dataclass(frozen=True)
class ChildBeat:
    """The child's main loop is alive."""

    incarnation: str
    report: Report


@dataclass(frozen=True)
class ChildActive:
    """Its fence is in the log and it serves; ``jobs`` run on in it."""

    incarnation: str
    epoch: int
    log_seq: int
    jobs: int = 0


@dataclass(frozen=True)
class ChildDrained:
    """Its handoff is in the log."""

    incarnation: str
    log_seq: int


@dataclass(frozen=True)
class ChildFenced:
    """A foreign fence of ``epoch`` is in the log."""

    incarnation: str
    epoch: int


@dataclass(frozen=True)
class ChildRefused:
    """It could not promote itself."""

    incarnation: str
    reason: str


@dataclass(frozen=True)
class ChildFailed:
    """Its last words: why it is about to exit."""

    incarnation: str
    reason: str


@dataclass(frozen=True)
class ChildWantsRestart:
    """It asks to be replaced: by its standby while it leads, and by another child."""

    incarnation: str
    reason: str


@dataclass(frozen=True)
class ChildHungUp:
    """It closed its end of the pipe; mostly its exit follows at once."""

    incarnation: str


@dataclass(frozen=True)
class ChildExited:
    """It was reaped; ``how`` is for people: ``exited with signal 9``, ``could not be started: ...``."""

    incarnation: str
    how: str


@dataclass(frozen=True)
class Answered:
    """An overseer answered ``call``, sent at ``sent_at``. ``ok``: accepted, held."""

    call: OverseerCall
    sent_at: float
    lease: Lease
    ok: bool = True
    retry_after: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Failed:
    """``call`` brought nothing: no answer in time; or ``denied``, the incarnation is unknown or holds no such epoch."""

    call: OverseerCall
    message: str
    denied: bool = False


# --- actions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartChild:
    """Start a child under a new incarnation; answered by `ChildStarted` or `ChildExited`."""


@dataclass(frozen=True)
class KillChild:
    """SIGKILL; its end comes as `ChildExited`."""

    incarnation: str
    why: str


@dataclass(frozen=True)
class SendToChild:
    """One frame."""

    type: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Register:
    """Announce the incarnation; ``replaces`` was reaped by this supervisor."""

    incarnation: str
    replaces: str | None
    report: Report
    store_ok: bool
    unleased: bool = False
    about: About = About()


@dataclass(frozen=True)
class Beat:
    """Sign of life; ``leaving``: the last one."""

    incarnation: str
    report: Report
    store_ok: bool
    unleased: bool = False
    leaving: bool = False
    about: About = About()


@dataclass(frozen=True)
class Renew:
    """The holder's sign of life."""

    incarnation: str
    epoch: int
    report: Report


@dataclass(frozen=True)
class Activate:
    """The fence is in the log; ``jobs`` run on."""

    incarnation: str
    epoch: int
    log_seq: int
    jobs: int = 0


@dataclass(frozen=True)
class Release:
    """Give the lease back."""

    incarnation: str
    epoch: int
    reason: str
    refused: bool = False
    handoff: bool = False


@dataclass(frozen=True)
class WaitLease:
    """Long poll for a version other than ``after``."""

    after: int
    wait: float


@dataclass(frozen=True)
class Say:
    """A line for the operator."""

    text: str


@dataclass(frozen=True)
class Quit:
    """End the supervisor; ``error`` is None for a wanted end, ``code`` one of `fedhelm.errors`."""

    error: str | None = None
    code: str = "ALREADY_RUNNING"


OverseerCall: TypeAlias = Register | Beat | Renew | Activate | Release | WaitLease
Event: TypeAlias = (
    Tick
    | StopRequested
    | BreakGlass
    | ChildStarted
    | ChildBeat
    | ChildActive
    | ChildDrained
    | ChildFenced
    | ChildRefused
    | ChildFailed
    | ChildWantsRestart
    | ChildHungUp
    | ChildExited
    | Answered
    | Failed
)
Action: TypeAlias = StartChild | KillChild | SendToChild | OverseerCall | Say | Quit

# --- state -----------------------------------------------------------------------------------------------------------


class Phase(enum.Enum):
    """Where the child's process is."""

    ABSENT = "absent"
    STARTING = "starting"
    ALIVE = "alive"
    KILLED = "killed"  # SIGKILL is sent, waitpid has not returned


class Stage(enum.Enum):
    """What the holder does with its epoch."""

    PROMOTING = "promoting"
    ACTIVE = "active"
    DRAINING = "draining"
    RESUMING = "resuming"  # a drain that came to nothing; goes on after the next successful renewal


@dataclass(frozen=True)
class Child:
    """The child's process."""

    phase: Phase = Phase.ABSENT
    incarnation: str = ""
    start_at: float = 0.0  # when ABSENT: not before
    since: float = 0.0
    beat_at: float | None = None
    ready_at: float | None = None
    report: Report = Report()
    kill_at: float | None = None
    why: str | None = None  # why this supervisor ends it; None: its exit is its own doing
    last_words: str | None = None
    bad_store_since: float | None = None
    told_tokens: Mapping[str, str] = field(default_factory=dict)  # of the other servers
    told_primary: str | None = None
    told_log_version: int = 1
    counts: bool = True  # its exit makes the next start wait


@dataclass(frozen=True)
class Hold:
    """The lease, as far as this supervisor knows."""

    epoch: int
    deadline: float
    cause: str
    stage: Stage = Stage.PROMOTING
    since: float = 0.0  # when the grant was seen
    stuck: bool = False  # it cannot write for long, and was told that nobody else could
    unleased: bool = False
    unanswered: bool = False  # the last renewal got no answer
    drain_since: float = 0.0
    drain_version: int = -1  # of the row that asked for the drain
    drained_for: str | None = None  # the request already tried, so that a void one is not tried again
    active_seq: int | None = None  # to be told to an overseer
    jobs: int = 0  # the same


@dataclass(frozen=True)
class State:
    """All that a keeper remembers."""

    child: Child = Child()
    hold: Hold | None = None
    release: Release | None = None  # to be told until answered
    registered: bool = False
    replaces: str | None = None  # to be told with the next registration
    dead: str | None = None  # the incarnation reaped last
    lease: Lease = Lease()  # as seen last
    refused_since: float | None = None  # the name is live elsewhere since
    rejoin_pause: float = 0.0
    register_at: float = 0.0
    renew_at: float = 0.0
    beat_at: float = 0.0
    activate_at: float = 0.0
    release_at: float = 0.0
    watch_at: float = 0.0
    in_flight: frozenset[str] = frozenset()
    told_bad_store: bool = False
    version: int = -1
    epoch_seen: int = 0  # the epoch granted last to a child of this supervisor
    doubted_since: float | None = None  # since when all answers show a grant of an epoch that was granted before
    ungranted_at: float = 0.0  # the latest moment at which the row surely showed no grant to this child
    failures: int = 0
    failure: str | None = None  # why the last child ended that did so by itself, until one is ready
    shutdown_before: str | None = None  # the newest shutdown that was asked for before this supervisor registered
    joined: bool = False  # it registered once
    shutdown_since: float | None = None  # since when a newer one is known
    stepped_at: float | None = None
    awake_at: float = 0.0  # beats cannot be judged from before this supervisor's own pause
    stopping_since: float | None = None
    overseer_lost: bool = False
    said: str = ""
    done: bool = False

    @property
    def ready(self) -> bool:
        """The child serves its ports, and an overseer knows it."""
        return self.registered and self.child.phase is Phase.ALIVE and self.child.report.ready
