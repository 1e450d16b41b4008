"""Every error Fedhelm raises on purpose, in one tree.

::

    FedhelmError                INTERNAL            1
    ├── UsageError              USAGE               2   the command line or a value typed by a person
    │   ├── BadInput            BAD_INPUT           2   a file, key or value is wrong; says where
    │   │   └── NotSupportedYet NOT_SUPPORTED_YET   2   a key that a later version will serve
    │   ├── UnknownCommand      UNKNOWN_COMMAND     2
    │   ├── Ambiguous           AMBIGUOUS           2   a prefix that matches more than one thing
    │   └── Refused             REFUSED             2   not confirmed, or not allowed in this state
    ├── Unreachable             UNREACHABLE         3   nobody answers
    │   ├── NoPrimary           NO_PRIMARY          3   nobody leads at the moment
    │   └── NotPrimary          NOT_PRIMARY         3   this server does not lead: ask `primary`
    ├── NotAuthorised           NOT_AUTHORISED      4   the certificate is valid, the right is missing
    │   ├── BadCertificate      BAD_CERTIFICATE     4   missing, expired, not yet valid, of another project
    │   └── BadSignature        BAD_SIGNATURE       4   a signed statement that does not hold, or says something else
    ├── KitError                BAD_KIT             4   a start-up kit with a missing, changed or older file
    ├── DeadlineExceeded        TIMEOUT             5
    ├── NotFound                NOT_FOUND           1
    │   └── JobNotFound         JOB_NOT_FOUND       1
    ├── Conflict                CONFLICT            1   the same id with other contents; a state that forbids it
    │   ├── RoundOver           ROUND_OVER          1   the round was closed, or the job ended, before this came
    │   ├── WorkspaceExists     WORKSPACE_EXISTS    1
    │   └── AlreadyRunning      ALREADY_RUNNING     1
    ├── PortTaken               PORT_TAKEN          1
    ├── AuditUnavailable        AUDIT_UNAVAILABLE   1   what a person commands cannot be written to the audit file
    ├── JobFailed               JOB_FAILED          1
    ├── StoreError              STORE               1   the shared store
    │   ├── StoreUnavailable    STORE_UNAVAILABLE   1   full, missing, read-only: nothing was acknowledged
    │   ├── SlotTaken           SLOT_TAKEN          1   somebody else created the slot first
    │   ├── Corrupt             CORRUPT             1   a record, manifest or chunk whose hash is wrong
    │   ├── WrongStore          WRONG_STORE         1   no genesis, or another cluster's
    │   └── Fenced              FENCED              1   a foreign fence of an equal or higher epoch is in the log
    ├── ProtocolError           PROTOCOL            1   the other side broke the wire protocol
    └── Interrupted             INTERRUPTED       130   Ctrl-C, or the terminal was closed

Each class has a stable ``code`` (documented, tested), the exit status of a command that ends with it (third column
above) and the gRPC status it travels as. An instance has a one-line message and, where there is one, a hint that says
what to do.
"""

from __future__ import annotations

import enum
from typing import ClassVar

__all__ = [
    "AlreadyRunning",
    "Ambiguous",
    "AuditUnavailable",
    "BadCertificate",
    "BadInput",
    "BadSignature",
    "Conflict",
    "Corrupt",
    "DeadlineExceeded",
    "ExitStatus",
    "FedhelmError",
    "Fenced",
    "Interrupted",
    "JobFailed",
    "JobNotFound",
    "KitError",
    "NoPrimary",
    "NotAuthorised",
    "NotFound",
    "NotPrimary",
    "NotSupportedYet",
    "PortTaken",
    "ProtocolError",
    "Refused",
    "RoundOver",
    "SlotTaken",
    "StoreError",
    "StoreUnavailable",
    "UnknownCommand",
    "Unreachable",
    "UsageError",
    "WorkspaceExists",
    "WrongStore",
    "error_class",
]


class ExitStatus(enum.IntEnum):
    """Exit status of every Fedhelm command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_AUTHORISED = 4
    TIMEOUT = 5
    INTERRUPTED = 130


class FedhelmError(Exception):
    """Base of the tree: a message of one line and an optional hint."""

    code: ClassVar[str] = "INTERNAL"
    exit_status: ClassVar[ExitStatus] = ExitStatus.FAILED
    grpc_status: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the message alone; printers add code and hint."""
        return self.message


class UsageError(FedhelmError):
    """The command line, or a value a person typed, is wrong."""

    code = "USAGE"
    exit_status = ExitStatus.USAGE
    grpc_status = "INVALID_ARGUMENT"


class BadInput(UsageError):
    """A file, a key or a value is wrong; the message names it, with file and line where it has them."""

    code = "BAD_INPUT"


class NotSupportedYet(BadInput):
    """The key is known, and this version does not serve it: refused, never ignored."""

    code = "NOT_SUPPORTED_YET"


class UnknownCommand(UsageError):
    """No such command; the hint proposes the nearest ones."""

    code = "UNKNOWN_COMMAND"


class Ambiguous(UsageError):
    """A prefix that more than one thing matches."""

    code = "AMBIGUOUS"


class Refused(UsageError):
    """Not confirmed, or not allowed in the present state; nothing was done."""

    code = "REFUSED"
    grpc_status = "FAILED_PRECONDITION"


class Unreachable(FedhelmError):
    """Nobody answers at the addresses of the kit."""

    tried: tuple[tuple[str, str], ...] = ()
    """Who was asked and why each did not answer, where that is known."""

    code = "UNREACHABLE"
    exit_status = ExitStatus.UNREACHABLE
    grpc_status = "UNAVAILABLE"


class NoPrimary(Unreachable):
    """The overseer answers, and nobody leads at the moment."""

    code = "NO_PRIMARY"


class NotPrimary(Unreachable):
    """This server does not lead (any more, or not yet); the message names who does, if known."""

    code = "NOT_PRIMARY"


class NotAuthorised(FedhelmError):
    """The certificate is valid and its role lacks the permission."""

    code = "NOT_AUTHORISED"
    exit_status = ExitStatus.NOT_AUTHORISED
    grpc_status = "PERMISSION_DENIED"


class BadCertificate(NotAuthorised):
    """A certificate that is missing, expired, not valid yet, or not of this project."""

    code = "BAD_CERTIFICATE"
    grpc_status = "UNAUTHENTICATED"


class BadSignature(NotAuthorised):
    """A signed job or a signed result that was not signed by whom it says, or is about something else."""

    code = "BAD_SIGNATURE"


class KitError(FedhelmError):
    """A start-up kit with a missing, changed or older file; the message names the file."""

    code = "BAD_KIT"
    exit_status = ExitStatus.NOT_AUTHORISED
    grpc_status = "FAILED_PRECONDITION"


class DeadlineExceeded(FedhelmError):
    """The time allowed is over; what was asked may still happen."""

    code = "TIMEOUT"
    exit_status = ExitStatus.TIMEOUT
    grpc_status = "DEADLINE_EXCEEDED"


class NotFound(FedhelmError):
    """No such thing."""

    code = "NOT_FOUND"
    grpc_status = "NOT_FOUND"


class JobNotFound(NotFound):
    """No job has this id or prefix."""

    code = "JOB_NOT_FOUND"


class Conflict(FedhelmError):
    """The same id with other contents, or a state that forbids the change."""

    code = "CONFLICT"
    grpc_status = "ALREADY_EXISTS"


class RoundOver(Conflict):
    """The round was closed, or the job ended, before this result came: nobody will need it."""

    code = "ROUND_OVER"


class WorkspaceExists(Conflict):
    """The folder to be made is there already and not empty."""

    code = "WORKSPACE_EXISTS"


class AlreadyRunning(Conflict):
    """This participant is running already; the message names its pid."""

    code = "ALREADY_RUNNING"


class PortTaken(FedhelmError):
    """A port the participant needs is in use; the message names it."""

    code = "PORT_TAKEN"
    grpc_status = "UNAVAILABLE"


class AuditUnavailable(FedhelmError):
    """What a person commands has to be in the audit file before it is answered, and that cannot be written."""

    code = "AUDIT_UNAVAILABLE"
    grpc_status = "FAILED_PRECONDITION"


class JobFailed(FedhelmError):
    """A job ended as FAILED or ABORTED."""

    code = "JOB_FAILED"


class StoreError(FedhelmError):
    """The shared store (log and blobs)."""

    code = "STORE"
    grpc_status = "UNAVAILABLE"


class StoreUnavailable(StoreError):
    """The store is full, missing or read-only; nothing was acknowledged."""

    code = "STORE_UNAVAILABLE"


class SlotTaken(StoreError):
    """Somebody else created the slot first."""

    code = "SLOT_TAKEN"
    grpc_status = "ABORTED"


class Corrupt(StoreError):
    """A record, manifest or chunk whose hash or form is wrong; the message names it."""

    code = "CORRUPT"
    grpc_status = "DATA_LOSS"


class WrongStore(StoreError):
    """The store has no genesis record, or another cluster's."""

    code = "WRONG_STORE"
    grpc_status = "FAILED_PRECONDITION"


class Fenced(StoreError):
    """A foreign fence with an equal or higher epoch is in the log: this writer's time is over."""

    code = "FENCED"
    grpc_status = "UNAVAILABLE"


class ProtocolError(FedhelmError):
    """The other side broke the wire protocol."""

    code = "PROTOCOL"
    grpc_status = "INVALID_ARGUMENT"


class Interrupted(FedhelmError):
    """A person pressed Ctrl-C, or the terminal was closed; not a fault of anybody's."""

    code = "INTERRUPTED"
    exit_status = ExitStatus.INTERRUPTED
    grpc_status = "CANCELLED"


def _tree(cls: type[FedhelmError]) -> dict[str, type[FedhelmError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found = {**_tree(sub), **found}  # a class that keeps its parent's code travels as its parent
    return found


def error_class(code: str) -> type[FedhelmError]:
    """Return the class with this code; ``FedhelmError`` itself for a code this version does not know."""
    return _tree(FedhelmError).get(code, FedhelmError)
