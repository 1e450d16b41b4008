"""The prompt: the only place that knows prompt_toolkit."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.patch_stdout import patch_stdout

from fedhelm.admin.models import System
from fedhelm.clock import Clock, SystemClock
from fedhelm.errors import FedhelmError, NoPrimary, NotAuthorised, Unreachable
from fedhelm.output import Format, emit_error, error_line, one_line, plain_lines
from fedhelm_console import prompt
from fedhelm_console.batch import run_line
from fedhelm_console.commands.local import help_of
from fedhelm_console.completion import suggest
from fedhelm_console.context import Console
from fedhelm_console.grammar import split
from fedhelm_console.interrupts import Interrupts
from fedhelm_console.news import Item, News
from fedhelm_console.notify import Notifier
from fedhelm_console.refresh import Refresher
from fedhelm_console.registry import Command
from fedhelm_console.render import duration
from fedhelm_console.terminal import Talk, without_marks
from fedhelm_console.view import collect

if TYPE_CHECKING:
    from fedhelm.admin.models import SignedIn

__all__ = ["ConsoleCompleter", "PrivateHistory", "run_prompt"]

_SLOW = 0.2
_BELL = 10.0
_TALLY = 2.0
_OVERSEER_TRIES = 20
_POLL = 0.15
_START = "start the servers and sites again"


class ConsoleCompleter(Completer):
    """Puts the suggestions of :mod:`fedhelm_console.completion` into the menu."""

    def __init__(self, console: Console, refresher: Refresher) -> None:
        self._console = console
        self._refresher = refresher

    def _roots(self) -> Iterable[Path]:
        return (Path.cwd(), self._console.transfer)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Yield what may stand at the cursor."""
        del complete_event
        text = document.text_before_cursor
        for one in suggest(text, self._console.registry, self._refresher.view, self._roots):
            yield Completion(one.text, start_position=one.offset, display=one.display, display_meta=one.meta)


class PrivateHistory(FileHistory):
    """A history file that only its owner reads, without repetitions; unwritable, it lasts as long as the console."""

    def __init__(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            path.chmod(0o600)
        self._last: str | None = None
        super().__init__(str(path))

    def store_string(self, string: str) -> None:
        """Append a line, unless it repeats the last one."""
        if string != self._last:
            with contextlib.suppress(OSError):
                super().store_string(string)
        self._last = string


class _Prompt:
    """One run of the prompt.

    Args:
        console: the commands' side.
        talk: the stderr side.
        clock: the time.
    """

    def __init__(self, console: Console, talk: Talk, clock: Clock) -> None:
        self._talk = talk
        self._clock = clock
        self._interrupts = Interrupts(clock)
        self._title = ""
        self._known = News()
        self._asking: PromptSession[str] = PromptSession()
        self._asked = 0.0
        self._console = replace(console, interactive=True, ask=self._ask, live=talk.live)
        self._refresher = Refresher(lambda before: collect(console.session, before), self._invalidate)
        self._notifier = Notifier(
            console.session.events,
            self._tell,
            more=self._write,
            happened=lambda _event: self._refresher.kick(),
            clock=clock,
        )
        self._session: PromptSession[str] = PromptSession(
            message=self._message,
            bottom_toolbar=self._toolbar,
            rprompt=self._syntax,
            completer=ConsoleCompleter(self._console, self._refresher),
            complete_while_typing=True,
            complete_in_thread=False,
            history=PrivateHistory(console.session.kit.run / "history"),
            auto_suggest=AutoSuggestFromHistory(),
            key_bindings=self._keys(),
            enable_open_in_editor=True,
            refresh_interval=0,
        )

    # What is on the screen

    def _style(self) -> Any:
        columns = shutil.get_terminal_size((80, 24)).columns
        return replace(self._console.style, width=columns)

    def _message(self) -> FormattedText:
        view, style = self._refresher.view, self._console.style
        if (title := prompt.title(view, style)) != self._title:
            self._title = title
            self._session.app.output.set_title(title)
        return FormattedText(prompt.prompt(view, style))

    def _toolbar(self) -> str:
        return prompt.toolbar(self._refresher.view, self._style())

    def _typed(self) -> Command | None:
        words = split(self._session.default_buffer.text)
        return self._console.registry.find(words[0].text) if words else None

    def _syntax(self) -> FormattedText:
        if self._session.app.is_done:
            return FormattedText([])  # the line is accepted: what is drawn now stays in the scroll-back
        command = self._typed()
        fits = command is not None and len(command.usage) < self._style().width // 2
        return FormattedText([("ansibrightblack", command.usage)] if command is not None and fits else [])

    def _invalidate(self) -> None:
        self._session.app.invalidate()

    def _write(self, line: str) -> None:
        def out() -> None:
            # While the prompt is shown, sys.stdout is patched: the line goes above it and what is typed is kept.
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

        self._talk.above(out)

    def _tell(self, item: Item) -> None:
        """Show news; after a failover with the number of jobs that go on, if the new primary says so soon."""
        more = ""
        if item.moved:
            with contextlib.suppress(FedhelmError):
                more = prompt.resumed(self._console.session.check_status(timeout=_TALLY).jobs_running)
        self._write(prompt.news_line(item, self._style(), more))

    def _ask(self, question: str) -> str:
        self._talk.finish()
        began = self._clock.boottime()
        try:
            return self._asking.prompt(question)
        finally:
            self._asked += self._clock.boottime() - began

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter", filter=Condition(self._chosen))
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.complete_state = None

        @keys.add("f1")
        def _(event: KeyPressEvent) -> None:
            del event
            command = self._typed() or self._console.registry.get("help")
            self._write(help_of(command))

        @keys.add("f3")
        def _(event: KeyPressEvent) -> None:
            del event
            lines = [prompt.event_line(one, self._console.style) for one in list(self._notifier.recent)[-10:]]
            self._write("\n".join(lines) or "no events yet")

        @keys.add("f4")
        def _(event: KeyPressEvent) -> None:
            vi = event.app.editing_mode is EditingMode.VI
            event.app.editing_mode = EditingMode.EMACS if vi else EditingMode.VI

        @keys.add("f5")
        def _(event: KeyPressEvent) -> None:
            del event
            self._refresher.kick()

        return keys

    def _chosen(self) -> bool:
        state = self._session.default_buffer.complete_state
        return state is not None and state.current_completion is not None

    # What happens

    def run(self, fmt: Format) -> int:
        """Sign in, then read and run lines until the person leaves."""
        with self._interrupts.installed(), without_marks():
            return self._run(fmt)

    def _run(self, fmt: Format) -> int:
        try:
            with self._interrupts.allowed():
                self._sign_in()
        except NotAuthorised as refused:
            return emit_error(refused, fmt)
        self._refresher.start()
        self._notifier.start(self._known)
        try:
            while self._safe_turn(fmt):
                self._refresher.kick()
        finally:
            self._refresher.stop()
        return 0

    def _safe_turn(self, fmt: Format) -> bool:
        try:
            return self._turn(fmt)
        except KeyboardInterrupt:
            return True  # one more Ctrl-C than the command took notice of

    def _turn(self, fmt: Format) -> bool:
        try:
            with patch_stdout(raw=True):
                line = self._session.prompt()
        except KeyboardInterrupt:
            return True
        except EOFError:
            return False
        began, self._asked = self._clock.boottime(), 0.0
        with self._interrupts.allowed():
            outcome = run_line(replace(self._console, style=self._style()), line, fmt)
        self._talk.finish()
        # A person who thinks about a question is not what the command takes.
        took = self._clock.boottime() - began - self._asked
        if took > _SLOW and not outcome.leave:
            signed_in = self._console.session.signed_in
            where = f" · {signed_in.server}" if signed_in is not None else ""
            bell = "\a" if took > _BELL else ""
            text = self._console.style.plain(f"{duration(took)}{where}")
            self._talk.say(self._console.style.paint(text, "2") + bell)
        return not outcome.leave

    def _sign_in(self) -> None:
        """Say what happens; whoever cannot be reached leaves a prompt all the same."""
        self._write("Waiting for the overseer...")
        summary = ""
        try:
            self._find_primary()
            signed_in = self._console.session.sign_in(timeout=self._console.limit(60.0))
            view = replace(self._refresher.view, mode="up", server=signed_in.server, epoch=signed_in.epoch)
            up, sites = self._count_sites(signed_in)
            view = replace(view, sites_up=up, sites=sites, all_sites=signed_in.sites)
            self._refresher.view = view
            self._talk.finish()
            self._write("login_result: OK")
            summary = prompt.signed_in(signed_in, self._look_round(signed_in), view, self._style())
        except NotAuthorised:
            raise
        except FedhelmError as error:
            self._talk.say(plain_lines(error_line(error)))
            self._write(f"login_result: {error.code}")
        except KeyboardInterrupt:
            self._talk.finish()
            self._write("login_result: INTERRUPTED")
        self._write('Type ? to list commands; type "? cmdName" to show usage of a command.')
        if summary:
            self._write(summary)

    def _count_sites(self, signed_in: SignedIn) -> tuple[int, int]:
        """Return how many of the sites that may be seen are up, and how many those are."""
        try:
            found = self._console.session.check_status(timeout=_TALLY).sites
        except FedhelmError:
            return signed_in.sites_up, signed_in.sites
        return sum(site.connected for site in found), len(found)

    def _look_round(self, signed_in: SignedIn) -> int:
        """Note who is up, so that only what changes is news; return how many servers stand by."""
        try:
            servers = self._console.session.servers(timeout=_TALLY)
        except FedhelmError:
            return signed_in.standbys
        self._known = News.since((one.name for one in servers if one.state != "DOWN"), signed_in.server)
        return sum(one.state == "STANDBY" for one in servers)

    def _standing(self) -> System:
        try:
            return self._console.session.system(timeout=_TALLY)
        except FedhelmError:  # an overseer of the version before does not know the question
            return System()

    def _find_primary(self) -> None:
        """Ask the overseer until it names a primary; without an overseer the login tries every server."""
        from fedhelm.admin.follow import Note

        pause = threading.Event()
        began = self._clock.boottime()
        limit = self._console.limit(60.0)
        silent = 0
        while True:
            waited = self._clock.boottime() - began
            try:
                found = self._console.session.primary()
            except NoPrimary as nobody:
                system = self._standing()
                if system.down:
                    raise NoPrimary("the system is down: an admin has shut it down", hint=_START) from nobody
                if limit is not None and waited > limit:
                    raise
                what = "no primary, failover is paused…" if system.paused else "electing…"
                self._talk.note(Note("electing", self._console.style.plain(f"{what} {waited:.1f} s"), waited))
            except Unreachable as away:
                silent += 1
                if silent >= _OVERSEER_TRIES:
                    self._talk.say(one_line(f"{away}; trying every server"))
                    return
            else:
                self._talk.finish()
                address = f"{found.name}:{found.fed_learn_port}:{found.admin_port}"
                self._write(f"Got primary SP {address} from overseer, epoch {found.epoch}. SSID: {found.ssid}")
                return
            pause.wait(_POLL)


def run_prompt(console: Console, talk: Talk, fmt: Format, clock: Clock | None = None) -> int:
    """Run the prompt until the person leaves; return the exit status.

    Args:
        console: with a session that need not be connected.
        talk: standard error.
        fmt: how results are printed.
        clock: for tests.
    """
    return _Prompt(console, talk, clock or SystemClock()).run(fmt)
