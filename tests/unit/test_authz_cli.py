"""`fedhelm authz`: the questions people ask, and the answers with rule and reason."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest

from fedhelm.errors import NotAuthorised
from fedhelm.provision.authz_cli import main
from fedhelm.provision.authz_preview import COMMANDS, RESERVED
from fedhelm.provision.kits import write_kits
from fedhelm.security.authorization import DEFAULT_AUTHORIZATION, Object, Policy, Right
from fedhelm.security.gates import ENDPOINTS, admit, admit_job, read_policy
from fedhelm.security.identity import Principal
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority
from fedhelm_console.commands import REGISTRY
from fedhelm_server.objects import own_job
from fedhelm_server.submissions import admit_at_sites
from tests.support.kits import ADMIN, make_kits, make_project

TIGHTER = (
    '{"format_version": "1.0", "permissions": {"project_admin": "any", "org_admin": ["n:o@a.org", "o:site"],'
    ' "lead": {"submit_job": "any", "byoc": "o:site", "view": "any", "manage_job": "any"}}}'
)


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kits")
    made = make_kits(folder, sites=2)
    (made["site-2"].local / "authorization.json").write_text(TIGHTER)
    closed = make_project(sites=1, name="closed")
    participants = [dataclasses.replace(one, enable_byoc=False) for one in closed.participants]
    closed = dataclasses.replace(closed, participants=tuple(participants))
    (folder / "closed").mkdir()
    roots = write_kits(closed, CertificateAuthority.create("closed"), folder / "closed")
    return made | {"closed": open_kit(roots["site-1"])}


@pytest.fixture
def run(kits, capsys):
    def ask(kit, *words):
        status = main([str(kits[kit].root), *words])
        out = capsys.readouterr()
        return status, (out.out or out.err).strip()

    return ask


BOB, ALICE = "lead:bob@a.org/a", "alice@b.org/b"


ANY = "whoever asks, and whosever it is"
SITES_TOO = "each site decides for itself after that, by its own policy"
SERVER_TOO = "a server decides before, by its own policy"


@pytest.mark.parametrize(
    ("kit", "words", "status", "answer"),
    [
        ("server1", f"may {BOB} abort_job job of {ALICE}", 1, "no: manage_job needs n:submitter; bob@a.org did not submit it"),
        ("server1", f"may {BOB} manage_job job of bob@a.org/a", 0, "yes: manage_job with n:submitter; bob@a.org submitted it"),
        ("server1", f"may {BOB} Admin.ShowJob of {ALICE}", 1, "no: view needs o:submitter or o:site; bob@a.org is of a, alice@b.org is of b, and it is not about one site"),
        ("server1", "may member:m@a.org/a view at site-1/a", 0, "yes: view with o:site; m@a.org is of a, site-1 too"),
        ("server1", f"may {BOB} submit_job", 0, f"yes: submit_job with any, byoc with any; {ANY}\n{SITES_TOO} and enable_byoc: ask its kit"),
        ("server1", f"may {BOB} promote_sp", 1, "no: lease.promote is for project_admin; no policy gives it to the role lead"),
        ("server1", f"may {BOB} Admin.Login", 0, "yes: admin.login is for lead; the role alone decides"),
        ("server1", "may member:m@a.org/a delete job of m@a.org/a", 1, "no: job.manage is for lead, org_admin, project_admin; no policy gives it to the role member"),
        ("server1", "may org_admin:o@a.org/a restart at site-7/a", 0, f"yes: operate with o:site; o@a.org is of a, site-7 too\n{SITES_TOO}: ask its kit"),
        ("server1", "may org_admin:o@a.org/a restart at site-7", 1, "no: operate needs o:site; the organisation of site-7 is not known"),
        ("server1", "may org_admin:o@a.org/a restart at site-1", 1, "no: operate needs o:site; o@a.org is of a, site-1 is of nvidia"),
        ("server1", "may org_admin:o@a.org/a restart", 1, "no: operate needs o:site; it is not about one site"),
        ("server1", "may org_admin:o@a.org/a revoke_certificates", 0, "yes: trust.revoke is for org_admin; the role alone decides"),
        ("site-1", "may org_admin:o@a.org/nvidia restart", 0, f"yes: operate with o:site; o@a.org is of nvidia, site-1 too\n{SERVER_TOO}"),
        ("site-1", "may org_admin:o@a.org/a operate at site-1", 1, "no: operate needs o:site; o@a.org is of a, site-1 is of nvidia"),
        ("site-1", f"may {BOB} byoc", 0, f"yes: submit_job with any, byoc with any; {ANY}\n{SERVER_TOO}"),
        ("site-1", "may member:m@a.org/a byoc", 1, "no: job.submit is for lead, project_admin; no policy gives it to the role member"),
        ("site-2", f"may {BOB} byoc", 1, "no: byoc needs o:site (local/authorization.json); bob@a.org is of a, site-2 is of nvidia"),
        ("site-2", f"may {BOB} submit_job", 1, "no: byoc needs o:site (local/authorization.json); bob@a.org is of a, site-2 is of nvidia"),
        ("closed", f"may {BOB} byoc", 1, "no: site site-1 takes no job that brings its own code; enable_byoc is not set in its kit"),
        ("closed", f"may {BOB} submit_job", 1, "no: site site-1 takes no job that brings its own code; enable_byoc is not set in its kit"),
        (ADMIN, f"may {BOB} clone_job job of {ALICE}", 1, "no: clone_job is reserved; no call of this version asks for it"),
        ("server1", "may project_admin:p@a.org/a shell at site-1", 1, "no: shell is reserved; no call of this version asks for it"),
        ("overseer", "may project_admin:p@a.org shutdown_system", 0, f"yes: operate with any; {ANY}\na server tells the sites before that, and each decides for itself, by its own policy: ask its kit"),
        ("overseer", "may project_admin:p@a.org promote_sp", 0, f"yes: operate with any; {ANY}"),
        ("overseer", "may project_admin:p@a.org operate", 0, f"yes: operate with any; {ANY}"),
        ("overseer", "may org_admin:o@a.org/a operate", 1, "no: system.command is for project_admin; no policy gives it to the role org_admin"),
    ],
)  # fmt: skip
def test_a_question_is_answered_with_rule_and_reason(run, kit, words, status, answer):
    assert run(kit, *words.split()) == (status, answer)


@pytest.mark.parametrize(
    ("kit", "words", "who"),
    [
        ("server1", "may project_admin:p@a.org/a shutdown_system", "shutdown_system: that is for an overseer to decide; server1 is a server"),
        ("server1", "may project_admin:p@a.org/a remove_sp", "that is for an overseer to decide"),
        ("site-1", "may project_admin:p@a.org/a pause_failover", "that is for an overseer to decide; site-1 is a site"),
        ("site-1", f"may {BOB} abort_job job of {ALICE}", "abort_job: that is for a server to decide; site-1 is a site"),
        ("overseer", f"may {BOB} submit_job", "that is for a server to decide, and a site about what comes to it; overseer is an overseer"),
        ("overseer", "may project_admin:p@a.org/a operate at site-1", "that is for a server to decide, and a site"),
        (ADMIN, f"may {BOB} view job of {ALICE}", "that is for a server to decide; admin@nvidia.com is an admin"),
        ("site-1", f"may {BOB} submit_job at site-2", "site-1 decides for itself, not for site-2"),
    ],
)  # fmt: skip
def test_what_somebody_else_decides_is_not_answered(run, kit, words, who):
    status, text = run(kit, *words.split())
    assert status == 2
    assert who in text


ROLES = ("project_admin", "org_admin", "lead", "member")


def answers(kit, words):
    """What the participant itself says: yes, no."""
    return {0: True, 1: False}[main([str(kit.root), *words.split()])]


def passes(ask, *args, **options):
    try:
        ask(*args, **options)
    except NotAuthorised:
        return False
    return True


def test_a_preview_at_a_site_says_what_that_site_does(kits):
    for name, role, org in itertools.product(("site-1", "site-2", "closed"), ROLES, ("nvidia", "a")):
        kit = kits[name]
        policy, who = read_policy(kit.root), Principal(kit.project, role, "bob@a.org", org)
        told = answers(kit, f"may {role}:bob@a.org/{org} submit_job")
        byoc = {"custom_code": True, "enable_byoc": kit.enable_byoc}
        signs = role in ("project_admin", "lead")  # nobody else's signature counts
        assert told == (signs and passes(admit_job, policy, who, kit.name, kit.org, **byoc)), (name, role, org)
        told = answers(kit, f"may {role}:bob@a.org/{org} restart")
        assert told == passes(admit, policy, who, "system.operate", Object(kit.name, kit.org)), (name, role, org)


POLICIES = (
    "{}",
    '{"project_admin": "any", "lead": {"submit_job": "any", "byoc": "o:site"}}',
    '{"project_admin": {"submit_job": "any"}, "lead": {"submit_job": "n:submitter", "byoc": ["o:submitter", "n:x@y.org"]}}',
    '{"project_admin": {"submit_job": "o:site", "byoc": "any"}, "lead": "o:nvidia", "org_admin": "any", "member": "any"}',
)


class KnownSites:
    """What a server knows of sites that were never connected: what its kit says."""

    def __init__(self, kit):
        self.org_of = kit.site_orgs.get

    def takes_code(self, _):
        return True


@pytest.mark.parametrize("policy", POLICIES)
def test_a_preview_at_a_server_says_what_that_server_does(kits, policy):
    kit = kits["server1"]
    path = kit.local / "authorization.json"
    path.write_text(f'{{"format_version": "1.0", "permissions": {policy}}}')
    try:
        for role, org, site in itertools.product(ROLES, ("nvidia", "a", ""), ("site-1", "site-9")):
            in_force, who = read_policy(kit.root), Principal(kit.project, role, "bob@a.org", org)
            lets_in = passes(admit, in_force, who, "job.submit", own_job(who))
            lets_in = lets_in and passes(admit_at_sites, in_force, who, [site], KnownSites(kit))
            assert answers(kit, f"may {role}:bob@a.org/{org} submit_job at {site}") == lets_in, (role, org, site)
            job = Object(submitter="eve@a.org", submitter_org="a")
            about = f"job of eve@a.org/a at {site}"
            for word, permission in (("abort", "job.manage"), ("download", "job.download"), ("show_job", "job.view")):
                told = answers(kit, f"may {role}:bob@a.org/{org} {word} {about}")
                assert told == passes(admit, in_force, who, permission, job), (role, org, word)
            told = answers(kit, f"may {role}:bob@a.org/{org} restart at {site}")
            assert told == passes(admit, in_force, who, "system.operate", Object(site, kit.site_orgs.get(site)))
    finally:
        path.unlink()


def test_as_json(run):
    status, text = run("server1", "may", BOB, "abort", "job", "of", ALICE, "at", "site-1/b", "-o", "json")
    data = json.loads(text)["data"]
    assert status == 1
    assert data["allowed"] is False
    assert data["rule"] == "manage_job needs n:submitter"
    assert data["why"] == "bob@a.org did not submit it"
    assert (data["permission"], data["right"]) == ("job.manage", "manage_job")
    assert data["object"] == {"site": None, "site_org": None, "submitter": "alice@b.org", "submitter_org": "b"}
    assert data["besides"] is None
    assert data["subject"] == {"role": "lead", "name": "bob@a.org", "org": "a"}


def rows_of(text):
    return {tuple(line.split()[:2]): " ".join(line.split()[2:]) for line in text.splitlines()}


def test_the_table_shows_what_both_files_allow_together(run):
    status, text = run("site-2")
    rows = rows_of(text)
    assert status == 0
    assert rows["project_admin", "byoc"] == "any"
    assert rows["org_admin", "operate"] == "o:site and (n:o@a.org or o:site)"
    assert rows["lead", "byoc"] == "o:site"
    assert rows["member", "submit_job"] == "none"
    assert ("lead", "manage_job") not in rows  # no site is asked for it
    assert "enable_byoc is set in this kit." in text
    assert "Not asked here, but at the servers: manage_job, download_job, view." in text
    assert "Reserved, no call asks for them: clone_job, shell." in text
    status, text = run("server1", "--role", "lead", "-o", "json")
    data = json.loads(text)["data"]
    assert {row["role"] for row in data["rights"]} == {"lead"}
    assert len(data["rights"]) == 8
    assert {row["right"] for row in data["rights"] if not row["asked"]} == {str(one) for one in RESERVED}
    assert len(data["files"]) == 1


def test_the_table_says_that_a_site_takes_no_code(run):
    _, text = run("closed")
    rows = rows_of(text)
    assert rows["lead", "submit_job"] == rows["project_admin", "byoc"] == "none (enable_byoc is not set)"
    assert rows["project_admin", "operate"] == "any"
    assert "enable_byoc is not set in this kit." in text
    assert json.loads(run("closed", "-o", "json")[1])["data"]["enable_byoc"] is False


def test_the_table_of_an_overseer_and_of_an_admin(run):
    _, text = run("overseer")
    rows = rows_of(text)
    assert rows["project_admin", "operate"] == "any"
    assert rows["org_admin", "operate"] == "none (system.command is not for this role)"
    assert ("lead", "view") not in rows
    _, text = run(ADMIN)
    assert rows_of(text)["lead", "view"] == "o:submitter or o:site"
    assert "admin@nvidia.com decides nothing: this is the default policy." in text


def test_an_overseer_goes_by_its_own_file_and_one_of_before_by_the_default(run, kits):
    path = kits["overseer"].startup / "authorization.json"
    before = path.read_text()
    question = ("overseer", "may", "project_admin:p@a.org", "promote_sp")
    try:
        path.write_text('{"format_version": "1.0", "permissions": {"project_admin": {"operate": "none"}}}')
        assert run(*question) == (1, "no: operate is none for project_admin; nobody of this role may")
        path.unlink()
        assert run(*question)[0] == 0
    finally:
        path.write_text(before)


def test_a_right_is_reserved_if_and_only_if_no_call_asks_for_it():
    asked = {endpoint.right for endpoint in ENDPOINTS.values()} | {Right.BYOC}  # byoc: with each job
    assert set(Right) - asked == RESERVED


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lead:bob@a.org may view", "not a question"),
        ("may lead:bob@a.org", "not a question"),
        (
            "may bob@a.org view",
            "ROLE:NAME/ORGANISATION is needed (hint: roles: project_admin, org_admin, lead, member)",
        ),
        ("may boss:bob@a.org view", "ROLE:NAME/ORGANISATION is needed"),
        ("may lead:/a view", "a name is missing"),
        (f"may {BOB} abort_jobs", "abort_jobs is no right, command or method (hint: did you mean abort_job"),
        (f"may {BOB} xyzzy", "hint: submit_job, clone_job"),
        (f"may {BOB} view by {ALICE}", f"by {ALICE}: not understood"),
        (f"may {BOB} view of", "of: not understood"),
        (f"may {BOB} view at a at b", "at b: not understood"),
    ],
)
def test_what_is_no_question_is_said(run, words, message):
    status, text = run("server1", *words.split())
    assert status == 2
    assert message in text


def test_the_default_policy_as_a_file(capsys):
    assert main(["--default"]) == 0
    text = capsys.readouterr().out
    assert Policy.parse(text, "f") == Policy.parse(DEFAULT_AUTHORIZATION, "f")
    assert main([]) == 2
    assert "no kit was named" in capsys.readouterr().err


def test_what_no_policy_can_give_is_shown_as_such(run, kits):
    path = kits["server1"].startup / "authorization.json"
    before = path.read_text()
    path.write_text('{"format_version": "1.0", "permissions": {"member": "any"}}')
    try:
        _, text = run("server1", "--role", "member")
        answer = run("server1", "may", "member:m@a.org/a", "manage_job", "job", "of", "m@a.org/a")
    finally:
        path.write_text(before)
    rows = {line.split()[1]: " ".join(line.split()[2:]) for line in text.splitlines() if line.startswith("member")}
    assert rows["manage_job"] == "none (job.manage is not for this role)"
    assert rows["view"] == "any"
    assert answer == (1, "no: job.manage is for lead, org_admin, project_admin; no policy gives it to the role member")


def test_every_word_stands_for_a_call_and_every_console_command_that_makes_one_is_known():
    assert set(COMMANDS.values()) <= set(ENDPOINTS)
    names = {command.name for command in REGISTRY}
    own = {"submit", "show", "abort", "delete", "download"}  # short ones that are no commands
    assert {word for word in COMMANDS if word not in own} <= names | {"shutdown", "restart"}


def test_a_mistake_in_the_policy_is_the_answer(run, kits, capsys):
    path = kits["site-1"].local / "authorization.json"
    path.write_text('{"format_version": "1.0",\n "permissions": {"lead": {"byoc": "o:"}}}')
    try:
        status, text = run("site-1")
    finally:
        path.unlink()
    assert status == 2
    assert text.startswith(f"error[BAD_INPUT]: {path}:2:27: permissions.lead.byoc: unknown condition 'o:'")
