"""A job that was signed by whom it says, as it is, runs; anything else is refused with the reason, and nothing is unpacked."""

from __future__ import annotations

import dataclasses
import json
import shutil
from datetime import timedelta

import pytest

from fedhelm.clock import SystemClock, iso
from fedhelm.errors import AuditUnavailable, BadInput, BadSignature, Corrupt, FedhelmError, KitError, NotAuthorised
from fedhelm.job.bundle import pack
from fedhelm.provision.install import exchange
from fedhelm.security.authorization import Policy, default_policy
from fedhelm.security.identity import Principal
from fedhelm.security.job_signing import MAX_AGE, Submission, sign_submission
from fedhelm.security.kept_revocations import KeptRevocations
from fedhelm.security.pki import CertificateAuthority, load_certificate
from fedhelm.security.revocation import RevocationList, Revoked
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire.bulk import manifest_of
from fedhelm_client.admission import Admitted, admit, check_signed, check_unpacked
from fedhelm_client.ended_jobs import ENDED_FILE, EndedJobs
from fedhelm_client.folders import JobFolder
from fedhelm_client.site import Site
from fedhelm_client.site_trail import SiteTrail
from fedhelm_client.supplies import let_go, prepare
from fedhelm_server import submissions
from fedhelm_server.streams import SiteStream, Streams
from tests.fakes.provision_clock import FixedClock
from tests.support.kits import ADMIN, make_kits

JOB = "k7m3tq4w2zpx"
CLUSTER = "c" * 32
AT = "2026-11-22T15:04:05.123Z"


@pytest.fixture(scope="module")
def authority():
    return CertificateAuthority.create("poc")


@pytest.fixture
def kits(tmp_path, authority):
    return make_kits(tmp_path / "kits", authority=authority, cluster=CLUSTER)


@pytest.fixture(autouse=True)
def _folders(tmp_path):
    (tmp_path / "kits").mkdir()


@pytest.fixture
def site(kits):
    return kits["site-1"]


@pytest.fixture
def submitter(kits, tmp_path, authority):
    """The kit of somebody else who submits; with the times of a certificate where they are given."""

    def make(role="lead", name="bob@a.org", org="a", issuer=authority, **options):
        root = tmp_path / f"{role}-{name}"
        (root / "startup").mkdir(parents=True)
        kit = dataclasses.replace(kits[ADMIN], root=root, role=role, name=name, org=org)
        issued = issuer.issue(role, name, org, **options)
        kit.cert.write_bytes(issued.cert)
        kit.key.write_bytes(issued.key)
        return kit

    return make


class Upload:
    """A bundle as a server has it: what it says of it may be changed, and so may its bytes."""

    def __init__(self, folder, **config):
        (folder / "app").mkdir(parents=True)
        (folder / "app" / "train.py").write_text("print(1)\n")
        said = {"name": "hello", "deploy": {"app": ["@ALL"]}, "workflow": [{"type": "fedavg", "rounds": 1}], **config}
        (folder / "job.yaml").write_text(json.dumps(said))
        self.archive = folder.with_suffix(".tar")
        pack(folder, self.archive)
        self.manifest = manifest_of(self.archive)
        self.data = self.archive.read_bytes()
        self.fetched = 0

    def assigned(self, submission, **said):
        ref = common.BlobRef(owner=f"jobs/{JOB}/bundle", digest=self.manifest.digest, size=len(self.data))
        message = fleet.AssignedJob(
            job=JOB, name="hello", status="RUNNING", bundle=ref, app="app", script="train.py", options_json="{}"
        )
        message.members.extend(said.pop("members", ()))
        for key, value in said.items():
            setattr(message, key, value)
        message.submission = submission
        return message

    def signed_by(self, kit, job=JOB, name="hello", **options):
        return sign_submission(kit, job, name, self.manifest.digest, **options)

    # What a site's connection asks of the server.

    async def to_leader(self, _, call):
        return await call(self)

    async def get_manifest(self, _, timeout):
        self.fetched += 1
        one = self.manifest
        return common.Manifest(size=one.size, chunk_size=one.chunk_size, chunks=one.chunks)

    async def get_blob(self, _):
        yield self.data


@pytest.fixture
def upload(tmp_path):
    return Upload(tmp_path / "job")


def shared(site, upload=None, trail=None, clock=None):
    clock = clock or SystemClock()
    return Site(
        kit=site,
        links=upload,
        runtime=site.run,
        clock=clock,
        on_change=lambda: None,
        on_stray=lambda: None,
        trail=trail or SiteTrail(site),
        revocations=KeptRevocations(site),
        ended=EndedJobs(site.run / ENDED_FILE, clock),
    )


async def take(site, upload, assigned):
    folder = JobFolder.of(site, JOB)
    folder.make()
    trail = SiteTrail.open(site)
    try:
        _, plan = await prepare(shared(site, upload, trail), folder, assigned, site.run)
        return plan
    finally:
        trail.close()


def look(site, assigned):
    """Who signed, as the site sees it."""
    return check_signed(site, assigned, KeptRevocations(site)).submitter


def noted(site):
    """What the site's audit file says of jobs."""
    lines = [json.loads(line) for line in (site.root / "audit.jsonl").read_text().splitlines()]
    return [line for line in lines if line["action"] == "site.job"]


def left(site):
    folder = site.run / "jobs" / JOB
    return {path.name for path in folder.iterdir()} & {"bundle", "bundle.tar", "bundle.tar.part"}


def revoke(kit, authority, of):
    kit.run.mkdir(exist_ok=True)
    offer(KeptRevocations(kit), authority, of)


def offer(revocations, authority, of):
    serial = f"{load_certificate(of.cert.read_bytes(), 'it').serial_number:x}"
    entry = Revoked(serial, of.role, of.name, AT, "laptop stolen")
    revocations.offer(RevocationList("poc", CLUSTER, 1, AT, (entry,)).to_bytes(authority))


# -- a site -----------------------------------------------------------------------------------------------------------


async def test_the_audit_file_has_what_was_taken_in_and_what_was_refused(site, submitter, upload, authority):
    lead = submitter()
    for _ in range(2):  # unpacked once, and noted once
        await take(site, upload, upload.assigned(upload.signed_by(lead)))
    (taken,) = noted(site)
    assert (taken["outcome"], taken["by"]["name"], taken["object"]) == (
        "allowed",
        "bob@a.org",
        {"job": JOB, "site": "site-1"},
    )
    shutil.rmtree(site.run / "jobs")
    revoke(site, authority, lead)
    with pytest.raises(BadSignature):
        await take(site, upload, upload.assigned(upload.signed_by(lead)))
    refused = noted(site)[-1]
    assert (refused["outcome"], refused.get("by")) == ("denied", None)
    assert "certificate of lead bob@a.org was revoked" in refused["why"]


async def test_a_job_that_its_submitter_signed_is_unpacked_once(site, upload, submitter):
    assigned = upload.assigned(upload.signed_by(submitter()))
    plan = await take(site, upload, assigned)
    assert plan.script.read_text() == "print(1)\n"
    assert left(site) == {"bundle"}
    assert upload.fetched == 1
    assert await take(site, upload, assigned) == plan
    assert upload.fetched == 1


async def test_a_job_that_was_unpacked_before_jobs_were_signed_goes_on_and_a_new_one_does_not(site, upload, submitter):
    with pytest.raises(BadSignature, match=rf"^site site-1: the signature of job {JOB}: there is none"):
        await take(site, upload, upload.assigned(b""))
    assert (left(site), upload.fetched) == (set(), 0)
    await take(site, upload, upload.assigned(upload.signed_by(submitter())))
    assert await take(site, upload, upload.assigned(b""))


async def test_a_job_that_is_over_has_to_be_admitted_again(site, upload, submitter, authority):
    bob = submitter()
    assigned = upload.assigned(upload.signed_by(bob))
    await take(site, upload, assigned)
    let_go(JobFolder.of(site, JOB))
    assert left(site) == set()
    await take(site, upload, assigned)
    let_go(JobFolder.of(site, JOB))
    revoke(site, authority, bob)
    with pytest.raises(BadSignature, match="was revoked"):
        await take(site, upload, assigned)
    let_go(JobFolder.of(site, JOB))  # nothing is there
    assert (left(site), upload.fetched) == (set(), 2)


async def test_bytes_that_were_changed_on_the_way_are_not_unpacked(site, upload, submitter):
    at = upload.data.index(b"print(1)")
    upload.data = upload.data[:at] + b"print(2)" + upload.data[at + 8 :]
    with pytest.raises(Corrupt, match="arrived damaged"):
        await take(site, upload, upload.assigned(upload.signed_by(submitter())))
    assert "bundle" not in left(site)


async def test_another_bundle_under_a_signature_is_not_even_fetched(site, upload, submitter, tmp_path):
    signature = upload.signed_by(submitter())
    evil = Upload(tmp_path / "evil", options={"evil": True})
    with pytest.raises(BadSignature, match=f"bundle is '{upload.manifest.digest}' there"):
        await take(site, evil, evil.assigned(signature, options_json='{"evil": true}'))
    assert (left(site), evil.fetched) == (set(), 0)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"script": "other.py"}, "the server says another script than job.yaml"),
        ({"app": "."}, "the server says another app than job.yaml"),
        ({"options_json": '{"lr": 9}'}, "the server says another options than job.yaml"),
        ({"options_json": "{" * 100_000}, "the server says another options than job.yaml"),
        ({"members": ["site-1", "../site-2"]}, "a member '../site-2'"),
        ({"name": "hello2"}, "name is 'hello' there, and 'hello2' here"),
        ({"job": "a" * 12}, "job is 'k7m3tq4w2zpx' there"),
    ],
)
async def test_what_the_server_says_has_to_be_what_was_signed(site, upload, submitter, said, why):
    signature = upload.signed_by(submitter())
    with pytest.raises(BadSignature, match=r"^site site-1: ") as caught:
        await take(site, upload, upload.assigned(signature, **said))
    assert why in str(caught.value)
    assert left(site) == set()
    await take(site, upload, upload.assigned(signature))
    if "script" in said or "members" in said:  # nor may it change its mind about a job that runs
        with pytest.raises(BadSignature, match=why):
            await take(site, upload, upload.assigned(signature, **said))


async def test_a_job_goes_only_to_sites_that_its_submitter_named(kits, submitter, tmp_path):
    upload = Upload(tmp_path / "elsewhere", deploy={"app": ["site-2"]})
    with pytest.raises(BadSignature, match=f"site site-1: job {JOB} was not submitted for this site"):
        await take(kits["site-1"], upload, upload.assigned(upload.signed_by(submitter())))


async def test_members_of_a_job_for_named_sites_are_among_them(kits, submitter, tmp_path):
    upload = Upload(tmp_path / "two", deploy={"app": ["site-1", "site-2"]})
    signature = upload.signed_by(submitter())
    with pytest.raises(BadSignature, match=f"says that 'site-9' is a member of job {JOB}"):
        await take(kits["site-1"], upload, upload.assigned(signature, members=["site-1", "site-9"]))
    await take(kits["site-1"], upload, upload.assigned(signature, members=["site-1"]))


@pytest.mark.parametrize(
    ("signed", "said"),
    [
        ({"dp": True}, '{"dp": 1}'),
        ({"n": 1}, '{"n": 1.0}'),
        ({"n": 0.0}, '{"n": -0.0}'),
        ({"deep": [{"dp": False}]}, "0"),
    ],
)
async def test_options_that_a_script_can_tell_apart_are_not_the_same(site, submitter, tmp_path, signed, said):
    upload = Upload(tmp_path / "exact", options=signed)
    signature = upload.signed_by(submitter())
    said = said if said.startswith("{") else json.dumps({"deep": [{"dp": 0}]})
    with pytest.raises(BadSignature, match="says another options than"):
        await take(site, upload, upload.assigned(signature, options_json=said))
    await take(site, upload, upload.assigned(signature, options_json=json.dumps(signed, indent=1)))


async def test_what_the_server_says_of_a_job_that_runs_has_to_stay_what_was_admitted(site, upload, submitter, caplog):
    first = upload.assigned(upload.signed_by(submitter()))
    await take(site, upload, first)
    trail = SiteTrail.open(site)
    admitted = Admitted(trail)
    assert admitted.takes(site, upload.assigned(b"", options_json='{"lr": 9}'), ended=False)  # nobody knows better yet
    admitted.this(first, check_unpacked(site, first, JobFolder.of(site, JOB).bundle))
    for said in ({"options_json": '{"lr": 9}'}, {"name": "hello2"}, {"script": "evil.py"}, {"app": "evil"}):
        for _ in range(2):
            assert not admitted.takes(site, upload.assigned(b"", **said), ended=False)
    other = upload.assigned(b"")
    other.bundle.digest = "e" * 64
    assert not admitted.takes(site, other, ended=False)
    assert admitted.takes(
        site, upload.assigned(b"", options_json="{ }"), ended=False
    )  # the same, spelled by another server
    assert admitted.takes(site, fleet.AssignedJob(job=JOB, status="FINISHED:DELETED"), ended=False)
    assert not admitted.takes(site, first, ended=True)
    trail.close()
    refused = [line["why"] for line in noted(site) if line["outcome"] == "denied"]
    assert len(refused) == 6, "each is noted once"
    assert "the server says another options than job.yaml" in refused[0]
    assert refused[-1].endswith(f"job {JOB} has ended here and is not run again")
    assert caplog.text.count("what the primary says now is not taken") == 6


async def test_code_is_brought_whatever_the_file_is_called(site, submitter, tmp_path):
    upload = Upload(tmp_path / "capital")
    archive = tmp_path / "capital" / "app" / "train.py"
    archive.rename(archive.with_name("Train.py"))  # the same file to a site whose disk does not tell them apart
    pack(tmp_path / "capital", upload.archive)
    closed = dataclasses.replace(site, enable_byoc=False)
    signer = Principal("poc", "lead", "bob@a.org", "a", "5f")
    with pytest.raises(NotAuthorised, match=r"^site site-1 takes no job that brings its own code"):
        admit(closed, upload.assigned(b""), upload.archive, signer)


async def test_a_site_whose_list_of_revoked_certificates_is_damaged_takes_nothing_in(
    site, upload, submitter, authority
):
    site.run.mkdir(exist_ok=True)
    kept = site.run / "revoked.json"
    kept.write_bytes(b"{")
    assigned = upload.assigned(upload.signed_by(submitter()))
    with pytest.raises(KitError, match=r"takes no job in before an overseer gave it the list .*revoked\.json: "):
        await take(site, upload, assigned)
    assert (left(site), upload.fetched) == (set(), 0)
    kept.unlink()
    revoke(site, authority, submitter(name="thief@a.org"))
    await take(site, upload, assigned)


async def test_the_list_in_force_counts_also_where_the_disk_did_not_take_it(site, upload, submitter, authority):
    bob = submitter()
    world = shared(site, upload)
    site.run.mkdir(exist_ok=True)
    (site.run / "revoked.json").mkdir()  # it cannot be replaced by a file
    with pytest.raises(FedhelmError, match="cannot be written"):
        offer(world.revocations, authority, bob)
    folder = JobFolder.of(site, JOB)
    folder.make()
    with pytest.raises(BadSignature, match=r"the certificate of lead bob@a\.org was revoked"):
        await prepare(world, folder, upload.assigned(upload.signed_by(bob)), site.run)


async def test_a_job_of_before_what_a_site_remembers_is_not_taken_in(site, upload, submitter):
    now = SystemClock().utcnow()
    site.run.mkdir(exist_ok=True)
    (site.run / ENDED_FILE).write_text(f"before {iso(now)}\n")
    early = upload.signed_by(submitter(), clock=FixedClock(now - timedelta(seconds=1)))
    with pytest.raises(BadSignature, match="this site has forgotten which jobs ended before"):
        await take(site, upload, upload.assigned(early))
    late = upload.signed_by(submitter(name="amy@a.org"), clock=FixedClock(now + timedelta(seconds=1)))
    await take(site, upload, upload.assigned(late))


def test_a_flipped_byte_anywhere_in_a_submission_is_refused(site, upload, submitter):
    signature = upload.signed_by(submitter())
    look(site, upload.assigned(signature))
    for at in range(0, len(signature), 7):
        broken = signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]
        with pytest.raises(BadSignature):
            look(site, upload.assigned(broken))


def test_a_site_counts_neither_other_roots_nor_roles_nor_revoked_nor_expired_certificates(
    site, upload, submitter, authority
):
    now = SystemClock().utcnow()
    short = submitter(name="short@a.org", start=now - timedelta(days=2), life=timedelta(days=1))
    thief = submitter(name="thief@a.org")
    revoke(site, authority, thief)
    for kit, why in (
        (submitter(name="eve@a.org", issuer=CertificateAuthority.create("poc")), "not issued by this project's root"),
        (submitter("member", "m@a.org"), "signed by member m@a.org, and only lead, project_admin may"),
        (short, "expired on"),
        (thief, "the certificate of lead thief@a.org was revoked"),
    ):
        with pytest.raises(BadSignature) as caught:
            look(site, upload.assigned(upload.signed_by(kit)))
        assert str(caught.value).startswith("site site-1: ")
        assert why in str(caught.value)
    # A job may wait for longer than its submitter's certificate lasts.
    waited = upload.signed_by(short, clock=FixedClock(now - timedelta(days=1, hours=1)))
    assert look(site, upload.assigned(waited)).name == "short@a.org"


def test_the_sites_own_policy_and_kit_have_the_last_word(site, upload, submitter):
    lead, assigned = submitter(), upload.assigned(b"")
    signer = look(site, upload.assigned(upload.signed_by(lead)))
    assert (signer.name, signer.org) == ("bob@a.org", "a")
    admit(site, assigned, upload.archive, signer)
    closed = dataclasses.replace(site, enable_byoc=False)
    with pytest.raises(NotAuthorised, match=r"^site site-1 takes no job that brings its own code"):
        admit(closed, assigned, upload.archive, signer)
    local = site.root / "local" / "authorization.json"
    local.write_text('{"format_version": "1.0", "permissions": {"lead": {"submit_job": "any", "byoc": "o:site"}}}')
    with pytest.raises(NotAuthorised, match=r"^site site-1, lead bob@a\.org: byoc needs o:site .*bob@a\.org is of a"):
        admit(site, assigned, upload.archive, signer)
    admit(site, assigned, upload.archive, dataclasses.replace(signer, org=site.org))
    local.write_text('{"format_version": "1.0", "permissions": {"lead": {"submit_job": "sometimes"}}}')
    with pytest.raises(BadInput, match=r"authorization\.json:1:\d+"):
        admit(site, assigned, upload.archive, signer)


# -- a server ---------------------------------------------------------------------------------------------------------


def test_a_server_takes_what_its_caller_signed_just_now(kits, upload, submitter, authority):
    server, bob = kits["server1"], submitter()
    now = SystemClock().utcnow()

    def verify(data, caller="bob@a.org", when=now, job=JOB, name="hello", digest=upload.manifest.digest):
        expected = Submission("poc", CLUSTER, job, name, digest)
        return submissions.verify(server, data, expected, KeptRevocations(server), caller=caller, now=when)

    signed = upload.signed_by(bob)
    verified = verify(signed)
    assert submissions.signed_parts(signed, verified) == {"submission": signed.decode(), "submitter_org": "a"}
    short = submitter(name="short@a.org", start=now - timedelta(days=2), life=timedelta(days=1))
    for wrong, why in (
        ({"data": b""}, "there is none"),
        ({"data": b"{}"}, "not a signed statement"),
        ({"data": signed, "caller": "eve@a.org"}, "signed by lead bob@a.org, submitted by eve@a.org"),
        ({"data": signed, "digest": "e" * 64}, "bundle is"),
        ({"data": signed, "name": "other"}, "name is"),
        ({"data": signed, "job": "a" * 12}, "job is"),
        ({"data": signed, "when": now + MAX_AGE * 2}, "signed at"),
        ({"data": upload.signed_by(short), "caller": "short@a.org"}, "expired on"),
        ({"data": upload.signed_by(dataclasses.replace(bob, cluster="d" * 32))}, "cluster is"),
        ({"data": upload.signed_by(dataclasses.replace(bob, project="other"))}, "project is"),
    ):
        with pytest.raises(BadSignature) as caught:
            verify(**wrong)
        assert why in str(caught.value)
    revoke(server, authority, bob)
    with pytest.raises(BadSignature, match=r"lead bob@a\.org was revoked"):
        verify(signed)


def test_a_server_asks_its_policy_about_each_site_that_a_job_names(kits, upload, submitter):
    now = SystemClock().utcnow()
    signed = upload.signed_by(submitter())
    server, digest = kits["server1"], upload.manifest.digest
    expected = Submission("poc", CLUSTER, JOB, "hello", digest)
    who = submissions.verify(server, signed, expected, None, caller="bob@a.org", now=now).submitter
    own_sites = Policy.parse(
        '{"format_version": "1.0", "permissions": {"lead": {"submit_job": "any", "byoc": "o:site"}}}', "p"
    )
    sites = Streams()
    sites.open(SiteStream("site-1", "i", 2, "a"))
    sites.open(SiteStream("site-2", "i", 2, "b"))
    submissions.admit_at_sites(default_policy(), who, ["site-1", "site-2"], sites)
    submissions.admit_at_sites(own_sites, who, ["site-1"], sites)
    submissions.admit_at_sites(own_sites, who, ["site-9"], sites)  # not known here: that site decides
    with pytest.raises(NotAuthorised, match=r"^site site-2, lead bob@a\.org: byoc needs o:site"):
        submissions.admit_at_sites(own_sites, who, ["site-1", "site-2"], sites)
    shut = SiteStream("site-3", "i", 2, "a", takes_code=False)
    sites.open(shut)
    with pytest.raises(NotAuthorised, match=r"^site site-3 takes no job that brings its own code"):
        submissions.admit_at_sites(default_policy(), who, ["site-1", "site-3"], sites)
    sites.close(shut)  # whoever is away may come back with another kit
    submissions.admit_at_sites(default_policy(), who, ["site-1", "site-3"], sites)


def test_all_sites_are_those_that_are_known():
    assert submissions.named_sites({"deploy": {"app": ["@ALL"]}}, {"site-2", "site-1"}) == ["site-1", "site-2"]
    assert submissions.named_sites({"deploy": {"app": ["site-3", "site-1"]}}, {"site-2"}) == ["site-1", "site-3"]


async def test_nothing_of_a_job_is_unpacked_that_the_audit_file_does_not_have(site, upload, submitter):
    assigned = upload.assigned(upload.signed_by(submitter()))
    folder = JobFolder.of(site, JOB)
    folder.make()
    trail = SiteTrail.open(site)
    path = site.root / "audit.jsonl"
    kept = site.root / "kept"
    kept.mkdir()
    exchange(path, kept)  # a folder is there now, and nothing can be written; in one step, lest a file appear meanwhile
    with pytest.raises(AuditUnavailable, match="not run at site-1: its line cannot be written to the audit file: Is a"):
        await prepare(shared(site, upload, trail), folder, assigned, site.run)
    assert not folder.bundle.exists()
    exchange(path, kept)
    trail.close()
    assert [line["outcome"] for line in noted(site)] == ["failed"]
    await take(site, upload, assigned)
    assert [line["outcome"] for line in noted(site)] == ["failed", "allowed"]
