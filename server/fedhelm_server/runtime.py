"""The FL server proper (the supervisor's child): its role, its lease, and what follows from a change of either.

Only this process appends to the log. Its role changes by events of the supervisor (grant, lease, drain, ...) and of
the log (a foreign fence). Whoever asks for anything while it does not lead gets ``NotPrimary``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from fedhelm.clock import Clock
from fedhelm.config.kit import Kit
from fedhelm.errors import Conflict, FedhelmError, Fenced, NotPrimary, StoreUnavailable, WrongStore
from fedhelm.local.channel import Channel
from fedhelm.local.frames import Frame
from fedhelm.persist.blobs import Manifest
from fedhelm.persist.chain import EPOCH_RAISING
from fedhelm.persist.record import By, Record
from fedhelm.persist.store import Store
from fedhelm.tasks import spawn
from fedhelm.v1 import common_pb2 as common
from fedhelm_server.callers import Callers
from fedhelm_server.holding import Holding
from fedhelm_server.job_book import Fence, JobBook
from fedhelm_server.ledger import Answer, Ledger
from fedhelm_server.local_settings import LocalSettings
from fedhelm_server.orders import Orders
from fedhelm_server.pace import Pace
from fedhelm_server.role import WRITERS, Role, RoleEvent, transition
from fedhelm_server.store_health import StoreHealth
from fedhelm_server.store_tokens import StoreTokens
from fedhelm_server.streams import Streams

__all__ = ["Runtime"]

_log = logging.getLogger("fedhelm.server")

BEAT_S = 0.1
_LAST_APPENDS_S = 0.5
"""How long a stop waits for appends that are on their way."""


class Runtime:
    """Holds the role and the ledger; tells its listeners when something changed.

    Args:
        kit: of this server.
        incarnation: this child's, from its supervisor.
        store: log and blobs.
        clock: boot time for deadlines.
        link: to the supervisor.
        settings: the server's own.
        callers: what it asks about whoever calls; where none is given, the default policy.
    """

    def __init__(
        self,
        kit: Kit,
        incarnation: str,
        store: Store,
        clock: Clock,
        link: Channel,
        *,
        settings: LocalSettings | None = None,
        callers: Callers | None = None,
    ) -> None:
        self.kit = kit
        self.incarnation = incarnation
        self.store = store
        self.clock = clock
        self.role = Role.STANDBY
        self._read = False
        self.stopping = asyncio.Event()
        self.callers = callers or Callers()
        self.streams = Streams()
        self.holding = Holding()
        self.orders = Orders(clock)
        self.ledger = Ledger(store.log, By(kit.name, incarnation), clock, self._applied)
        self.ledger.on_replaced = self._replaced
        self.on_change: list[Callable[[set[str]], None]] = []
        """Called with the ids of changed jobs after records were folded; and with all of them on promotion."""
        self.on_lead: list[Callable[[], None]] = []
        self.on_stop: list[Callable[[], None]] = []
        self.on_append: list[Callable[[float], None]] = []
        """Called with the seconds that each append took."""
        self.tokens = StoreTokens(store.root, kit.name, incarnation, kit.timing)
        self.deadline = 0.0
        """Boot time up to which the lease may be used."""
        self.figures: dict[str, int] = {}
        """What the supervisor counted over its children: renewals, failures (of renewals), fenced."""
        self.health = StoreHealth(kit.name, store.root, kit.timing, clock, self.ledger)
        self._settings = settings or LocalSettings()
        self._pace = Pace()
        self.ledger.on_append = self._appended
        self._link = link
        self._tailed = 0.0
        self._seconds: dict[Role, float] = {}
        self._role_since = clock.boottime()
        self._log_version = 1
        self._promotion: asyncio.Task[None] | None = None

    # -- what others ask ---------------------------------------------------------------------------------------------

    @property
    def book(self) -> JobBook:
        """The fold of the log so far."""
        return self.ledger.book

    @property
    def epoch(self) -> int:
        """The last epoch seen in the log."""
        return self.book.fence.epoch if self.book.fence else 0

    @property
    def ready(self) -> bool:
        """Whether this server read the log once, and found the store able to hold it."""
        return self._read and self.health.proven

    @property
    def leads(self) -> bool:
        """Whether this server serves as the primary (also while the store is away, and without a lease)."""
        return self.role in WRITERS or self.role is Role.READONLY

    def org_of(self, site: str) -> str | None:
        """Return a site's organisation: as its certificate said when it connected last, else as the kit says it."""
        return self.streams.org_of(site) or self.kit.site_orgs.get(site)

    def take_kit(self, kit: Kit) -> None:
        """Know the sites of a kit that took the former one's place; its times and addresses count from a restart."""
        self.kit = dataclasses.replace(self.kit, sites=kit.sites, site_orgs=kit.site_orgs)
        self._changed(set(self.book.jobs))

    def seconds_as(self, role: Role) -> float:
        """Return how long this child has been in ``role``."""
        now = self.clock.boottime()
        return self._seconds.get(role, 0.0) + (now - self._role_since if role is self.role else 0.0)

    def ask_restart(self, reason: str) -> None:
        """Have the supervisor replace this child; while it leads, its standby takes over."""
        self._link.post("restart", reason=reason)

    def refusal(self) -> NotPrimary:
        """Return the error for a caller that took this server for the primary."""
        fence = self.book.fence
        if self.role is Role.PROMOTING:
            return NotPrimary(f"{self.kit.name} is being promoted", hint=self.kit.name)
        if fence is None:
            return NotPrimary(f"{self.kit.name} does not lead; nobody has led yet")
        return NotPrimary(f"{self.kit.name} does not lead; {fence.name} has epoch {fence.epoch}", hint=fence.name)

    async def check_leads(self) -> None:
        """Let a read or write pass only while this server may answer for the project.

        Raises:
            NotPrimary: it does not lead, or cannot know it at the moment.
        """
        if not self.leads:
            raise self.refusal()
        timing = self.kit.timing
        now = self.clock.boottime()
        if now > self.deadline and now - self._tailed > timing.observe:
            await self._tail()
            if not self.leads:
                raise self.refusal()
            if self._tailed < now:
                raise NotPrimary(f"{self.kit.name} has no lease and cannot read the log: another may lead by now")

    # -- the supervisor's frames --------------------------------------------------------------------------------------

    async def serve_link(self) -> None:
        """Act on the supervisor's frames until it closes the pipe or says stop."""
        while (frame := await self._link.receive()) is not None:
            _log.debug("supervisor: %s", frame)
            if frame["type"] == "stop":
                await self._finish()
                break
            self._on_frame(frame)
        self.stopping.set()

    async def _finish(self) -> None:
        """Let the appends on their way end, and take no more."""
        self.ledger.close(f"{self.kit.name} stops")
        try:
            async with asyncio.timeout(_LAST_APPENDS_S):
                await self.ledger.drained()
        except TimeoutError:
            _log.warning("an append is still on its way")

    def _on_frame(self, frame: Frame) -> None:
        match frame["type"]:
            case "grant":
                self.deadline = float(frame["deadline"])
                if self.role is Role.STANDBY and self._promotion is None:
                    self._promotion = spawn(self._promote(frame), "promotion")
            case "lease":
                self.deadline = float(frame["deadline"])
                self._event(RoleEvent.LEASED)
                self._reopen_if_leading()
            case "unleased":
                self._event(RoleEvent.UNLEASED)  # a drain without a higher fence is void: this server goes on
                self._reopen_if_leading()
            case "drain":
                if self.role is Role.ACTIVE:
                    spawn(self._drain(frame), "drain")
            case "resume":
                self.deadline = float(frame["deadline"])
                self._event(RoleEvent.RESUME)
                self._reopen_if_leading()
            case _:
                self._on_news(frame)

    def _on_news(self, frame: Frame) -> None:
        match frame["type"]:
            case "tokens":
                self.tokens.told(frame["tokens"], frame.get("primary"))
            case "log_version":
                self._log_version = int(frame["version"])
            case "revocations":
                self.callers.read_revocations()
            case "figures":
                self.figures = {name: int(value) for name, value in frame.items() if name != "type"}
            case unknown:
                _log.warning("the supervisor sent a frame %r that this version does not know", unknown)

    def _reopen_if_leading(self) -> None:
        if self.role in (Role.ACTIVE, Role.UNLEASED) and self.ledger.closed_reason is not None:
            self.ledger.reopen()
            self._changed(set(self.book.jobs))

    def _event(self, event: RoleEvent) -> None:
        before, self.role = self.role, transition(self.role, event)
        if before is not self.role:
            _log.info("%s: %s, was %s", self.kit.name, self.role, before)
            now = self.clock.boottime()
            self._seconds[before] = self._seconds.get(before, 0.0) + now - self._role_since
            self._role_since = now
        self._make_room()

    def _appended(self, seconds: float) -> None:
        self._pace.took(seconds)
        self.health.appended()
        self._make_room()
        for listener in self.on_append:
            listener(seconds)

    def _make_room(self) -> None:
        """Whoever writes without a lease leaves room for the fence of one that was granted it."""
        alone = self.role is Role.UNLEASED or (self.role in WRITERS and self.clock.boottime() > self.deadline)
        self.ledger.breathing_space = self._pace.pause if alone else 0.0

    async def beat(self) -> None:
        """Tell the supervisor every 0.1 s, from this loop, that the loop runs."""
        while True:
            self._mind_deadline()
            self.health.look(ready=self._read)
            self._mind_store()
            self._make_room()
            fence = self.book.fence
            self._link.post(
                "beat",
                role=str(self.role),
                epoch=self.ledger.epoch or 0,
                ready=self.ready,
                append_age=self.ledger.append_age,
                reason=self.reason,
                store_token=self.tokens.token,
                log_epoch=self.book.max_epoch,
                log_seq=self.book.seq,
                cluster=self.kit.cluster,
                store_ok=self.health.ok and (self.leads or self.tokens.problem is None),
                streams=len(self.streams.connected()),
                primary=fence.name if fence else None,
            )
            await asyncio.sleep(BEAT_S)

    def _mind_deadline(self) -> None:
        # The supervisor may be stopped or starved: this process keeps the time itself. The log keeps a writer without
        # a lease harmless; the pause after each append keeps it from starving the fence of whoever was granted one.
        over = self.clock.boottime() - self.deadline
        if self.role is Role.ACTIVE and over > 0:
            self._event(RoleEvent.UNLEASED)
        if self._settings.stop_when_unleased and self.leads and over > self.kit.timing.margin / 2:
            _log.error("%s has no lease, and stops, as local/server.json says", self.kit.name)
            self.ledger.close(f"{self.kit.name} has no lease")
            self.stopping.set()

    @property
    def reason(self) -> str | None:
        """Why this server is not ready, or cannot be trusted to write; None if all is well."""
        if self.health.trouble is not None:
            return self.health.trouble
        if not self.ready:
            return "it tries the store" if self._read else "it reads the log"
        return None if self.leads else self.tokens.problem

    def _mind_store(self) -> None:
        if self.leads and not self.health.ok:
            if self.health.wrong is not None:
                self.ledger.close(self.health.wrong)
            self._event(RoleEvent.STORE_LOST)

    async def watch_store(self) -> None:
        """Try the store now and then; once it was lost, until it takes writes again."""
        while True:
            self._mind_store()
            await self.health.probe_if_due()
            self.health.look(ready=self._read)
            self._mind_store()
            if self.role is Role.READONLY and self.health.ok:
                self._event(RoleEvent.STORE_BACK)
                self.ledger.reopen()
                self._changed(set(self.book.jobs))
            await self._raise_log_version()
            await asyncio.sleep(self.kit.timing.renew)

    async def _raise_log_version(self) -> None:
        """All servers read a newer version of the log: write it from now on."""
        if self.role is Role.ACTIVE and self._log_version > self.book.log_version:
            try:
                await self.ledger.raise_log_version(self._log_version)
            except FedhelmError as error:
                _log.warning("the log stays at version %d: %s", self.book.log_version, error)
            else:
                _log.info("%s writes version %d of the log from now on", self.kit.name, self._log_version)

    # -- promotion, draining, fencing ---------------------------------------------------------------------------------

    async def _promote(self, frame: Frame) -> None:
        epoch, cause = int(frame["epoch"]), str(frame["cause"])
        self._event(RoleEvent.GRANT)
        try:
            await self.ledger.read_on()
            self._check_forward(int(frame.get("log_seq") or 0))
            await self.ledger.fence(epoch, cause)
        except FedhelmError as error:
            _log.warning("%s cannot take over with epoch %d: %s", self.kit.name, epoch, error)
            self._event(RoleEvent.REFUSED)
            await self._link.send("refused", epoch=epoch, reason=str(error))
            return
        except BaseException:
            # A defect: a server that neither serves nor refuses would keep the lease.
            self.stopping.set()
            raise
        finally:
            self._promotion = None
        self._event(RoleEvent.FENCED_IN)
        _log.info("%s leads with epoch %d (%s)", self.kit.name, epoch, cause)
        jobs = len(list(self.book.running()))
        await self._link.send("active", epoch=epoch, log_seq=self.book.seq, jobs=jobs)
        self._changed(set(self.book.jobs))
        for listener in self.on_lead:
            listener()

    def _check_forward(self, log_seq: int) -> None:
        if self.health.wrong is not None:
            raise WrongStore(self.health.wrong)
        if self.book.seq < log_seq:
            raise Conflict(f"the store went backwards: the log ends at {self.book.seq}, was at {log_seq}")

    async def _drain(self, frame: Frame) -> None:
        self._event(RoleEvent.DRAIN)
        body = {"to": frame["to"], "request_id": frame.get("request_id")}

        def decide(book: JobBook) -> dict[str, Any] | Answer:
            return Answer(None) if book.handoff == body else body

        try:
            await self.ledger.propose("handoff", decide)
        except FedhelmError as error:
            _log.warning("the handoff to %s failed: %s", frame["to"], error)
            self._event(RoleEvent.RESUME)
            self._reopen_if_leading()
            return
        if self.role is not Role.DRAINING:  # called off while it was on its way: without a higher fence it is void
            return
        self.ledger.close(f"{self.kit.name} hands over to {frame['to']}")
        await self.ledger.drained()
        await self._link.send("drained", log_seq=self.book.seq)

    def _applied(self, records: list[Record]) -> None:
        changed: set[str] = set()
        for record in records:
            if record.kind in EPOCH_RAISING:
                self._saw_fence()
            for item in record.body.get("items", (record.body,)):
                if "job" in item:
                    changed.add(item["job"])
        self._changed(changed)

    def _replaced(self) -> None:
        self._saw_fence()
        self._changed(set(self.book.jobs))

    def _saw_fence(self) -> None:
        fence: Fence | None = self.book.fence
        mine = self.ledger.is_mine()
        wrote = self.role not in (Role.STANDBY, Role.PROMOTING)
        if fence is None or mine or not wrote:
            return
        self._event(RoleEvent.FOREIGN_FENCE)
        self.ledger.close(str(self.refusal()))
        self._link.post("fenced", epoch=fence.epoch)
        # A child that has led leaves: its supervisor starts another, with nothing left over, as a standby.
        self.stopping.set()

    def _changed(self, jobs: set[str]) -> None:
        self.streams.wake_all()
        for listener in self.on_change:
            listener(jobs)

    # -- the tail -----------------------------------------------------------------------------------------------------

    async def follow_log(self) -> None:
        """Read on every P, whatever the role: a standby to be warm, a primary to learn that it no longer leads."""
        while True:
            await self._tail()
            await asyncio.sleep(self.kit.timing.observe)

    async def _tail(self) -> None:
        try:
            with self.health.reading():
                await self.ledger.read_on()
        except StoreUnavailable as error:
            self.health.lost(f"the store cannot be read: {error}")
            self._mind_store()
        except Fenced:
            self._saw_fence()
        else:
            self._tailed = self.clock.boottime()
            self._read = True

    # -- small services of the store ----------------------------------------------------------------------------------

    async def missing_chunks(self, request: common.MissingChunksRequest) -> common.MissingChunksReply:
        """Tell which chunks of an upload the store lacks; the caller has checked the owner."""
        sent = request.manifest
        manifest = Manifest(size=sent.size, chunk_size=sent.chunk_size, chunks=tuple(sent.chunks))
        indices = await asyncio.to_thread(self.store.blobs.missing, request.owner, manifest)
        return common.MissingChunksReply(indices=indices)

    def site_changed(self, site: str, *, connected: bool) -> None:
        """A site's stream was opened or has ended."""
        _log.info("%s %s", site, "connected" if connected else "disconnected")
        self._changed(set())
