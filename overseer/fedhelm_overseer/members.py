"""Which servers the project has: those of the overseer's kit, those that announced themselves, less those removed.

A server shows its signed kit when it registers (docs/decisions/0013). Its addresses come from there, and only once the
signature was verified against the project's root and the name against the caller's certificate. Of two kits of one name
the one signed later is in force; a removal counts against every kit that was signed before it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from fedhelm.config.kit import CONFIG_FILE, Kit, ServerAddress, kit_from_json
from fedhelm.errors import KitError, NotFound, Refused
from fedhelm.security.signing import SIGNATURE_FILE, parse_manifest
from fedhelm.wire.overseer_api import Announcement
from fedhelm_overseer.lease import ServerEntry

__all__ = ["Member", "Roster", "kit_date", "verified"]


@dataclass(frozen=True, slots=True)
class Member:
    """A server of the project and when the kit was signed that says so."""

    address: ServerAddress
    kit_date: str = ""


class Roster:
    """The servers in order: as in the kit, then those that announced themselves, by name. A value: never changes.

    Args:
        kit: the overseer's own.
        signed: when that was signed, see ``kit_date``.
        entries: what the lease store keeps of servers that announced themselves or were removed.
    """

    def __init__(self, kit: Kit, signed: str, entries: tuple[ServerEntry, ...]) -> None:
        kept = {entry.name: entry for entry in entries}
        members = [_in_force(one, signed, kept.pop(one.name, None)) for one in kit.servers]
        members += [_member(kept[name]) for name in sorted(kept) if kept[name].removed_at is None]
        self._members = {member.address.name: member for member in members if member is not None}
        self._removed = {
            entry.name: entry.removed_at
            for entry in entries
            if entry.removed_at is not None and entry.name not in self._members
        }

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> tuple[str, ...]:
        """The servers' names, in order."""
        return tuple(self._members)

    @property
    def addresses(self) -> tuple[ServerAddress, ...]:
        """The servers' addresses, in order."""
        return tuple(member.address for member in self._members.values())

    def address(self, name: str) -> ServerAddress | None:
        """Return where the server called ``name`` answers; None if the project has none of that name."""
        member = self._members.get(name)
        return member.address if member is not None else None

    def check(self, name: str) -> None:
        """Accept a name that the project has.

        Raises:
            Refused: it was removed.
            NotFound: it has none of that name.
        """
        if name in self._members:
            return
        if name in self._removed:
            raise Refused(
                f"{name} was removed at {self._removed[name]}", hint="a kit that was signed later lets it in again"
            )
        raise NotFound(f"the project has no server {name}", hint=f"its servers: {', '.join(self._members)}")

    def admit(self, name: str, entry: ServerEntry | None) -> ServerEntry | None:
        """Judge a registration; return what is to be written down, or None if the store has it or need not.

        Args:
            name: by the caller's certificate.
            entry: what its signed kit says; None if it showed none.

        Raises:
            Refused: it was removed after its kit was signed, or a later kit gave its name another address.
            NotFound: no server of the project, and it showed no kit.
        """
        if entry is None:
            self.check(name)
            return None
        removed, member = self._removed.get(name), self._members.get(name)
        if removed is not None and entry.kit_date <= removed:
            raise Refused(
                f"{name} was removed at {removed}, and its kit was signed before ({entry.kit_date or 'no date'})",
                hint="make a new kit for it",
            )
        if member is None:
            return entry
        if member.address == _address(entry):
            return None
        if entry.kit_date <= member.kit_date:
            there = f"{member.address.host}:{member.address.fed_learn_port}"
            raise Refused(
                f"{name} answers at {there} by a kit signed at {member.kit_date}; this one is of "
                f"{entry.kit_date or 'no date'} and names {entry.host}:{entry.fed_learn_port}",
                hint="unpack the newest kit of this server",
            )
        return entry


def kit_date(kit: Kit) -> str:
    """Return when ``kit``, which was opened and so verified, was signed; empty if it does not say."""
    try:
        return parse_manifest((kit.startup / SIGNATURE_FILE).read_bytes(), str(kit.startup)).created
    except (OSError, KitError):
        return ""


def verified(announcement: Announcement, kit: Kit, name: str) -> ServerEntry:
    """Check what the server ``name`` (by its certificate) shows of its kit, against the project's root in ``kit``.

    Raises:
        KitError: the signature is not the root's, the configuration is not the one signed, or is of another role, name,
            project or cluster.
    """
    where = f"the kit that {name} shows"
    manifest = parse_manifest(announcement.manifest, where)
    try:
        root = kit.ca.read_bytes()
    except OSError as error:
        raise KitError(f"{kit.ca} cannot be read: {error.strerror}") from error
    if not manifest.signed_by(root):
        raise KitError(f"{where} was not signed by this project's root")
    config = announcement.config.encode()
    if manifest.files.get(CONFIG_FILE["server"]) != hashlib.sha256(config).hexdigest():
        raise KitError(f"{where}: its configuration is not the one that was signed")
    try:
        data = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise KitError(f"{where}: its configuration is not JSON") from error
    shown = kit_from_json(kit.root, data, where)
    for what, theirs, expected in (
        ("role", shown.role, "server"),
        ("name", shown.name, name),
        ("project", shown.project, kit.project),
        ("cluster", shown.cluster, kit.cluster),
    ):
        if theirs != expected:
            raise KitError(f"{where}: its {what} is {theirs}, not {expected}")
    address = shown.own_server
    return ServerEntry(
        name=name,
        host=address.host,
        fed_learn_port=address.fed_learn_port,
        admin_port=address.admin_port,
        org=shown.org,
        kit_date=manifest.created,
    )


def _address(entry: ServerEntry) -> ServerAddress:
    return ServerAddress(entry.name, entry.host, entry.fed_learn_port, entry.admin_port)


def _member(entry: ServerEntry) -> Member:
    return Member(_address(entry), entry.kit_date)


def _in_force(listed: ServerAddress, signed: str, entry: ServerEntry | None) -> Member | None:
    """Return what holds for a server of the overseer's kit: the kit, or what came after it."""
    if entry is None:
        return Member(listed, signed)
    if entry.removed_at is not None:
        return Member(listed, signed) if signed > entry.removed_at else None
    return _member(entry) if entry.kit_date > signed else Member(listed, signed)
