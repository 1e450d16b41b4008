"""`fedhelm authz`: the questions people ask, and the answers with rule and reason."""

from __future__ import annotations

import json

import pytest

from fedhelm.provision.authz_cli import _COMMANDS, main
from fedhelm.security.authorization import DEFAULT_AUTHORIZATION, Policy
from fedhelm.security.gates import ENDPOINTS
from fedhelm_console.commands import REGISTRY
from tests.support.kits import ADMIN, make_kits


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    made = make_kits(tmp_path_factory.mktemp("kits"), sites=2)
    for name in ("server1", "site-1", "site-2"):
        path = made[name].startup / "authorization.json"
        path.write_text(DEFAULT_AUTHORIZATION)
    (made["site-2"].local / "authorization.json").write_text(
        '{"format_version": "1.0", "permissions": {"project_admin": "any", "org_admin": ["n:o@a.org", "o:site"],'
        ' "lead": {"byoc": "o:site", "view": "any", "manage_job": "any"}}}'
    )
    return made


@pytest.fixture
def run(kits, capsys):
    def ask(kit, *words):
        status = main([str(kits[kit].root), *words])
        out = capsys.readouterr()
        return status, (out.out or out.err).strip()

    return ask


BOB, ALICE = "lead:bob@a.org/a", "alice@b.org/b"


@pytest.mark.parametrize(
    ("kit", "words", "status", "answer"),
    [
        ("server1", f"may {BOB} abort_job job of {ALICE}", 1, "no: manage_job needs n:submitter; bob@a.org did not submit it"),
        ("server1", f"may {BOB} manage_job job of bob@a.org/a", 0, "yes: manage_job with n:submitter; bob@a.org submitted it"),
        ("server1", f"may {BOB} Admin.ShowJob of {ALICE}", 1, "no: view needs o:submitter or o:site; bob@a.org is of a, alice@b.org is of b, and it is not about one site"),
        ("server1", f"may {BOB} submit_job", 0, "yes: submit_job with any; whoever asks, and whosever it is"),
        ("server1", f"may {BOB} promote_sp", 1, "no: lease.promote is for project_admin; no policy gives it to the role lead"),
        ("server1", f"may {BOB} Admin.Login", 0, "yes: admin.login is for lead; the role alone decides"),
        ("server1", "may member:m@a.org/a delete job of m@a.org/a", 1, "no: job.manage is for lead, org_admin, project_admin; no policy gives it to the role member"),
        ("server1", "may org_admin:o@a.org/a restart at site-1/a", 0, "yes: operate with o:site; o@a.org is of a, site-1 too"),
        ("server1", "may org_admin:o@a.org/a restart at site-1", 1, "no: operate needs o:site; the organisation of site-1 is not known"),
        ("server1", "may org_admin:o@a.org/a restart", 1, "no: operate needs o:site; it is not about one site"),
        ("site-1", "may org_admin:o@a.org/nvidia shell", 0, "yes: shell with o:site; o@a.org is of nvidia, site-1 too"),
        ("site-1", "may org_admin:o@a.org/nvidia shell at site-1", 0, "yes: shell with o:site; o@a.org is of nvidia, site-1 too"),
        ("site-1", "may org_admin:o@a.org/nvidia shell at site-9/x", 1, "no: shell needs o:site; o@a.org is of nvidia, site-9 is of x"),
        ("site-1", f"may {BOB} byoc", 0, "yes: byoc with any; whoever asks, and whosever it is"),
        (ADMIN, f"may {BOB} clone_job job of {ALICE}", 1, "no: clone_job needs n:submitter; bob@a.org did not submit it"),
        ("server1", "may project_admin:p@a.org shutdown_system", 0, "yes: operate with any; whoever asks, and whosever it is"),
    ],
)  # fmt: skip
def test_a_question_is_answered_with_rule_and_reason(run, kit, words, status, answer):
    assert run(kit, *words.split()) == (status, answer)


def test_the_local_policy_of_a_site_is_named_where_it_denies(run):
    status, answer = run("site-2", "may", BOB, "byoc")
    assert (status, answer) == (
        1,
        "no: byoc needs o:site (local/authorization.json); bob@a.org is of a, site-2 is of nvidia",
    )


def test_as_json(run):
    status, text = run("server1", "may", BOB, "abort", "job", "of", ALICE, "at", "site-1/b", "-o", "json")
    data = json.loads(text)["data"]
    assert status == 1
    assert data["allowed"] is False
    assert data["rule"] == "manage_job needs n:submitter"
    assert data["why"] == "bob@a.org did not submit it"
    assert (data["permission"], data["right"]) == ("job.manage", "manage_job")
    assert data["object"] == {"site": "site-1", "site_org": "b", "submitter": "alice@b.org", "submitter_org": "b"}
    assert data["subject"] == {"role": "lead", "name": "bob@a.org", "org": "a"}


def test_the_table_shows_what_both_files_allow_together(run):
    status, text = run("site-2")
    rows = {tuple(line.split()[:2]): " ".join(line.split()[2:]) for line in text.splitlines()}
    assert status == 0
    assert rows["project_admin", "shell"] == "any"
    assert rows["org_admin", "operate"] == "o:site and (n:o@a.org or o:site)"
    assert rows["lead", "manage_job"] == "n:submitter"
    assert rows["lead", "submit_job"] == "none"  # not named in the local file
    assert rows["lead", "byoc"] == "o:site"
    assert rows["member", "view"] == "none"
    status, text = run("server1", "--role", "lead", "-o", "json")
    data = json.loads(text)["data"]
    assert {row["role"] for row in data["rights"]} == {"lead"}
    assert len(data["rights"]) == 8
    assert len(data["files"]) == 1


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
    assert set(_COMMANDS.values()) <= set(ENDPOINTS)
    names = {command.name for command in REGISTRY}
    own = {"submit", "show", "abort", "delete", "download"}  # short ones that are no commands
    assert {word for word in _COMMANDS if word not in own} <= names | {"shutdown", "restart"}


def test_a_mistake_in_the_policy_is_the_answer(run, kits, capsys):
    path = kits["site-1"].local / "authorization.json"
    path.write_text('{"format_version": "1.0",\n "permissions": {"lead": {"byoc": "o:"}}}')
    try:
        status, text = run("site-1")
    finally:
        path.unlink()
    assert status == 2
    assert text.startswith(f"error[BAD_INPUT]: {path}:2:27: permissions.lead.byoc: unknown condition 'o:'")
