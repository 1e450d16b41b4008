"""The real prompt over a fake session, for terminal tests: ``python -m tests.fakes.admin_repl ROOT FIFO``.

Words read from the FIFO play the federation: ``failover``, ``back``, ``lost``, ``flood``, ``pause``, ``unleased``,
``down``; ``next`` is a job's next round.
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

from fedhelm.admin.models import Event, System
from fedhelm.errors import NoPrimary, Unreachable
from fedhelm_console.commands import REGISTRY
from fedhelm_console.context import Console
from fedhelm_console.repl import run_prompt
from fedhelm_console.terminal import Talk, style_of
from tests.fakes.admin_session import FakeSession, failover

NOON = "2026-11-22T12:03:41.120Z"


class Waiting:
    """A job whose round goes up with each word ``next``."""

    def __init__(self, session):
        self._session = session
        self.round = 2
        self.told = threading.Semaphore(0)

    def __call__(self, job, *, timeout, changed=None):
        while True:
            state = replace(self._session.job(job, timeout=timeout), round=self.round)
            if changed is not None:
                changed(state)
            self.told.acquire()


def play(word: str, session: FakeSession) -> None:
    if word == "failover":
        session.leader, session.epoch = "server2", 4
        for event in failover():
            session.publish(event)
    elif word == "back":
        session.publish(Event(6, "member_up", NOON, "server1 is up", {"name": "server1"}))
    elif word == "next":
        session.wait.round += 1
        session.wait.told.release()
    elif word == "pause":
        session.standing = System(True, "admin@nvidia.com", "upgrade")
        text = "admin@nvidia.com paused failover: upgrade"
        session.publish(Event(7, "pause", NOON, text, {"admin": "admin@nvidia.com"}))
    elif word == "unleased":
        session.role = "UNLEASED"
        session.raises["primary"] = Unreachable("no overseer answers")
        session.publish(Event(8, "alarm", NOON, "the lease store does not answer"))
    elif word == "down":
        session.leader, session.standing = None, System(down=True)
        session.publish(Event(9, "shutdown", NOON, "admin@nvidia.com shuts the system down"))
        for name in ("server1", "server2"):
            session.publish(Event(10, "member_down", NOON, f"{name} is down", {"name": name}))
    elif word == "lost":
        session.leader = None
        session.publish(Event(2, "release", NOON, "server1 is gone"))
    elif word == "flood":
        for number in range(41):
            session.publish(Event(10 + number, "member_up", NOON, "", {"name": f"server{10 + number}"}))


def main() -> int:
    root, fifo, *flags = sys.argv[1:]
    os.open(os.ttyname(0), os.O_RDWR)  # makes it the controlling terminal: Ctrl-C becomes a signal
    session = FakeSession(Path(root))
    session.wait = Waiting(session)
    if "unreachable" in flags:
        session.raises = {
            "primary": NoPrimary("nobody leads"),
            "sign_in": Unreachable("nobody answers"),
        }

    def listen() -> None:
        with Path(fifo).open(encoding="utf-8") as words:
            for word in words:
                play(word.strip(), session)

    threading.Thread(target=listen, daemon=True).start()
    talk = Talk(sys.stderr)
    console = Console(
        session,
        REGISTRY,
        style_of(sys.stdout, ascii_only="ascii" in flags),
        talk.say,
        session.kit.transfer,
        settle=talk.finish,
        clear=talk.wipe,
        timeout=0.3 if "unreachable" in flags else None,
    )
    try:
        return run_prompt(console, talk, "table")
    finally:
        session.close()


if __name__ == "__main__":
    sys.exit(main())
