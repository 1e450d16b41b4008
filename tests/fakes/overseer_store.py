"""The lease store in memory; passes the contract tests of the real one."""

from __future__ import annotations

import threading
from dataclasses import replace

from fedhelm.errors import StoreUnavailable
from fedhelm_overseer.lease import LeaseRow, MemberRow, Operation, ServerEntry, Term


class MemoryLeaseStore:
    def __init__(self):
        self._lock = threading.Lock()
        self._row = LeaseRow()
        self._members = {}
        self._history = {}
        self._operations = {}
        self._servers = {}
        self._starts = 0
        self._revocations = (0, b"")
        self.broken = False

    def _check(self):
        if self.broken:
            raise StoreUnavailable("the lease store does not answer: told so by the test")

    def _set(self, decision=True, **changes):
        self._row = replace(self._row, version=self._row.version + decision, **changes)
        return self._row

    def _held(self, epoch, holder):
        return self._row.epoch == epoch and self._row.holder == holder and self._row.state in {"granted", "active"}

    def _same(self, row):
        seen = (row.epoch, row.renew_seq, row.state, row.version)
        return (self._row.epoch, self._row.renew_seq, self._row.state, self._row.version) == seen

    def _mark(self, holder, **changes):
        member = self._members.get(holder.name)
        if member is not None and member.incarnation == holder.incarnation:
            self._members[holder.name] = replace(member, **changes)

    def read(self):
        self._check()
        return self._row

    def renew(self, epoch, holder, log_seq):
        self._check()
        with self._lock:
            if not self._held(epoch, holder):
                return None
            highest = max(self._row.log_seq, log_seq)
            return self._set(decision=False, renew_seq=self._row.renew_seq + 1, log_seq=highest)

    def activate(self, epoch, holder, log_seq, at, gap_s, *, jobs=None):
        self._check()
        with self._lock:
            if not self._held(epoch, holder) or self._row.state != "granted":
                return None
            self._history[epoch] = replace(self._history[epoch], active_at=at, gap_s=gap_s, jobs=jobs)
            return self._set(state="active", intent=None, intent_by=None, log_seq=max(self._row.log_seq, log_seq))

    def release(self, epoch, holder, cause, *, refused):
        self._check()
        with self._lock:
            if not self._held(epoch, holder):
                return None
            self._mark(holder, **({"refused": cause} if refused else {"spent": True}))
            return self._set(state="released", cause=cause)

    def grant(self, row, epoch, holder, cause, at, *, keep_intent):
        self._check()
        if epoch <= row.epoch:
            raise ValueError("epoch does not rise")
        with self._lock:
            if not self._same(row):
                return None
            assert epoch not in self._history
            request = row.intent.request_id if keep_intent and row.intent else None
            previous = row.holder.name if row.holder else None
            by = row.intent_by if request else None
            self._history[epoch] = Term(epoch, holder, cause, at, previous, request, by=by)
            if row.holder is not None and row.state in {"granted", "active"}:
                self._mark(row.holder, spent=True)
            intent = self._row.intent if keep_intent else None
            return self._set(
                epoch=epoch,
                holder=holder,
                state="granted",
                cause=cause,
                intent=intent,
                intent_by=self._row.intent_by if intent else None,
                renew_seq=self._row.renew_seq + 1,
            )

    def adopt(self, row, epoch, holder, log_seq, at):
        self._check()
        if epoch <= row.epoch:
            raise ValueError("epoch does not rise")
        with self._lock:
            if not self._same(row):
                return None
            previous = row.holder.name if row.holder else None
            self._history[epoch] = Term(epoch, holder, "adopted", at, previous, active_at=at)
            return self._set(
                epoch=epoch,
                holder=holder,
                state="active",
                cause="adopted",
                intent=None,
                intent_by=None,
                log_seq=log_seq,
                renew_seq=self._row.renew_seq + 1,
            )

    def set_intent(self, row, intent, *, by=None):
        self._check()
        with self._lock:
            if self._row.version != row.version:
                return None
            return self._set(intent=intent, intent_by=by if intent else None)

    def _once(self, operation):
        fresh = operation.request_id not in self._operations
        self._operations.setdefault(operation.request_id, operation)
        return fresh

    def set_paused(self, row, paused, by, *, request_id, at, reason=""):
        self._check()
        with self._lock:
            if request_id in self._operations:
                return self._row
            if self._row.version != row.version:
                return None
            self._once(Operation(request_id, "pause" if paused else "resume", by, at, reason=reason))
            told = {"paused_by": by, "pause_reason": reason} if paused else {"paused_by": None, "pause_reason": None}
            return self._set(paused=paused, **told)

    def set_shutdown(self, request_id, by, *, at, reason=""):
        self._check()
        with self._lock:
            fresh = self._once(Operation(request_id, "shutdown", by, at, reason=reason))
            return self._set(shutdown=request_id) if fresh else self._row

    def operations(self):
        self._check()
        return tuple(sorted(self._operations.values(), key=lambda one: one.at))

    def servers(self):
        self._check()
        return tuple(self._servers[name] for name in sorted(self._servers))

    def announce(self, entry):
        self._check()
        with self._lock:
            known = self._servers.get(entry.name)
            if known is not None:
                older = entry.kit_date < known.kit_date
                if older or (known.removed_at is not None and entry.kit_date <= known.removed_at):
                    return known
            self._servers[entry.name] = entry
            return self._servers[entry.name]

    def remove(self, name, by, *, request_id, at, reason=""):
        self._check()
        with self._lock:
            known = self._servers.get(name, ServerEntry(name))
            if self._once(Operation(request_id, "remove", by, at, name, reason)):
                self._servers[name] = known = replace(known, removed_at=at)
                self._members.pop(name, None)
            return known

    def register(self, holder):
        self._check()
        with self._lock:
            known = self._members.get(holder.name)
            spent = known is not None and known.spent and known.incarnation == holder.incarnation
            self._members[holder.name] = MemberRow(holder.name, holder.incarnation, spent)
            return self._members[holder.name]

    def members(self):
        self._check()
        return tuple(self._members[name] for name in sorted(self._members))

    def history(self):
        self._check()
        return tuple(self._history[epoch] for epoch in sorted(self._history))

    def revocations(self, above=0):
        self._check()
        version, data = self._revocations
        return version, data if version > above else b""

    def revoke(self, version, data, *, over):
        self._check()
        if version <= over:
            raise ValueError("version does not rise")
        with self._lock:
            if self._revocations[0] != over:
                return None
            self._revocations = (version, data)
            return self._set()

    def count_start(self):
        self._check()
        self._starts += 1
        return self._starts

    def close(self):
        pass
