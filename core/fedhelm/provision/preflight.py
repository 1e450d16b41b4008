"""What has to be true on this machine before a participant is started: each fact is looked at, and none is changed.

Each check yields findings and raises nothing. What it cannot find out is a finding, too.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from fedhelm.clock import Clock, SystemClock
from fedhelm.config.kit import ADMIN_ROLES, Kit, OverseerAddress, ServerAddress, read_kit
from fedhelm.config.log_levels import LOG_CONFIG, levels_of
from fedhelm.config.server_settings import SETTINGS_FILE, read_settings
from fedhelm.config.site_settings import SITE_SETTINGS, read_site_settings
from fedhelm.errors import FedhelmError, WrongStore
from fedhelm.privacy.files import privacy_texts
from fedhelm.process import ParticipantLock
from fedhelm.provision.reach import TIMEOUT, Finding, Level, ask_others, reason_of
from fedhelm.security.audit_start import AUDIT_SETTINGS, read_audit_settings
from fedhelm.security.authorization import default_policy
from fedhelm.security.gates import AUTHORIZATION_FILE, read_policy
from fedhelm.security.kit import open_kit, remembered_version
from fedhelm.security.pki import load_certificate, load_roots
from fedhelm.security.signing import verify_startup
from fedhelm.security.trust import expiry_warnings

__all__ = ["examine"]

FREE: Final = 1024**3
"""Bytes that should be free where a participant writes."""


def examine(root: Path, *, clock: Clock | None = None, network: bool = True) -> Iterator[Finding]:
    """Look at everything, the kit first: without a kit that can be trusted nothing else is tried.

    Args:
        root: the participant's folder.
        clock: for the certificate's validity.
        network: whether names, overseers and servers are asked.
    """
    clock = clock or SystemClock()
    try:
        kit = read_kit(root)
        version = verify_startup(kit.startup)
    except FedhelmError as error:
        yield Finding("fail", "files", str(error), error.hint)
        return
    yield Finding(
        "ok", "files", f"kit of the {kit.role} {kit.name}, project {kit.project}, version {version}: all signed"
    )
    for what, found in (
        ("certificate", _identity(kit, clock)),
        ("permissions", _permissions(kit)),
        ("policy", _policy(kit)),
        ("settings", _settings(kit)),
        ("privacy", _privacy(kit)),
        ("software", _software()),
        ("disk", _disk(kit)),
        ("store", _store(kit)),
        ("gpu", _graphics(kit)),
        ("port", _own_ports(kit)),
    ):
        try:
            yield from found
        except OSError as error:
            told = f"{error.filename or kit.root} cannot be looked at: {error.strerror or error}"
            yield Finding("fail", what, told, "run this as the user who runs the participant")
    if network and os.access(kit.key, os.R_OK):  # without it nobody can be asked, and that it is missing was said
        yield from ask_others(kit, clock)


def _identity(kit: Kit, clock: Clock) -> Iterator[Finding]:
    try:
        open_kit(kit.root, clock=clock)
        highest = remembered_version(kit)
        now = clock.utcnow()
        certificates = [(kit.cert.name, load_certificate(kit.cert.read_bytes(), str(kit.cert)))]
        certificates += [(kit.ca.name, one) for one in load_roots(kit.ca.read_bytes(), str(kit.ca))]
    except FedhelmError as error:
        yield Finding("fail", "certificate", str(error), error.hint)
        return
    for name, certificate in certificates:
        warning = expiry_warnings(certificate, now)
        until = f"valid until {certificate.not_valid_after_utc.date().isoformat()}"
        what = "certificate" if name == kit.cert.name else "root"
        hint = "ask the project's administrator for a new kit (fedhelm pki renew)" if warning else None
        yield Finding("warn" if warning else "ok", what, f"{name} {warning or until}", hint)
    if len(certificates) > 2:
        yield Finding("ok", "root", "the root is being rotated: two are trusted")
    if highest:
        yield Finding("ok", "version", f"version {highest} of this kit was in use here; an older one is refused")


def _permissions(kit: Kit) -> Iterator[Finding]:
    open_to_others = [
        path for path in (kit.root, kit.startup, kit.local, *kit.startup.iterdir())
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o022
    ]  # fmt: skip
    own = [path for path in (kit.startup, kit.key) if path.exists()]
    foreign = [path for path in own if path.stat().st_uid != os.geteuid()]
    for path in open_to_others:
        yield Finding("warn", "permissions", f"{path} can be changed by others", f"chmod go-w {path}")
    for path in foreign:
        yield Finding(
            "warn", "permissions", f"{path} belongs to another user", "run the participant as the kit's owner"
        )
    if not open_to_others and not foreign:
        yield Finding("ok", "permissions", "nobody else can change the kit, and it belongs to who runs this check")


def _policy(kit: Kit) -> Iterator[Finding]:
    """Read the policy as the participant does when it starts, where it has one."""
    found = [path for path in (kit.startup / AUTHORIZATION_FILE, kit.local / AUTHORIZATION_FILE) if path.exists()]
    if kit.role in ADMIN_ROLES or not found:
        return
    try:
        read_policy(kit.root, missing=default_policy() if kit.role == "overseer" else None)
    except FedhelmError as error:
        yield Finding("fail", "policy", str(error), error.hint)
    else:
        yield Finding("ok", "policy", " and ".join(str(path.relative_to(kit.root)) for path in found) + " can be read")


def _settings(kit: Kit) -> Iterator[Finding]:
    """Read what else of ``local/`` keeps a participant from starting where it has a mistake."""
    if kit.role in ADMIN_ROLES:
        return
    readers: dict[str, Callable[[], object]] = {
        LOG_CONFIG: lambda: levels_of(kit),
        AUDIT_SETTINGS: lambda: read_audit_settings(kit.local),
    }
    if kit.role == "server":
        readers[SETTINGS_FILE] = lambda: kit.timing.check(
            stop_when_unleased=read_settings(kit.local).stop_when_unleased
        )
    if kit.role == "site":
        readers[SITE_SETTINGS] = lambda: read_site_settings(kit.local)
    wrong = False
    for read in readers.values():
        try:
            read()
        except FedhelmError as error:
            wrong = True
            yield Finding("fail", "settings", str(error), error.hint)
    there = [name for name in readers if (kit.local / name).exists()]
    if there and not wrong:
        yield Finding("ok", "settings", " and ".join(f"local/{name}" for name in there) + " can be read")


def _privacy(kit: Kit) -> Iterator[Finding]:
    """Read what the site does to results before they leave."""
    if kit.role != "site":
        return
    from fedhelm.privacy.policy import PrivacyPolicy

    try:
        texts = privacy_texts(kit.startup, kit.local)
        policy = PrivacyPolicy.of_texts(texts)
    except FedhelmError as error:
        yield Finding("fail", "privacy", str(error), error.hint)
        return
    if texts:
        told = ", ".join(dataclasses.replace(policy, show_parameters=True).describe()) or "nothing is filtered"
        yield Finding("ok", "privacy", told)


_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+)\s*([<>=!~].*)?")
_BOUND: Final = re.compile(r"\s*(>=|<)\s*([0-9][0-9.]*)\s*")


def _software() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    try:
        own, requirements = metadata.version("fedhelm"), metadata.requires("fedhelm") or []
    except metadata.PackageNotFoundError:
        yield Finding("warn", "software", f"fedhelm is not an installed package; Python {version}")
        return
    wrong = [said for one in requirements if ";" not in one and (said := _missing(one))]
    for said in wrong:
        yield Finding("fail", "software", said, "install fedhelm again: pip install -c constraints.txt fedhelm")
    if not wrong:
        number = sum(";" not in one for one in requirements)
        yield Finding("ok", "software", f"fedhelm {own}, Python {version}, {number} packages, all as needed")


def _missing(requirement: str) -> str | None:
    """Return what is wrong with a package that is needed; None if nothing is."""
    match = _REQUIREMENT.fullmatch(requirement.strip())
    if match is None:
        return None
    try:
        version = metadata.version(match[1])
    except metadata.PackageNotFoundError:
        return f"the package {match[1]} is missing"
    for sign, bound in _BOUND.findall(match[2] or ""):
        have, need = _numbers(version), _numbers(bound)
        if (have < need) if sign == ">=" else (have >= need):
            return f"the package {match[1]} has version {version}, needed is {sign}{bound}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    head = re.match(r"[0-9]+(\.[0-9]+)*", version)
    numbers = [int(one) for one in head[0].split(".")] if head else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _disk(kit: Kit) -> Iterator[Finding]:
    for what, path in (("disk", kit.root), ("store", kit.store)):
        if path is None or not path.is_dir():
            continue
        free = shutil.disk_usage(path).free
        said = f"{free / 1024**3:.1f} GiB free at {path}"
        yield Finding("ok" if free >= FREE else "warn", what, said, None if free >= FREE else "make room")


def _store(kit: Kit) -> Iterator[Finding]:
    if kit.store is None:
        return
    from fedhelm.persist.store import open_store, probe

    try:
        open_store(kit.store, kit.cluster)
        probe(kit.store)
    except WrongStore as error:
        first = not (kit.store / "log").is_dir()
        hint = "at the federation's very first start: startup/start.sh --found-store; else see that it is mounted"
        yield Finding("fail", "store", str(error), hint if first else error.hint)
    except FedhelmError as error:
        yield Finding("fail", "store", str(error), error.hint)
    else:
        yield Finding("ok", "store", f"{kit.store} is this federation's, can be written, and keeps a name exclusive")


def _graphics(kit: Kit) -> Iterator[Finding]:
    if kit.role != "site":
        return
    asked = kit.resources.get("gpu", [])
    wanted = {one for one in asked if isinstance(one, int)} if isinstance(asked, list) else set()
    program = shutil.which("nvidia-smi")
    if program is None:
        said = f"the kit offers GPU {sorted(wanted)}, and there is no nvidia-smi here" if wanted else "none is offered"
        hint = "install the driver, or offer none in the project file" if wanted else None
        yield Finding("fail" if wanted else "ok", "gpu", said, hint)
        return
    try:
        command = [program, "--query-gpu=index,name,memory.total", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        level: Level = "fail" if wanted else "warn"
        yield Finding(level, "gpu", f"nvidia-smi does not work: {reason_of(error)}", "see to the driver")
        return
    found = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    there = {int(line.partition(",")[0]) for line in found if line.partition(",")[0].isdigit()}
    if lacking := wanted - there:
        yield Finding(
            "fail", "gpu", f"the kit offers GPU {sorted(lacking)}, which is not there: {found}", "see nvidia-smi"
        )
    else:
        yield Finding("ok", "gpu", "; ".join(found) or "none is there, and none is offered")


def _own_ports(kit: Kit) -> Iterator[Finding]:
    if kit.role in ADMIN_ROLES or kit.role == "site":
        return
    own: OverseerAddress | ServerAddress = kit.own_overseer if kit.role == "overseer" else kit.own_server
    ports = (own.port,) if isinstance(own, OverseerAddress) else (own.fed_learn_port, own.admin_port)
    holder = ParticipantLock.holder(kit.run)
    for port in ports:
        if holder is not None:
            yield Finding("ok", "port", f"{port}: {kit.name} runs already, pid {holder}")
        elif (error := _bind_error(port)) is None:
            yield Finding("ok", "port", f"{port} is free")
        else:
            yield Finding("fail", "port", f"{port}: {error}", f"`ss -ltnp sport = :{port}` shows by whom it is taken")


def _bind_error(port: int) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen(1)
        except OSError as error:
            return error.strerror or str(error)
    return None
