"""Rights: the default policy against a table written out by hand, the language, and what tightening may do."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhelm.config.json_source import MAX_TEXT, load_commented
from fedhelm.errors import BadInput
from fedhelm.security.authorization import (
    CONDITIONS,
    DEFAULT_AUTHORIZATION,
    POLICY_ROLES,
    Decision,
    Object,
    Policy,
    Right,
    Subject,
    decide,
    default_policy,
)

ME, MY_ORG = "me@here.org", "here"

# What is touched, seen from ME of the organisation "here".
OBJECTS = {
    "own job": Object(None, None, ME, "here"),
    "colleague's job": Object(None, None, "colleague@here.org", "here"),
    "foreign job": Object(None, None, "stranger@there.org", "there"),
    "own site": Object("site-1", "here"),
    "foreign site": Object("site-2", "there"),
    "own job at own site": Object("site-1", "here", ME, "here"),
    "own job at foreign site": Object("site-2", "there", ME, "here"),
    "foreign job at foreign site": Object("site-2", "there", "stranger@there.org", "there"),
    "federation": Object(),
}

# Written by hand from decision 15, not from the policy: which of the objects above each role may touch.
EVERYTHING = set(OBJECTS)
OWN_JOB = {"own job", "own job at own site", "own job at foreign site"}
ORG_JOB = OWN_JOB | {"colleague's job"}
ORG_SITE = {"own site", "own job at own site"}
TABLE = {
    "project_admin": {
        "submit_job": EVERYTHING,
        "clone_job": EVERYTHING,
        "manage_job": EVERYTHING,
        "download_job": EVERYTHING,
        "view": EVERYTHING,
        "operate": EVERYTHING,
        "shell": EVERYTHING,
        "byoc": EVERYTHING,
    },
    "org_admin": {
        "submit_job": set(),
        "clone_job": set(),
        "manage_job": ORG_JOB,
        "download_job": ORG_JOB,
        "view": ORG_JOB | ORG_SITE,
        "operate": ORG_SITE,
        "shell": ORG_SITE,
        "byoc": set(),
    },
    "lead": {
        "submit_job": EVERYTHING,
        "clone_job": OWN_JOB,
        "manage_job": OWN_JOB,
        "download_job": OWN_JOB,
        "view": ORG_JOB | ORG_SITE,
        "operate": set(),
        "shell": set(),
        "byoc": EVERYTHING,
    },
    "member": {
        "submit_job": set(),
        "clone_job": set(),
        "manage_job": set(),
        "download_job": set(),
        "view": ORG_JOB | ORG_SITE,
        "operate": set(),
        "shell": set(),
        "byoc": set(),
    },
    "site": {},
    "server": {},
    "overseer": {},
    "nobody knows this role": {},
}


def policy(permissions, where="local/authorization.json"):
    return Policy.parse(json.dumps({"format_version": "1.0", "permissions": permissions}), where)


def ask(given_policy, role, right, object_, name=ME, org=MY_ORG):
    return decide(given_policy, Subject(role, name, org), Right(right), object_)


@pytest.mark.parametrize("role", TABLE)
@pytest.mark.parametrize(
    "right", ["submit_job", "clone_job", "manage_job", "download_job", "view", "operate", "shell", "byoc"]
)
def test_the_default_policy_is_the_table(role, right):
    default = default_policy()
    found = {what for what, object_ in OBJECTS.items() if ask(default, role, right, object_).allowed}
    assert found == TABLE[role].get(right, set())


def test_the_table_has_every_right():
    assert {str(right) for right in Right} == set(TABLE["member"])
    assert set(POLICY_ROLES) < set(TABLE)


@pytest.mark.parametrize("right", Right)
def test_whose_organisation_is_not_known_has_none(right):
    for object_ in (
        Object("site-2", ""),
        Object("site-2", None),
        Object(None, None, "a@b", ""),
        Object(None, None, "a@b"),
    ):
        for org in ("", "here"):
            answer = ask(policy({"lead": {str(right): ["o:site", "o:submitter"]}}), "lead", right, object_, org=org)
            assert not answer.allowed
            assert "not known" in answer.why


def test_an_answer_says_rule_and_reason():
    denied = ask(default_policy(), "lead", "manage_job", OBJECTS["foreign job"], name="bob@here.org")
    assert str(denied) == "no: manage_job needs n:submitter; bob@here.org did not submit it"
    allowed = ask(default_policy(), "lead", "manage_job", OBJECTS["own job"])
    assert str(allowed) == "yes: manage_job with n:submitter; me@here.org submitted it"
    org_admin = ask(default_policy(), "org_admin", "operate", OBJECTS["foreign site"])
    assert str(org_admin) == "no: operate needs o:site; me@here.org is of here, site-2 is of there"
    assert (
        str(ask(default_policy(), "member", "byoc", Object())) == "no: byoc is none for member; nobody of this role may"
    )
    assert (
        str(ask(default_policy(), "site", "view", Object()))
        == "no: view is not named for site; what is not named is denied"
    )
    assert str(ask(Policy(), "project_admin", "view", Object())).startswith("no: no policy; ")


def test_every_condition():
    for condition, yes, no in (
        ("any", OBJECTS["federation"], None),
        ("none", None, OBJECTS["own job"]),
        ("o:site", OBJECTS["own site"], OBJECTS["foreign site"]),
        ("o:submitter", OBJECTS["colleague's job"], OBJECTS["foreign job"]),
        ("n:submitter", OBJECTS["own job"], OBJECTS["colleague's job"]),
        ("o:here", OBJECTS["federation"], None),
        ("o:elsewhere", None, OBJECTS["own job"]),
        (f"n:{ME}", OBJECTS["foreign job"], None),
        ("n:other@here.org", None, OBJECTS["own job"]),
    ):
        written = policy({"lead": {"view": condition}})
        if yes is not None:
            assert ask(written, "lead", "view", yes).allowed, condition
        if no is not None:
            assert not ask(written, "lead", "view", no).allowed, condition


def test_a_list_holds_if_one_condition_does_and_a_role_may_have_one_for_all():
    either = policy({"lead": {"view": ["none", "o:site", "n:submitter"]}, "member": ["o:site", "n:submitter"]})
    for role in ("lead", "member"):
        assert ask(either, role, "view", OBJECTS["own site"]).allowed
        assert ask(either, role, "view", OBJECTS["own job at foreign site"]).allowed
        assert not ask(either, role, "view", OBJECTS["foreign job"]).allowed


def test_a_local_policy_only_takes_away():
    local = policy({"project_admin": "any", "lead": {"byoc": "o:site", "manage_job": "any"}, "member": "any"})
    both = default_policy().tightened_by(local)
    assert ask(both, "lead", "byoc", OBJECTS["own job at own site"]).allowed
    refusal = ask(both, "lead", "byoc", OBJECTS["own job at foreign site"])
    assert str(refusal) == (
        "no: byoc needs o:site (local/authorization.json); me@here.org is of here, site-2 is of there"
    )
    assert not ask(both, "lead", "manage_job", OBJECTS["foreign job"]).allowed
    assert not ask(both, "member", "operate", OBJECTS["own site"]).allowed
    assert not ask(both, "lead", "view", OBJECTS["own job"]).allowed  # not named in the local one
    assert ask(both, "project_admin", "operate", OBJECTS["federation"]).allowed


def test_nothing_is_loosened_by_a_policy_without_files():
    assert not ask(default_policy().tightened_by(Policy()), "project_admin", "view", Object()).allowed
    assert not ask(Policy().tightened_by(default_policy()), "lead", "manage_job", OBJECTS["foreign job"]).allowed


_conditions = st.sampled_from([*CONDITIONS[:5], "o:here", "o:there", f"n:{ME}", "n:x@y.org"])
_rights = st.dictionaries(st.sampled_from([str(one) for one in Right]), _conditions | st.lists(_conditions, min_size=1))
_policies = st.dictionaries(st.sampled_from(POLICY_ROLES), _conditions | _rights).map(policy)
_names = st.sampled_from([ME, "x@y.org", "", "site-1", "any"]) | st.text(max_size=8)
_maybe = st.none() | st.sampled_from(["here", "there", ME, ""]) | st.text(max_size=8)
_subjects = st.builds(
    Subject, st.sampled_from(POLICY_ROLES) | st.text(max_size=8), _names, _maybe.map(lambda org: org or "")
)
_objects = st.builds(Object, _maybe, _maybe, _maybe, _maybe)


@given(first=_policies, local=_policies, subject=_subjects, right=st.sampled_from(list(Right)), object_=_objects)
@settings(max_examples=100, deadline=None)
def test_what_two_policies_allow_is_what_both_allow(first, local, subject, right, object_):
    one, other = decide(first, subject, right, object_), decide(local, subject, right, object_)
    both = decide(first.tightened_by(local), subject, right, object_)
    assert both.allowed == (one.allowed and other.allowed)
    for answer in (one, other, both):
        assert isinstance(answer, Decision)
        assert answer.rule
        assert answer.why


@given(subject=_subjects, right=st.sampled_from(list(Right)), object_=_objects)
@settings(max_examples=100, deadline=None)
def test_what_is_anothers_is_denied_to_all_but_the_project_admin(subject, right, object_):
    foreign = subject.org not in (object_.site_org, object_.submitter_org) and subject.name != object_.submitter
    if not foreign or right in (Right.SUBMIT_JOB, Right.BYOC) or subject.role == "project_admin":
        return
    assert not decide(default_policy(), subject, right, object_).allowed


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda data: data.decode("latin-1")))
@settings(max_examples=100, deadline=None)
def test_whatever_is_in_the_file_is_a_policy_or_one_clear_line(text):
    for written in (
        text,
        DEFAULT_AUTHORIZATION.replace("n:submitter", text, 1),
        text.join(DEFAULT_AUTHORIZATION.split("\n")),
    ):
        try:
            read = Policy.parse(written, "authorization.json")
        except BadInput as error:
            assert error.message.startswith("authorization.json:")  # noqa: PT017 - most texts are refused, some are not
        else:
            assert not decide(read, Subject("nobody", ME), Right.VIEW, Object()).allowed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"f:1:1: not JSON"),
        ("{", r"f:1:2: not JSON"),
        ("[]", r"f:1:1: file: an object"),
        ("{}", r"f:1:1: format_version: missing"),
        ('{"format_version": "1.0"}', r"f:1:1: permissions: missing"),
        ('{"format_version": "2.0", "permissions": {}}', r'f:1:2: format_version: this program reads "1\.0"'),
        ('{\n "format_version": "1.0",\n "permissions": []}', r"f:3:17: permissions: an object"),
        ('{\n "format_version": "1.0",\n # x\n "permision": {}}', r"f:4:2: permision: unknown key \(did you mean permissions\?\)"),
        ('{"format_version": "1.0", "permissions":\n {"leed": "any"}}', r"f:2:3: permissions\.leed: unknown role \(did you mean lead\?\); there is project_admin, org_admin, lead, member"),
        ('{"format_version": "1.0", "permissions":\n {"lead": {"submit": "any"}}}', r"f:2:12: permissions\.lead\.submit: unknown right \(did you mean submit_job\?\); there is submit_job, clone_job"),
        ('{"format_version": "1.0", "permissions":\n {"lead": {"view": "o:"}}}', r"f:2:12: permissions\.lead\.view: unknown condition 'o:'; there is any, none, o:site"),
        ('{"format_version": "1.0", "permissions":\n {"lead": {"view": ["any", "n:site"]}}}', r"f:2:\d+: permissions\.lead\.view\[1\]: unknown condition 'n:site'"),
        ('{"format_version": "1.0", "permissions":\n {"lead": {"view": []}}}', r"empty list"),
        ('{"format_version": "1.0", "permissions":\n {"lead": {"view": null}}}', r"unknown condition None"),
        ('{"format_version": "1.0", "permissions":\n {"lead": "any",\n  "lead": "none"}}', r"f:3:3: permissions\.lead: duplicate key, first given in line 2"),
        ('{"format_version": "1.0", "permissions":\n {"lead": {"view": "any",\n "view": "none"}}}', r"f:3:2: permissions\.lead\.view: duplicate key"),
        ('{"format_version": NaN}', r"f: not JSON: NaN"),
        ("lead: any", r"f:1:1: not JSON"),
        ("[" * 100_000, r"f:.*not JSON"),
        ("[" * 100 + "]" * 100, r"f:1:\d+: nested deeper"),
        ('"' * MAX_TEXT + " ", r"f: longer than"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(text, message):
    with pytest.raises(BadInput, match=rf"^{message}" if message.startswith("f:") else message):
        Policy.parse(text, "f")


def test_comments_are_read_over_and_strings_are_not_comments():
    text = '# one\n{ // two\n  "a": "http://x # y", # three\n  "b\\"//": [1] // "four\n}\n// five'
    document = load_commented(text, "f")
    assert document.value == {"a": "http://x # y", 'b"//': [1]}
    assert document.where(('b"//', 0)) == "f:4:13"
    tabs = load_commented('\t// one\n\t{"a":\t1,\n\t# two\n\t\t"b": "\\t"}\n\t// three', "f")
    assert tabs.value == {"a": 1, "b": "\t"}
    assert tabs.where(("b",)) == "f:4:8"
