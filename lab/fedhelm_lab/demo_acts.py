"""The demo's acts on real processes: start, submit, kill the primary in the middle of a round, fetch the result."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import threading
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fedhelm.admin.follow import Note
from fedhelm.admin.models import JobDetail
from fedhelm.admin.session import Session
from fedhelm.clock import SystemClock
from fedhelm.errors import FedhelmError, JobFailed, NoPrimary, PortTaken, Unreachable
from fedhelm.process import marked_processes
from fedhelm.security.kit import open_kit
from fedhelm_console import prompt
from fedhelm_console.commands import REGISTRY
from fedhelm_console.context import Console
from fedhelm_console.grammar import parse
from fedhelm_console.news import Item, News
from fedhelm_console.notify import Notifier
from fedhelm_console.view import View
from fedhelm_lab import demo_story as story
from fedhelm_lab.demo_stage import Stage
from fedhelm_lab.whole_log import ARCHIVE, read_history
from fedhelm_lab.workspace import ADMIN, Workspace, plan, prepare

__all__ = ["JOB", "Acts", "Outcome", "free_base_port"]

JOB = "hello-pt-tb"

_SERVERS = 2
_TRIES = 5
_TALLY = 2.0
_LOWEST_PORT = 10_240


def free_base_port(ports: int = 2 * _SERVERS + 1) -> int:
    """Return P such that P..P+``ports``-1 are free now, below the ports that the kernel gives to outgoing connections.

    Raises:
        PortTaken: no such range was found.
    """
    try:
        highest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        highest = 32_768
    if highest < _LOWEST_PORT + 1000:
        highest = 60_000
    for _ in range(200):
        base = random.randrange(_LOWEST_PORT, highest - ports)
        if all(_is_free(port) for port in range(base, base + ports)):
            return base
    raise PortTaken(f"no {ports} free ports in a row were found", hint="choose some with --base-port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class Outcome:
    """What the demo measured. ``gap_s`` is as the overseer's history reports it, ``path`` the downloaded job."""

    job_id: str
    rounds: list[story.Round]
    gap_s: float | None
    followed_s: dict[str, float]
    evidence: story.Evidence
    path: Path

    def to_json(self) -> dict[str, Any]:
        """Return it as ``fedhelm demo -o json`` prints it."""
        return {
            "job_id": self.job_id,
            "accuracy": [one.accuracy for one in self.rounds],
            "gap_s": self.gap_s,
            "epochs": [one.epoch for one in self.rounds],
            "path": str(self.path),
        }


class Acts:
    """One demo, act by act; whoever made it calls :meth:`close`.

    Args:
        stage: where it is shown.
        folder: where everything goes: the workspace in ``poc``, the result in ``<job_id>``.
    """

    def __init__(self, stage: Stage, folder: Path) -> None:
        self._stage = stage
        self._folder = folder
        self._clock = SystemClock()
        self._console: Console | None = None
        self._job = ""
        self._leader = ("", 0)
        self._electing = False
        self._killed: datetime | None = None
        self._progress = story.Progress()
        self.workspace: Workspace | None = None

    def close(self) -> None:
        """Leave the console; the federation goes on."""
        self._stage.mute()
        if self._console is not None:
            self._console.session.close()

    # -- first act ------------------------------------------------------------------------------------------------

    def start(self, sites: int, base_port: int | None) -> None:
        """Prepare and start a workspace.

        Args:
            sites: how many.
            base_port: None: any free range; another one is tried where somebody else was faster.
        """
        self._stage.heading("1. Prepare and start")
        self._stage.say(f"An overseer, {_SERVERS} servers (one leads, one stands by), {_sites(sites)}, an admin.")
        for left in reversed(range(1 if base_port is not None else _TRIES)):
            chosen = free_base_port() if base_port is None else base_port
            try:
                self._start(sites, chosen)
            except PortTaken:
                if not left:
                    raise
                if self.workspace is not None:
                    self.workspace.clean()
                    self.workspace = None
            else:
                return

    def _start(self, sites: int, base_port: int) -> None:
        root = self._folder / "poc"
        began = self._clock.boottime()
        self._stage.command("$", f"fedhelm poc prepare -n {sites} --base-port {base_port} -w {root}")
        self.workspace = prepare(root, plan(sites, _SERVERS, base_port))
        (self._store() / ARCHIVE).mkdir(mode=0o700)  # what is counted at the end is not to be shortened on the way
        self._stage.command("$", f"fedhelm poc start -w {root}")
        started = self.workspace.start()
        took = self._clock.boottime() - began
        shown = ", ".join(started) if len(started) < 8 else f"{len(started)} participants"
        self._stage.say(f"{shown}: ready after {took:.1f} s")

    # -- second act -----------------------------------------------------------------------------------------------

    def submit(self) -> None:
        """Sign in and submit the job, as the console does."""
        assert self.workspace is not None
        self._stage.heading("2. Sign in, and submit a job: PyTorch learns handwritten digits")
        kit = open_kit(self.workspace.kit(ADMIN).root, role="project_admin")
        self._stage.command("$", str(kit.startup / "fl_admin.sh"))
        self._console = Console(
            session=Session(kit, notice=self._note),
            registry=REGISTRY,
            style=replace(self._stage.style, width=77),
            say=self._stage.say,
            transfer=kit.transfer,
            yes=True,
        )
        session = self._console.session
        signed_in = session.sign_in()
        self._leader = (signed_in.server, signed_in.epoch)
        with contextlib.suppress(NoPrimary, Unreachable):
            leads = session.primary()
            address = f"{leads.name}:{leads.fed_learn_port}:{leads.admin_port}"
            self._stage.say(f"Got primary SP {address} from overseer, epoch {leads.epoch}. SSID: {leads.ssid}")
        Notifier(
            session.events, self._show_news, more=self._stage.event, happened=lambda _event: None, clock=self._clock
        ).start(News.since((one.name for one in kit.servers), signed_in.server))
        # A folder of the same name where the demo was typed is not meant.
        with contextlib.chdir(kit.transfer):
            self._job = self._type(f"submit_job {JOB}")["job_id"]
        self._type("list_sp")

    def _show_news(self, item: Item) -> None:
        """Show what appears above the console's prompt."""
        assert self._console is not None
        more = ""
        if item.moved:
            with contextlib.suppress(FedhelmError):
                more = prompt.resumed(self._console.session.check_status(timeout=_TALLY).jobs_running)
        self._stage.event(prompt.news_line(item, self._console.style, more))

    # -- third act ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Follow the job; kill the primary in round 2.

        Raises:
            JobFailed: the job did not complete.
        """
        assert self._console is not None
        self._stage.heading(f"3. Train, and kill the primary with SIGKILL in round {story.KILL_ROUND}")
        self._stage.command(self._prompt(), f"wait {self._job}")
        self._stage.say("Each site loads PyTorch and trains on its own images. Only weights leave it.")
        ended = self._console.session.wait(self._job, changed=self._changed)
        if not ended.summary.succeeded:
            raise JobFailed(f"job {self._job} is {ended.status}: {ended.reason or 'no reason is known'}")
        if self._killed is None:
            raise FedhelmError(f"job {self._job} was over before its primary could be killed", hint="run it again")
        self._stage.say(f"{self._job} {self._stage.style.state(ended.status)}")
        self._type("list_sp")

    def _changed(self, state: JobDetail) -> None:
        assert self._console is not None
        if (signed_in := self._console.session.signed_in) is not None:
            self._leader = (signed_in.server, signed_in.epoch)
        if (closed := self._progress.closed(state)) is not None:
            number, accuracy = closed
            server, epoch = self._leader
            self._stage.say(
                f"round {number} of {state.rounds} closed by {server}, epoch {epoch}: {accuracy:.1%} on held-out images"
            )
        if self._killed is None and (moment := story.moment_to_kill(state)) is not None:
            self._kill(moment)

    def _kill(self, moment: story.Moment) -> None:
        """Kill the FL server process of whoever leads, by its pid, found by the mark of its own kit."""
        assert self.workspace is not None
        name, _ = self._leader
        victims = [one.pid for one in marked_processes(self.workspace.kit(name).root) if one.mark == "child"]
        if not victims:
            return
        self._stage.say(f"{moment.sentence()}. Now the primary dies:")
        self._stage.command("$", f"kill -9 {victims[0]}", f"# the FL server process of {name}")
        self._killed = self._clock.utcnow()
        with contextlib.suppress(ProcessLookupError):  # it died by itself a moment ago: a failover all the same
            os.kill(victims[0], signal.SIGKILL)

    def _note(self, note: Note) -> None:
        """Show what the console says while it looks for the primary; an election once, not every tenth of a second."""
        if threading.current_thread() is not threading.main_thread():
            return  # the one that counts the jobs looks for the primary, too
        if note.kind != "electing":
            self._stage.say(f"console: {note.text}")
        elif not self._electing:
            self._stage.say("console: electing…")
        self._electing = note.kind == "electing"

    # -- last act -------------------------------------------------------------------------------------------------

    def fetch(self) -> Outcome:
        """Download the result, and look for what was lost.

        Raises:
            FedhelmError: something was lost, or done twice.
        """
        self._stage.heading("4. Bring the result home")
        path = Path(self._type(f"download_job {self._job} {self._folder}")["path"])
        self._stage.say()
        failover = self._failover(self._type("history"))
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        logs = {site: self._log(site) for site in summary["sites"]}
        rounds = story.rounds_of(summary)
        followed = {
            site: seconds
            for site, log in logs.items()
            if self._killed is not None
            and failover is not None
            and (seconds := story.followed_after(log, failover["epoch"], self._killed)) is not None
        }
        outcome = Outcome(
            job_id=self._job,
            rounds=rounds,
            gap_s=failover["gap_s"] if failover else None,
            followed_s=followed,
            evidence=story.Evidence(
                sites=summary["sites"],
                rounds=len(rounds),
                recorded=self._recorded(),
                called=sum((story.count_calls(site, log, self._job) for site, log in logs.items()), Counter()),
            ),
            path=path,
        )
        self._tell(outcome)
        outcome.evidence.check()
        return outcome

    def _failover(self, history: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the first epoch after the kill."""
        later = [one for one in history if self._killed and datetime.fromisoformat(one["time"]) > self._killed]
        return later[0] if later else None

    def _log(self, name: str) -> str:
        assert self.workspace is not None
        return self.workspace.kit(name).log_file.read_text(encoding="utf-8", errors="replace")

    def _recorded(self) -> Counter[tuple[int, str, str]]:
        """Read every record that was ever in the store's log, also those that a checkpoint has replaced since."""
        return story.count_contributions(read_history(self._store()), self._job)

    def _store(self) -> Path:
        assert self.workspace is not None
        store = self.workspace.kit("server1").store
        assert store is not None
        return store

    def _tell(self, outcome: Outcome) -> None:
        say = self._stage.say
        say()
        say(story.rounds_table(outcome.rounds, outcome.evidence))
        say()
        if outcome.gap_s is not None:
            say(f"Nobody led for {outcome.gap_s:.2f} s, by the overseer's history.")
        if outcome.followed_s:
            say(f"After the kill {_within(outcome.followed_s)}.")
        say(outcome.evidence.verdict())

    # -- the console ----------------------------------------------------------------------------------------------

    def _prompt(self) -> str:
        server, epoch = self._leader
        view = View(mode="up", server=server, epoch=epoch)
        return "".join(text for _, text in prompt.prompt(view, self._stage.style)).strip()

    def _type(self, line: str) -> Any:
        """Run a console command, shown as it would be typed; return its data."""
        assert self._console is not None
        call = parse(line, REGISTRY)
        assert call is not None
        self._stage.command(self._prompt(), line)
        result = call.command.run(self._console.for_call(call), *call.positional, **call.options)
        self._stage.say(result.human() if callable(result.human) else result.human)
        return result.data


def _within(seconds: dict[str, float]) -> str:
    if len(seconds) > 2:
        return f"the sites follow the new primary in {min(seconds.values()):.2f} to {max(seconds.values()):.2f} s"
    (first, taken), *others = seconds.items()
    more = "".join(f", {site} in {time:.2f} s" for site, time in others)
    return f"{first} follows the new primary in {taken:.2f} s{more}"


def _sites(count: int) -> str:
    return "1 site" if count == 1 else f"{count} sites"
