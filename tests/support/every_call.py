"""For every method of the wire, a call that would do something: about what is the caller's, its organisation's, or not.

A word says about what: `self` (nothing of anybody), `new` (a job that is not there yet), `mine`, `ours` (a colleague's,
or of the same organisation), `theirs` (another organisation's), and a few that a method alone has. Nothing here knows
who may do what: a call is put together in the same way whoever makes it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from fedhelm.admin.network import WireNetwork
from fedhelm.ids import new_job_id, new_request_id
from fedhelm.persist.blobs import Manifest, blake3_hex
from fedhelm.security.pki import sign
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.bulk import manifest_of
from tests.support.jobs import make_job
from tests.support.organisations import METHODS

COLLEAGUE, STRANGER, ROOT = "lars@alpha.org", "bert@beta.org", "root@alpha.org"
LOGIN = b"fedhelm-login\0"
CHUNK = b"anything"
MANIFEST = Manifest(size=len(CHUNK), chunk_size=1 << 20, chunks=(blake3_hex(CHUNK),))


@dataclasses.dataclass(frozen=True)
class Case:
    """Who calls, about what; ``fresh``: about something that no other call was or will be about."""

    caller: str
    about: str
    fresh: bool = False


class Calls:
    """Puts calls together. ``world`` is a running :class:`tests.support.organisations.Organisations`."""

    def __init__(self, world):
        self.world = world
        self._jobs = {}
        self.running = {"ours": world.submit(COLLEAGUE, "site-a"), "theirs": world.submit(STRANGER, "site-b")}
        for job in self.running.values():
            world.wait_until_running(job)
        folder, _ = make_job(world.folder / "one-more", "print('never run')", yaml=_NEVER)
        self._bundle = world.folder / "bundle"
        self._name, self._digest = WireNetwork(world.kits[ROOT]).pack(folder, self._bundle)

    def __call__(self, method, case):
        """The messages of one call."""
        messages = _BUILD[method](self, case)
        return messages if isinstance(messages, list) else [messages.SerializeToString()]

    def waiting(self, case):
        return self._job(case, self.world.submit)

    def ended(self, case):
        return self._job(case, self.world.submit_and_end)

    def _job(self, case, make):
        who = {"mine": case.caller, "ours": COLLEAGUE, "theirs": STRANGER}[case.about]
        if case.fresh:
            return make(who)
        if (who, make.__name__) not in self._jobs:
            self._jobs[who, make.__name__] = make(who)
        return self._jobs[who, make.__name__]

    # -- what an upload is about

    def bundle_owner(self, case):
        return f"jobs/{new_job_id() if case.about == 'new' else self.waiting(case)}/bundle"

    def results_owner(self, case):
        return f"jobs/{self.running[case.about]}/0-1/sites"

    def submission(self, case):
        """Signed by whoever calls, over a bundle that lies where it says: the people who may submit have put it there."""
        job = new_job_id() if case.about == "new" else self.waiting(case)
        owner = f"jobs/{job}/bundle"
        data, manifest = self._bundle.read_bytes(), manifest_of(self._bundle)
        if case.about == "new":
            answer = self.world.call(ROOT, "Admin.PutBlob", _upload(owner, data, manifest))
            assert answer.code == "OK", answer
            ref = common.BlobRef.FromString(answer.data[0])
        else:
            ref = common.BlobRef(owner=owner, digest=manifest.digest, size=len(data))
        signed = WireNetwork(self.world.kits[case.caller]).sign_job(job, self._name, self._digest)
        return admin.SubmitJobRequest(request_id=new_request_id(), job=job, bundle=ref, submission=signed)

    def login(self, case):
        """A nonce that was given to the caller where it is given one, else to somebody else."""
        asked = self.world.call(case.caller, "Admin.Challenge", [b""]) if case.about == "self" else None
        if asked is None or asked.code != "OK":
            other = COLLEAGUE if case.caller == ROOT else ROOT
            asked = self.world.call(other, "Admin.Challenge", [b""])
        nonce = admin.ChallengeReply.FromString(asked.data[0]).nonce
        signature = sign(self.world.kits[case.caller].key, LOGIN + nonce)
        return admin.LoginRequest(nonce=nonce, signature=signature, wire_versions=[1, 2])

    def bundle_of(self, case):
        job = self.running[case.about]
        blobs = self.world.store / "blobs" / "jobs" / job / "bundle"
        digest = next(path.name[2:] for path in blobs.iterdir() if path.name.startswith("m-"))
        return common.BlobRef(owner=f"jobs/{job}/bundle", digest=digest, size=_manifest_size(blobs / f"m-{digest}"))

    def some_file(self, case):
        """A file of a job that has ended, as its own people would be told of it."""
        job = self.ended(case)
        told = self.world.call(ROOT, "Admin.PrepareDownload", [admin.JobRequest(job=job).SerializeToString()])
        assert told.code == "OK", told
        manifest = admin.DownloadManifest.FromString(told.data[0])
        return admin.DownloadFileRequest(job=job, seq=manifest.seq, path="summary.json")


_NEVER = """
    name: one-more
    deploy: {app: [site-c]}
    workflow: [{type: fedavg, rounds: 2}]
"""


def _manifest_size(path: Path) -> int:
    return int(json.loads(path.read_bytes())["size"])


def _proto(manifest: Manifest) -> common.Manifest:
    return common.Manifest(size=manifest.size, chunk_size=manifest.chunk_size, chunks=manifest.chunks)


def _upload(owner: str, data: bytes = CHUNK, manifest: Manifest = MANIFEST) -> list[bytes]:
    header = common.PutBlobHeader(owner=owner, manifest=_proto(manifest), indices=[0])
    return [header.SerializeToString(), data]


def _missing(owner: str) -> common.MissingChunksRequest:
    return common.MissingChunksRequest(owner=owner, manifest=_proto(MANIFEST))


def _contribution(calls: Calls, case: Case) -> fleet.Contribution:
    # Of an attempt that is over, so that a call that gets through changes nothing for the calls after it.
    job = calls.running["ours" if case.about == "for another" else case.about]
    site = "site-b" if case.about == "for another" else case.caller
    return fleet.Contribution(
        job=job, attempt=99, step=0, round=1, kind="train", site=site, weight=1.0, metrics_json="{}"
    )


def _operate(_: Calls, case: Case) -> admin.OperateRequest:
    targets = {
        "ours": ["site-a"],
        "theirs": ["site-b"],
        "both": ["site-a", "site-b"],
        "absent": ["site-c"],
        "everything": ["@ALL"],
    }
    return admin.OperateRequest(
        request_id=new_request_id(), action="restart", sites=targets.get(case.about, []), server=case.about == "server"
    )


_HELLO = {"wire_versions": [1, 2], "incarnation": "another"}

_BUILD = {
    "Fleet.Connect": lambda calls, case: fleet.SiteMessage(
        hello=fleet.Hello(cluster=calls.world.kits[case.caller].cluster, **_HELLO)
    ),
    "Fleet.MissingChunks": lambda calls, case: _missing(calls.results_owner(case)),
    "Fleet.PutBlob": lambda calls, case: _upload(calls.results_owner(case)),
    "Fleet.GetManifest": lambda calls, case: calls.bundle_of(case),
    "Fleet.GetBlob": lambda calls, case: common.GetBlobRequest(blob=calls.bundle_of(case)),
    "Fleet.Contribute": _contribution,
    "Fleet.PushLines": lambda calls, case: fleet.LineBatch(
        job=calls.running[case.about], lines=[fleet.Line(number=1, json='{"kind": "log", "tag": "x", "value": "y"}')]
    ),
    "Fleet.ReportFailure": lambda calls, case: fleet.FailureReport(
        job=calls.running[case.about], attempt=99, reason="nothing"
    ),
    "Admin.Challenge": lambda _calls, _case: common.Empty(),
    "Admin.Login": lambda calls, case: calls.login(case),
    "Admin.MissingChunks": lambda calls, case: _missing(calls.bundle_owner(case)),
    "Admin.PutBlob": lambda calls, case: _upload(calls.bundle_owner(case)),
    "Admin.SubmitJob": lambda calls, case: calls.submission(case),
    "Admin.ListJobs": lambda _calls, _case: admin.ListJobsRequest(),
    "Admin.ShowJob": lambda calls, case: admin.JobRequest(job=calls.waiting(case)),
    "Admin.WatchJob": lambda calls, case: admin.JobRequest(job=calls.waiting(case)),
    "Admin.AbortJob": lambda calls, case: admin.AbortJobRequest(request_id=new_request_id(), job=calls.waiting(case)),
    "Admin.PrepareDownload": lambda calls, case: admin.JobRequest(job=calls.ended(case)),
    "Admin.DownloadFile": lambda calls, case: calls.some_file(case),
    "Admin.DeleteJob": lambda calls, case: admin.DeleteJobRequest(request_id=new_request_id(), job=calls.ended(case)),
    "Admin.Operate": _operate,
    "Admin.CheckStatus": lambda _calls, _case: common.Empty(),
}
assert set(_BUILD) == set(METHODS), "a method that nobody knows how to call"
