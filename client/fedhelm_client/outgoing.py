"""What may leave this site for one job: the site's privacy policy between the script and everything that is sent."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhelm.config.kit import Kit
from fedhelm.errors import BadInput, Refused
from fedhelm.plain_json import parse_plain
from fedhelm.privacy.files import privacy_texts
from fedhelm.process import atomic_write
from fedhelm_client.folders import JobFolder
from fedhelm_client.job_process import Ended, failure_of
from fedhelm_client.outbox import Saved

if TYPE_CHECKING:
    from fedhelm.privacy.policy import PrivacyPolicy

__all__ = ["Outgoing", "check_privacy", "outgoing_of_job"]

_log = logging.getLogger("fedhelm.client")

_MESSAGES_STAY = "; its messages stay at this site"


def check_privacy(kit: Kit) -> None:
    """Read the site's policy, so that a mistake is met before the site serves anybody.

    Raises:
        BadInput: ``file:line:col: key: what is wrong``.
    """
    _policy_of(privacy_texts(kit.startup, kit.local))


def _policy_of(texts: Sequence[tuple[str, str]]) -> PrivacyPolicy | None:
    if not texts:
        return None
    from fedhelm.privacy.policy import PrivacyPolicy  # loads pydantic: only where there is a policy

    return PrivacyPolicy.of_texts(texts)


def outgoing_of_job(kit: Kit, folder: JobFolder) -> Outgoing:
    """Return the gate of one job. It keeps the policy that it began with, also across restarts of this agent. Blocking.

    It has begun once its bundle is unpacked: a policy that lies there without one is of a time before.

    Raises:
        BadInput: a mistake in the site's policy, or the job's copy of it is damaged.
        OSError: the disk refused.
    """
    kept = folder.privacy
    try:
        if not folder.bundle.is_dir():
            kept.unlink(missing_ok=True)
        texts = [_text_of(one) for one in parse_plain(kept.read_bytes())]
    except FileNotFoundError:
        texts = privacy_texts(kit.startup, kit.local)
        policy = _policy_of(texts)
        atomic_write(kept, json.dumps(texts).encode(), sync=bool(texts))
    except (ValueError, TypeError) as error:
        raise BadInput(f"{kept}: the job's copy of privacy.json is damaged") from error
    else:
        policy = _policy_of(texts)
    return Outgoing(policy)


def _text_of(kept: Any) -> tuple[str, str]:
    where, text = kept
    if not isinstance(where, str) or not isinstance(text, str):
        raise TypeError("no path and text")
    return where, text


class Outgoing:
    """All that a job's script hands out passes here before it is kept for sending.

    Args:
        policy: of the site; None: everything passes as it is.
    """

    def __init__(self, policy: PrivacyPolicy | None = None) -> None:
        self._policy = policy
        self._closed = threading.Event()
        self.told: tuple[str, ...] = () if policy is None else policy.describe()
        """What others may know of all that is done here."""

    def check_task(self, kind: str, *, has_model: bool) -> None:
        """Refuse a task whose result could not leave, before anything is trained.

        Raises:
            Refused: for people; it names the filter.
        """
        if self._policy is not None and kind == "train":
            from fedhelm.privacy.results import check_round

            check_round(self._policy, has_model=has_model)

    def result(
        self, saved: Saved, source: Path | None, *, model: Path | None, folder: Path
    ) -> tuple[Saved, Path | None]:
        """Return a result as it may leave, and its file. Blocking.

        Args:
            saved: as the script gave it.
            source: the script's file, which is taken away from it; None without tensors.
            model: that of the task's round.
            folder: the job's outbox.

        Raises:
            Refused: nothing of it may leave; the message is for all, the hint for this site alone.
            ProtocolError: the source is no plain file.
            OSError: the disk refused.
        """
        if self._policy is None:
            return saved, source
        from fedhelm.privacy.results import Result, filter_result

        given = Result(source, saved.weight, saved.metrics)
        passed, did = filter_result(
            self._policy, given, model=model, folder=folder, key=saved.id.key, go_on=self._go_on
        )
        for one in did:
            _log.info("%s of round %d: %s", saved.id.kind, saved.id.round, one)
        filters = self._policy.describe_result(tensors=source is not None)
        filtered = dataclasses.replace(saved, weight=passed.weight, metrics=passed.metrics, filters=filters)
        return filtered, passed.file

    def close(self) -> None:
        """The job ends here: give up what is being filtered."""
        self._closed.set()

    def _go_on(self) -> None:
        if self._closed.is_set():
            raise Refused("the job ended at this site while its result was being filtered")

    def lines(self, lines: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """Return those of a script's lines that may leave, as they may leave."""
        if self._policy is None:
            return lines
        passed = (self._policy.outgoing_line(line) for line in lines)
        return [line for line in passed if line is not None]

    def failure(self, ended: Ended) -> tuple[str, str]:
        """Return reason and traceback of a script that failed; without its own words where log lines may not leave."""
        if self._policy is None or "log" in self._policy.lines:
            return failure_of(ended)
        reason, _ = failure_of(dataclasses.replace(ended, reason="", traceback="", tail=""))
        return reason + _MESSAGES_STAY, ""
