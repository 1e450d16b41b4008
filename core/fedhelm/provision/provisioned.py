"""A provisioned project on disk: ``prod_NN/``, ``resources/`` and ``state/``, which remembers what was ever issued.

The order of writing is what survives a crash: certificates are recorded with the number of the ``prod_NN`` that will
hold them, ``project.json`` announces its kits, then that folder appears by one rename, then ``project.json`` says that
it is the last. Certificates of a number that never appeared were given to nobody, and are forgotten. A folder that
appeared counts, whether its run lived to say so or not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhelm.clock import Clock, SystemClock, iso
from fedhelm.errors import Conflict, DeadlineExceeded, KitError, NotFound, WorkspaceExists
from fedhelm.ids import new_cluster_id
from fedhelm.plain_json import parse_plain
from fedhelm.process import atomic_write, fsync_dir
from fedhelm.provision.issued import By, IssuedCertificate, is_number
from fedhelm.provision.project import Project
from fedhelm.provision.project_files import ProjectFiles
from fedhelm.provision.stop import wait_until
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.revocation import RevocationList, Revoked

__all__ = ["ProjectFolder"]

_FORMAT = 1
_LOCK_TIMEOUT = 30.0  # seconds; a run that holds the lock makes some hundred kits in that time


def _is_project(body: Any) -> bool:
    kits, last, announced = body.get("kits", {}), body.get("last_prod"), body.get("announced")
    return (
        body["format"] == _FORMAT
        and isinstance(body["project"], str)
        and isinstance(body["cluster"], str)
        and is_number(body["kit_version"])
        and (last is None or is_number(last))
        and isinstance(kits, dict)
        and (announced is None or (is_number(announced["prod"]) and isinstance(announced["kits"], dict)))
    )


class ProjectFolder(ProjectFiles):
    """The folder of one project, ``workspace/<project>``.

    Attributes:
        root: The folder.
        project: Its name, which every certificate carries.
        cluster: The federation's id.
    """

    def __init__(self, root: Path, body: Mapping[str, Any]) -> None:
        super().__init__(root)
        self.project, self.cluster = str(body["project"]), str(body["cluster"])
        self._body = dict(body)
        self._depth = 0
        self._lock: int | None = None
        self._parsed: tuple[bytes, tuple[IssuedCertificate, ...]] = b"", ()

    @classmethod
    def open(cls, path: Path) -> ProjectFolder:
        """Find the project at ``path``.

        Raises:
            NotFound: there is none.
            KitError: its state cannot be read.
        """
        file = path / "state" / "project.json"
        try:
            body = parse_plain(file.read_bytes())
            good = _is_project(body)
        except FileNotFoundError:
            inside = next((one.parent.parent for one in sorted(path.glob("*/state/project.json"))), None)
            hint = "fedhelm provision -p project.yml makes it" if inside is None else f"it is in {inside}: -w {inside}"
            raise NotFound(f"{path}: no provisioned project: it has no state/project.json", hint=hint) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise KitError(f"{file}: cannot be read: {error}") from error
        if not good:
            raise KitError(f"{file}: not the state of a project, format {_FORMAT}")
        return cls(path.resolve(), body)

    @classmethod
    def create(
        cls,
        path: Path,
        project: str,
        *,
        cluster: str | None = None,
        passphrase: bytes | None = None,
        clock: Clock | None = None,
    ) -> ProjectFolder:
        """Make the folder with a new root, and nothing issued.

        Args:
            path: the folder; it may exist if it is empty.
            project: its name.
            cluster: its id; a new one if not given.
            passphrase: the root key is encrypted under it; plain without one.
            clock: for the root's validity.

        Raises:
            WorkspaceExists: the folder has something in it.
        """
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise WorkspaceExists(f"{path} exists and is not empty")
        authority = CertificateAuthority.create(project, clock=clock)
        state = path / "state"
        state.mkdir(mode=0o700)
        atomic_write(state / "rootCA.key", authority.key_pem(passphrase), mode=0o600)
        atomic_write(state / "rootCA.pem", authority.cert_pem, mode=0o644)
        body = {
            "format": _FORMAT,
            "project": project,
            "cluster": cluster or new_cluster_id(),
            "last_prod": None,
            "kit_version": 0,
            "kits": {},
        }
        folder = cls(path.resolve(), body)
        folder._write("certificates.json", {"format": _FORMAT, "certificates": []})
        folder._write("project.json", body)
        return folder

    def complete(self, project: Project) -> Project:
        """Return the project that a file describes with what only its state knows."""
        return dataclasses.replace(project, cluster=self.cluster, retired_roots=self.retired_roots)

    @property
    def last_prod(self) -> int | None:
        """The number of the last ``prod_NN``, whether its folder is still there or not; None before the first."""
        return self._following if self._published else self._recorded

    @property
    def _recorded(self) -> int | None:
        recorded: int | None = self._body.get("last_prod")
        return recorded

    @property
    def _following(self) -> int:
        return 0 if self._recorded is None else self._recorded + 1

    @property
    def _published(self) -> bool:
        """Whether a run made a folder appear, and died before it could say so."""
        return self.prod(self._following).is_dir()

    @property
    def kit_version(self) -> int:
        """The highest version that a kit of this project ever had; the next kits get higher ones."""
        return max([int(self._body["kit_version"]), *(one.kit_version for one in self._all())])

    @property
    def kit_digests(self) -> Mapping[str, str]:
        """Participant -> digest of its kit in the last ``prod_NN``, to see whether anything changed."""
        announced = self._body.get("announced") or {}
        if self._published and announced.get("prod") == self._following:
            return dict(announced["kits"])
        return dict(self._body.get("kits", {}))

    def authority(self, passphrase: bytes | None = None, *, clock: Clock | None = None) -> CertificateAuthority:
        """Return the root.

        Raises:
            KitError: its files are not there, or the passphrase is missing or wrong.
        """
        return CertificateAuthority.load(
            self.project,
            self._read_bytes("rootCA.pem"),
            self._read_bytes("rootCA.key"),
            passphrase=passphrase,
            clock=clock,
        )

    # -- what was issued

    def certificates(self) -> list[IssuedCertificate]:
        """Return every certificate that was ever issued, oldest first.

        Raises:
            KitError: the file is missing or damaged.
        """
        last = self.last_prod
        return [one for one in self._all() if one.prod is None or (last is not None and one.prod <= last)]

    def current(self, name: str) -> IssuedCertificate | None:
        """Return the newest certificate of one participant that was not revoked, expired or not."""
        mine = [one for one in self.certificates() if one.name == name and not one.revoked]
        return mine[-1] if mine else None

    def record(self, *issued: IssuedCertificate) -> None:
        """Remember certificates that were just issued.

        Raises:
            Conflict: a serial number is there already.
        """
        with self.locked():
            known = self.certificates()
            twice = {one.serial for one in known} & {one.serial for one in issued}
            if twice:
                raise Conflict(f"{self.state / 'certificates.json'}: serial {min(twice)} is there already")
            self._write_certificates([*known, *issued])

    def revoke(
        self,
        serials: Iterable[str],
        reason: str,
        authority: CertificateAuthority,
        *,
        by: By = "name",
        clock: Clock | None = None,
    ) -> list[IssuedCertificate]:
        """Take certificates back: note it, and write the signed list of all that were ever taken back.

        The list is read and signed before anything is written. A run that broke off after the note and before the list
        is finished by the next one, whatever that one revokes.

        Args:
            serials: which; none at all only finishes what was broken off.
            reason: why, for all of them.
            authority: signs the list.
            by: who decides it, which says whether the participant comes back by itself.
            clock: for the time.

        Returns:
            Those that were not on the list before; the list gets a new version only where there is one.

        Raises:
            NotFound: a serial that was never issued.
            KitError: the list in place is damaged.
        """
        wanted, when = set(serials), iso((clock or SystemClock()).utcnow())
        with self.locked():
            known, listed = self.certificates(), self.revocation_list()
            if unknown := wanted - {one.serial for one in known}:
                raise NotFound(f"{self.root}: no certificate has the serial {min(unknown)}")
            new = {one.serial for one in known if one.serial in wanted and not one.revoked}
            changed = [
                dataclasses.replace(one, revoked_at=when, reason=reason, by=by) if one.serial in new else one
                for one in known
            ]
            missing = [one for one in changed if one.revoked and listed.revoked(one.serial) is None]
            entries = tuple(
                Revoked(one.serial, one.role, one.name, one.revoked_at or when, one.reason or "") for one in missing
            )
            signed = listed.with_revoked(entries, when).to_bytes(authority) if missing else None
            if new:
                self._write_certificates(changed)
            if signed is not None:
                self.write_revocations(signed)
        return missing

    def unlisted(self) -> list[IssuedCertificate]:
        """Return what was taken back and is not on the signed list: a run broke off in between.

        Raises:
            KitError: the list in place is damaged.
        """
        gone = [one for one in self.certificates() if one.revoked]
        listed = self.revocation_list() if gone else None
        return [one for one in gone if listed is not None and listed.revoked(one.serial) is None]

    def revocation_list(self) -> RevocationList:
        """Return the signed list, verified; an empty one of version 0 where nothing was ever revoked.

        Raises:
            KitError: it is damaged, or not of this project's root; the message names the file.
        """
        data = self.revocations()
        if data is None:
            return RevocationList(self.project, self.cluster)
        try:
            return RevocationList.parse(data, self._read_bytes("rootCA.pem"), self.project, self.cluster)
        except KitError as error:
            hint = "restore it from a backup, or copy run/revoked.json of the participant that has the newest"
            raise KitError(f"{self.state / 'revoked.json'}: {error.message}", hint=hint) from error

    # -- a run

    def take_kit_version(self) -> int:
        """Return a version that no kit of this project had, and never return it again."""
        with self.locked():
            self._body["kit_version"] = self.kit_version + 1
            self._write("project.json", self._body)
            return int(self._body["kit_version"])

    def draft(self, number: int) -> Path:
        """Return an empty folder to fill, which :meth:`publish` renames to ``prod_NN``; a former run's is removed."""
        path = self.root / f".prod_{number:02d}.tmp"
        self.sweep()
        path.mkdir(mode=0o700)
        return path

    def sweep(self) -> None:
        """Remove what runs left that were killed before their ``prod_NN`` appeared: kits that nobody was given."""
        with self.locked():
            for path in self.root.glob(".prod_*.tmp"):
                shutil.rmtree(path)

    def publish(self, number: int, issued: Sequence[IssuedCertificate], digests: Mapping[str, str]) -> Path:
        """Make the draft ``prod_NN``: all of it, or nothing.

        Args:
            number: the one that :meth:`draft` was asked for.
            issued: the new certificates in it; their ``prod`` is ``number``.
            digests: see :attr:`kit_digests`.
        """
        with self.locked():
            self.record(*issued)
            self._body["announced"] = {"prod": number, "kits": dict(digests)}  # so that the rename alone decides
            self._write("project.json", self._body)
            path = self.prod(number)
            (self.root / f".prod_{number:02d}.tmp").rename(path)
            fsync_dir(self.root)
            self._conclude()
        return path

    def _conclude(self) -> None:
        """Say in ``project.json`` that the folder which appeared is the last."""
        kits = self.kit_digests
        self._body |= {"last_prod": self._following, "kits": kits}
        self._body.pop("announced", None)
        self._write("project.json", self._body)

    @contextlib.contextmanager
    def locked(self, timeout: float = _LOCK_TIMEOUT) -> Iterator[None]:
        """Keep other runs away meanwhile; may be nested. The state is read anew first.

        Raises:
            DeadlineExceeded: another run holds the lock for longer than ``timeout`` seconds.
        """
        if self._depth == 0:
            self._lock = self._acquire(timeout)
            self._refresh()
            if self._published:
                self._conclude()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _acquire(self, timeout: float) -> int:
        lock = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

        def taken() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not wait_until(taken, timeout):
            os.close(lock)
            raise DeadlineExceeded(f"{self.root}: another run has been working on it for {timeout:g} s")
        return lock

    def _refresh(self) -> None:
        self._body = dict(ProjectFolder.open(self.root)._body)  # noqa: SLF001  its own class

    def _all(self) -> list[IssuedCertificate]:
        """Return every line, parsed once for each file: it is replaced, never changed in place."""
        path = self.state / "certificates.json"
        data = self._read_bytes("certificates.json")
        if data != self._parsed[0]:
            try:
                lines = [IssuedCertificate.from_json(one) for one in parse_plain(data)["certificates"]]
            except (ValueError, KeyError, TypeError) as error:
                hint = "restore the project's state from a backup"
                raise KitError(f"{path}: not a list of certificates", hint=hint) from error
            self._parsed = data, tuple(lines)
        return list(self._parsed[1])

    def _write_certificates(self, certificates: Sequence[IssuedCertificate]) -> None:
        rows = [one.to_json() for one in certificates]
        self._write("certificates.json", {"format": _FORMAT, "certificates": rows})
