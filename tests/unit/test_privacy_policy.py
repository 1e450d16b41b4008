"""What ``privacy.json`` may say, what two of them say together, and what others see of it."""

from __future__ import annotations

import json
import re

import pytest

from fedhelm.errors import BadInput, NotSupportedYet
from fedhelm.privacy.files import privacy_texts
from fedhelm.privacy.policy import LINE_KINDS, PRIVACY_SAMPLE, Clip, PrivacyPolicy, Weight

EVERY = [
    {"type": "min_samples", "samples": 50},
    {"type": "weight", "value": 1},
    {"type": "limits", "tensors": 500, "bytes": 500000000},
    {"type": "exclude", "tensors": ["head.*"]},
    {"type": "clip", "norm": 1.5},
    {"type": "gaussian_noise", "norm": 1.0, "multiplier": 0.8},
    {"type": "keep_largest", "share": 0.1, "limit": 0.01},
]


def parse(**keys):
    return PrivacyPolicy.parse(json.dumps({"format_version": "1.0", **keys}), "privacy.json")


def test_the_sample_changes_nothing_and_its_comments_can_be_used():
    assert PrivacyPolicy.parse(PRIVACY_SAMPLE, "sample") == PrivacyPolicy()
    used = PrivacyPolicy.parse(re.sub(r"// ([{\"])", r"\1", PRIVACY_SAMPLE), "sample")
    assert [one.type for one in used.filters] == [one["type"] for one in EVERY]
    assert used.lines == {"scalar"}
    assert used.metrics[0].only == ("loss", "accuracy")


def test_others_see_types_and_numbers_or_types_alone():
    told = parse(filters=EVERY, metrics={"only": ["loss"], "digits": 3}, lines=["scalar", "log"]).describe()
    assert told == (
        "min_samples(samples=50)",
        "weight(value=1)",
        "limits(tensors=500, bytes=500000000)",
        "exclude(tensors=head.*)",
        "clip(norm=1.5)",
        "gaussian_noise(norm=1, multiplier=0.8)",
        "keep_largest(share=0.1, limit=0.01)",
        "metrics(only=loss, digits=3)",
        "lines(only=log|scalar)",
    )
    hidden = parse(filters=EVERY, metrics={"digits": 3}, lines=[], show_parameters=False).describe()
    assert hidden == (*(one["type"] for one in EVERY), "metrics", "lines")
    assert parse(filters=[{"type": "exclude", "tensors": ["x" * 150, "y" * 150]}]).describe()[0].endswith("y...")
    assert len(parse(filters=[{"type": "exclude", "tensors": ["x" * 150, "y" * 150]}]).describe()[0]) == 200
    assert PrivacyPolicy().describe() == ()


def test_of_a_result_without_tensors_others_see_what_was_applied_to_it():
    policy = parse(filters=EVERY, metrics={"digits": 3}, lines=["scalar"], show_parameters=False)
    assert policy.describe_result(tensors=False) == ("min_samples", "weight", "metrics")
    assert policy.describe_result(tensors=True) == (*(one["type"] for one in EVERY), "metrics")


def test_of_two_files_both_apply_and_nothing_comes_back():
    project = parse(filters=[{"type": "clip", "norm": 1}], metrics={"only": ["loss"]}, lines=["scalar", "log"])
    site = parse(filters=[{"type": "weight", "value": 1}], metrics={"only": ["*"]}, lines=["scalar", "text"])
    both = project.followed_by(site)
    assert both.filters == (Clip(type="clip", norm=1), Weight(type="weight", value=1))
    assert both.outgoing_metrics({"loss": 1.0, "age": 2.0}) == {"loss": 1.0}
    assert both.lines == {"scalar"}
    assert not parse(show_parameters=False).followed_by(parse()).show_parameters
    assert PrivacyPolicy().followed_by(site) == site


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n  "filters": []}', "p:1:1: format_version: missing"),
        ("[]", "p:1:1: keys and values are needed"),
        ('{"format_version": "2.0"}', 'p:1:2: format_version: this program reads "1.0"'),
        ('{"format_version": "1.0",\n "filtres": []}', "p:2:2: filtres: unknown key (did you mean filters?)"),
        ('{"format_version": "1.0", // c\n "filters": [{"norm": 1}]}', "p:2:14: filters[0]: a filter is an object"),
        ('{"format_version": "1.0",\n "filters": ["clip"]}', "p:2:14: filters[0]: a filter is an object with a type"),
        ('{"format_version": "1.0",\n"filters": [{"type": "clap"}]}', "unknown filter 'clap' (did you mean clip?)"),
        ('{"format_version": "1.0",\n"filters": [{"type": "clip"}]}', "p:2:13: filters[0].norm: missing"),
        ('{"format_version": "1.0",\n"filters": [{"type": "limits"}]}', "p:2:13: filters[0]: limits needs tensors"),
        ('{"format_version": "1.0",\n"lines": ["logs"]}', "p:2:11: lines[0]: input should be 'scalar'"),
        ('{"format_version": "1.0",\n"filters": [,]}', "p:2:13: not JSON"),
        ('{"format_version": "1.0", "format_version": "1.0"}', "format_version"),
        ('{"format_version": "1.0", "filters": [' + '{"type": "weight", "value": 1},' * 32
         + '{"type": "weight", "value": 1}]}', "33 filters are more than 32"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_its_place(text, said):
    with pytest.raises(BadInput) as caught:
        PrivacyPolicy.parse(text, "p")
    assert said in caught.value.message
    assert caught.value.message.startswith("p:")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "clip", "norm": 0},
        {"type": "clip", "norm": -1},
        {"type": "clip", "norm": "1"},
        {"type": "clip", "norm": True},
        {"type": "clip", "norm": None},
        {"type": "clip", "norm": 1, "limit": 1},
        {"type": "gaussian_noise", "norm": 1},
        {"type": "gaussian_noise", "norm": 1, "multiplier": 0},
        {"type": "keep_largest", "share": 0},
        {"type": "keep_largest", "share": 1.5},
        {"type": "min_samples", "samples": 0},
        {"type": "limits", "tensors": 0},
        {"type": "limits", "tensors": 1.5},
        {"type": "exclude", "tensors": []},
        {"type": "exclude", "tensors": [""]},
        {"type": "exclude", "tensors": "head.*"},
        {"type": "weight", "value": 0},
    ],
    ids=str,
)
def test_numbers_that_mean_nothing_are_refused(wrong):
    with pytest.raises(BadInput, match=r"privacy\.json:1:\d+: filters\[0\]"):
        parse(filters=[wrong])


def test_an_infinite_number_is_refused():
    with pytest.raises(BadInput, match="finite"):
        PrivacyPolicy.parse('{"format_version": "1.0", "filters": [{"type": "clip", "norm": 1e999}]}', "p")


@pytest.mark.parametrize("key", ["scopes", "default_scope"])
def test_the_scopes_that_users_of_flare_know_are_refused_with_what_is_here_instead(key):
    with pytest.raises(NotSupportedYet, match="filters apply to every job of this site"):
        parse(**{key: []})


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ({"kind": "scalar", "tag": "loss", "value": 0.123456}, 0.123),
        ({"kind": "scalar", "tag": "loss", "value": "nan"}, "nan"),
        ({"kind": "scalar", "tag": "loss", "value": 12345}, 12300.0),
        ({"kind": "scalar", "tag": "age of patient 7", "value": 81}, None),
        ({"kind": "log", "tag": "output", "value": "patient 7"}, "patient 7"),
        ({"kind": "text", "tag": "loss", "value": "patient 7"}, None),
        ({"kind": "image", "tag": "loss", "value": "aGVsbG8="}, None),
    ],
)
def test_lines_leave_by_kind_and_numbers_by_name(line, left):
    policy = parse(metrics={"only": ["loss"], "digits": 3}, lines=["scalar", "log"])
    got = policy.outgoing_line(line)
    assert got == (None if left is None else {**line, "value": left})
    assert PrivacyPolicy().outgoing_line(line) == line


def test_kinds_of_lines_are_those_of_the_script():
    from fedhelm.local import script_protocol

    assert set(LINE_KINDS) == set(script_protocol.LINE_KINDS)


def test_the_files_are_read_the_projects_first(tmp_path):
    startup, local = tmp_path / "startup", tmp_path / "local"
    startup.mkdir()
    local.mkdir()
    assert privacy_texts(startup, local) == []
    (local / "privacy.json").write_text("b")
    (startup / "privacy.json").write_text("a")
    assert privacy_texts(startup, local) == [
        (str(startup / "privacy.json"), "a"),
        (str(local / "privacy.json"), "b"),
    ]
    (local / "privacy.json").write_bytes(b"\xff")
    with pytest.raises(BadInput, match=r"local/privacy\.json: cannot be read"):
        privacy_texts(startup, local)
