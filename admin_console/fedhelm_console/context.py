"""What a command is given: the session, the terminal, and how to ask a person."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fedhelm.errors import Ambiguous, JobNotFound, Refused
from fedhelm_console.grammar import Call
from fedhelm_console.registry import Registry
from fedhelm_console.render import Style

if TYPE_CHECKING:
    from fedhelm.admin.session import Session

__all__ = ["REFERENCES", "Console"]

REFERENCES = ("@last", "@running", "@failed")
"""What stands for a job's id."""

_STATES = {"@running": ("RUNNING", "is running"), "@failed": ("FINISHED:FAILED", "has failed")}
_PLURAL = {"is running": "are running", "has failed": "have failed"}
_SHOWN = 3


@dataclass
class _References:
    last: str | None = None


@dataclass(frozen=True)
class Console:
    """One console; :meth:`for_call` gives each command its own copy with the line's options.

    Args:
        session: to ask.
        registry: for help.
        style: of the terminal.
        say: writes a line of talk to standard error.
        ask: asks a person and returns the answer; None where there is no terminal.
        transfer: the admin's folder of jobs and results.
        timeout: seconds given by the user; None: not given, each command has its default.
        yes: confirmations are answered already, but for those of grade 3.
        confirmed: the project's name, where the user gave it: the answer to a confirmation of grade 3.
        interactive: a person sits at the prompt.
        progress: is told of the bytes of an upload or a download.
        live: shows a line in place of the one before; None where nobody watches.
        settle: takes away what is being shown in place, before something is printed.
        clear: empties the screen.
    """

    session: Session
    registry: Registry
    style: Style
    say: Callable[[str], None]
    transfer: Path
    ask: Callable[[str], str] | None = None
    timeout: float | None = None
    yes: bool = False
    confirmed: str | None = None
    interactive: bool = False
    progress: Callable[[int, int], None] | None = None
    live: Callable[[str], None] | None = None
    settle: Callable[[], None] | None = None
    clear: Callable[[], None] | None = None
    references: _References = field(default_factory=_References)

    def for_call(self, call: Call) -> Console:
        """Return the console with a line's own options: what is inside the line wins."""
        timeout = self.timeout if call.timeout is None else call.timeout
        return replace(self, timeout=timeout, yes=self.yes or call.yes, confirmed=call.confirm or self.confirmed)

    def limit(self, default: float | None) -> float | None:
        """Return the seconds this command may take."""
        return default if self.timeout is None else self.timeout

    def check_confirmable(self, name: str, grade: int = 1) -> None:
        """Do nothing if a person can be asked, or has agreed already.

        Raises:
            Refused: neither; nothing was sent.
        """
        agreed = self.yes if grade < 3 else self.confirmed is not None
        if not agreed and self.ask is None:
            hint = "--yes" if grade < 3 else f"--confirm {self.session.kit.project}"
            raise Refused(f"{name} must be confirmed, and there is no terminal to ask at", hint=hint)

    def confirm(self, question: str, name: str | None = None) -> None:
        """Ask a person.

        Args:
            question: shows what will happen to what.
            name: to be typed; None: y/N is enough.

        Raises:
            Refused: anything but agreement.
        """
        if self.yes:
            return
        if self.ask is None:
            self.check_confirmable("this")
            return
        if name is None:
            agreed = self.ask(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        else:
            agreed = self.ask(f"{question}\nType {name} to go on: ").strip() == name
        if not agreed:
            raise Refused("not confirmed; nothing was done")

    def confirm_project(self, question: str, count: int) -> None:
        """Ask for the project's name and a count; ``--confirm PROJECT`` is the answer in scripts, ``--yes`` is none.

        Args:
            question: shows what will happen to what.
            count: of what goes: whoever types it has read the question.

        Raises:
            Refused: anything else was typed, or another project was named.
        """
        project = self.session.kit.project
        if self.confirmed is not None:
            if self.confirmed != project:
                raise Refused(f"this project is {project}, not {self.confirmed}; nothing was done")
            return
        replace(self, yes=False).confirm(question, f"{project} {count}")

    def remember(self, job_id: str) -> None:
        """Make a job the one that ``@last`` means."""
        self.references.last = job_id

    def job(self, reference: str) -> str:
        """Return the id or prefix that a reference means.

        ``@last`` is the last job submitted here, or the newest; ``@running`` and ``@failed`` are the only one there is.

        Raises:
            JobNotFound: there is no such job, or no such reference.
            Ambiguous: more than one job runs, or has failed.
        """
        if not reference.startswith("@"):
            return reference
        if reference in _STATES:
            return self._only(*_STATES[reference])
        if reference != "@last":
            near = difflib.get_close_matches(reference, REFERENCES, n=1, cutoff=0.4)
            names = f"{', '.join(REFERENCES[:-1])} and {REFERENCES[-1]}"
            raise JobNotFound(
                f"there is no reference {reference}: {names} exist", hint=f"did you mean {near[0]}?" if near else None
            )
        if self.references.last is not None:
            return self.references.last
        newest = self.session.jobs(limit=1, timeout=self.limit(60.0))
        if not newest:
            raise JobNotFound("there are no jobs yet", hint="submit_job DIR")
        return newest[0].job_id

    def _only(self, status: str, what: str) -> str:
        found = [job for job in self.session.jobs(limit=0, timeout=self.limit(60.0)) if job.status == status]
        if not found:
            raise JobNotFound(f"no job {what}", hint="list_jobs")
        if len(found) > 1:
            ids = ", ".join(job.job_id for job in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
            raise Ambiguous(f"{len(found)} jobs {_PLURAL.get(what, what)}: {ids}", hint="name one by its id")
        return found[0].job_id
