from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic
import pytest

from fedhelm.config.yaml_source import load_yaml, parse
from fedhelm.errors import BadInput, NotSupportedYet


class Inner(pydantic.BaseModel, extra="forbid", frozen=True):
    rounds: int
    rate: float = 0.1


class Outer(pydantic.BaseModel, extra="forbid", frozen=True):
    name: str
    workflow: Inner
    script: Path | None = None
    sites: tuple[str, ...] = ()
    byoc: bool = False
    kind: Literal["a", "b"] = "a"


GOOD = """\
name: hello
workflow:
  rounds: 3
sites: [site-1, site-2]
script: train.py
"""


def refused(text, model=Outer):
    with pytest.raises(BadInput) as caught:
        parse(text, "job.yaml", model)
    return caught.value.message


def test_a_good_file_becomes_a_frozen_model():
    model = parse(GOOD, "job.yaml", Outer)
    assert model == Outer(name="hello", workflow=Inner(rounds=3), script=Path("train.py"), sites=("site-1", "site-2"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: a\nworkflow: {rounds: many}\n",
            'job.yaml:2:20: workflow.rounds: input should be a valid integer, not "many"',
        ),
        ("name: a\nworkflow:\n  rate: 0.5\n", "job.yaml:3:3: workflow.rounds: missing"),
        ("name: a\nworkflow: {rounds: 1}\nscrpt: x\n", "job.yaml:3:1: scrpt: unknown key (did you mean script?)"),
        (
            "name: a\nworkflow:\n  rounds: 1\n  round: 2\n",
            "job.yaml:4:3: workflow.round: unknown key (did you mean rounds?)",
        ),
        ("name: a\nname: b\n", "job.yaml:2:1: name: duplicate key, first given in line 1"),
        (
            "name: a\nworkflow: {rounds: 1}\nsites: [x, 7]\n",
            "job.yaml:3:12: sites[1]: input should be a valid string, not 7",
        ),
        ("name: a\nworkflow: {rounds: 1}\nkind: c\n", "job.yaml:3:7: kind: input should be 'a' or 'b', not \"c\""),
        ("- a\n", "job.yaml:1:1: keys and values are needed, as in `key: value`"),
        ("", "job.yaml:1:1: keys and values are needed, as in `key: value`"),
        (
            "name: !!python/name:os.system x\n",
            "job.yaml:1:7: name: the tag tag:yaml.org,2002:python/name:os.system is not allowed",
        ),
        ("a: !foo {b: 1}\n", "job.yaml:1:4: a: the tag !foo is not allowed"),
        ("a: &x [1]\nb: *x\n", "job.yaml:2:4: the alias *x is not supported: write it out"),
        ("<<: {a: 1}\n", "job.yaml:1:1: merge keys (<<) are not supported"),
        ("? [a]\n: 1\n", "job.yaml:1:3: a key must be plain text"),
    ],
)
def test_an_error_names_file_line_column_and_key(text, message):
    assert refused(text) == message


def test_a_syntax_error_says_where():
    assert refused("sites: [@ALL]\n").startswith("job.yaml:1:9: not valid YAML: ")
    assert refused("a: 'open\n").startswith("job.yaml:")
    assert refused("a: \x00\n").startswith("job.yaml:1:1: not valid YAML: ")


def test_a_misspelt_key_comes_first_and_is_not_missing_as_well():
    assert refused("name: a\nworkflwo: {rounds: 1}\n") == "job.yaml:2:1: workflwo: unknown key (did you mean workflow?)"
    assert refused("name: a\nworkflow: {ruonds: 1}\n") == (
        "job.yaml:2:12: workflow.ruonds: unknown key (did you mean rounds?)"
    )
    assert refused("zzz: 1\nworkflwo: {rounds: 1}\n").splitlines() == [
        "job.yaml:2:1: workflwo: unknown key (did you mean workflow?)",
        "job.yaml:1:1: name: missing",
        "job.yaml:1:1: zzz: unknown key",
    ]


def test_a_wrong_value_under_a_misspelt_keys_twin_is_told_too():
    lines = refused("name: a\nnaem: b\nworkflow: {rounds: x}\n").splitlines()
    assert lines[0] == "job.yaml:2:1: naem: unknown key (did you mean name?)"
    assert len(lines) == 2


def test_several_errors_are_several_lines_and_the_first_stands_alone():
    lines = refused("workflow: {rounds: x}\nfoo: 1\n").splitlines()
    assert len(lines) == 3
    assert all(line.startswith("job.yaml:") for line in lines)


@pytest.mark.parametrize(
    "text", ["on", "yes", "no", "0777", "1:30", "2026-01-02", "1_000", ".inf", ".nan", "0o17", "12e"]
)
def test_nothing_turns_into_another_type_behind_the_writers_back(text):
    assert load_yaml(f"k: {text}\non: 1\n").value == {"k": text, "on": 1}


@pytest.mark.parametrize("text", ["0777", "1:30", "'3'", "true", "3.0"])
def test_what_is_no_integer_is_refused_as_one(text):
    assert "workflow.rounds" in refused(f"name: a\nworkflow: {{rounds: {text}}}\n")


@pytest.mark.parametrize(("text", "boolean"), [("yes", False), ("on", False), ("1", False), ("true", True)])
def test_only_true_and_false_are_truth_values(text, boolean):
    source = f"name: a\nworkflow: {{rounds: 1}}\nbyoc: {text}\n"
    if boolean:
        assert parse(source, "job.yaml", Outer).byoc is True
    else:
        assert refused(source).startswith("job.yaml:3:7: byoc: ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("0x10", 16),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("2.", 2.0),
        ("~", None),
        ("", None),
        ("null", None),
    ],
)
def test_plain_values(text, value):
    found = load_yaml(f"k: {text}\n").value["k"]
    assert found == value
    assert type(found) is type(value)


def test_depth_is_limited_before_it_can_overflow_a_stack():
    assert "nested deeper than 64" in refused("a: " + "[" * 100_000)


def test_a_file_is_named_by_its_path(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(b"name: a\nwhat: \xff\n")
    with pytest.raises(BadInput, match=r"job\.yaml:2:1: not UTF-8 text"):
        load_yaml(path)
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        load_yaml(tmp_path / "none.yaml")
    path.write_bytes(b"\xef\xbb\xbfname: a\n")
    assert load_yaml(path).value == {"name": "a"}


def test_a_callers_own_error_has_the_place_too():
    document = load_yaml("name: a\nresources:\n  gpu: 1\n", "job.yaml")
    error = document.error(("resources", "gpu"), "not supported yet", NotSupportedYet)
    assert isinstance(error, NotSupportedYet)
    assert str(error) == "job.yaml:3:3: resources.gpu: not supported yet"
    assert document.where(("name",)) == "job.yaml:1:7"
    assert document.where(("name", "deeper")) == "job.yaml:1:7"


# -- aliases and merge keys, where the caller admits them


def aliased(text):
    return load_yaml(text, "p.yml", aliases=True)


def test_an_alias_is_what_it_names_and_stands_where_that_stands():
    document = aliased("a: &x {b: [1, two]}\nc: *x\n")
    assert document.value == {"a": {"b": [1, "two"]}, "c": {"b": [1, "two"]}}
    assert document.where(("c", "b", 1)) == "p.yml:1:15"
    assert {key for key in document.shared if len(key) == 1} == {("a",)}


def test_own_keys_win_over_merged_ones_and_the_first_of_several_over_the_others():
    document = aliased(
        "x: &x {p: 1, q: 2, n: {m: 0}}\ny: &y {<<: *x, p: 3, r: 4}\nz: {s: 5, <<: [*y, {r: 9, t: 6}], q: 7}\n"
    )
    assert document.value["y"] == {"p": 3, "r": 4, "q": 2, "n": {"m": 0}}
    assert document.value["z"] == {"s": 5, "q": 7, "p": 3, "r": 4, "n": {"m": 0}, "t": 6}
    assert document.where(("z", "q"), of_key=True) == "p.yml:3:35"
    assert document.where(("z", "n", "m")) == "p.yml:1:27"
    assert {key for key in document.shared if len(key) == 1} == {("x",), ("y",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]\n", "nested deeper than 64"),
        ("a: &a {b: *a}\n", "nested deeper than 64"),
        ("a: &a {<<: *a}\n", "p.yml:1:4: a: a merge key (<<) that merges itself"),
        ("a: &a {<<: {<<: *a}}\n", "that merges itself"),
        ("a: {<<: 3}\n", "p.yml:1:9: a: a merge key (<<) needs keys and values"),
        ("a: {<<: [[1]]}\n", "needs keys and values"),
        ("a: &a {b: 1}\nc: {<<: *a, d: 1, d: 2}\n", "p.yml:2:19: c.d: duplicate key, first given in line 2"),
        ("a: *nobody\n", "undefined alias"),
        ("a: {<<: !x {b: 1}}\nc: !y z\n", "the tag !y is not allowed"),
    ],
)
def test_a_wrong_alias_is_refused(text, message):
    with pytest.raises(BadInput) as caught:
        aliased(text)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("first", "more"),
    [
        ("[1, 2, 3, 4, 5, 6, 7, 8, 9]", "[*{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}]"),
        ("{a: 1, b: 2}", "{{a: *{0}, b: *{0}, c: *{0}, d: *{0}, e: *{0}, f: *{0}, g: *{0}, h: *{0}}}"),
        ("{" + ", ".join(f"k{i}: 1" for i in range(500)) + "}", "{{<<: [" + ", ".join(["*{0}"] * 500) + "]}}"),
    ],
)
def test_aliases_that_multiply_are_refused_before_they_do_harm(first, more):
    lines = [f"v0: &v0 {first}"]
    lines += [f"v{i}: &v{i} {more.format(f'v{i - 1}')}" for i in range(1, 12)]
    with pytest.raises(BadInput, match="aliases expand it to more than 200000 values"):
        aliased("\n".join(lines) + "\n")


@pytest.mark.parametrize("number", ["9" * 101, "0x" + "f" * 5000, "-" + "1" * 5000])
def test_a_number_that_nobody_can_write_again_is_refused(tmp_path, number):
    path = tmp_path / "job.yaml"
    path.write_text(f"name: a\noptions: {{n: {number}}}\n")
    with pytest.raises(BadInput) as raised:
        load_yaml(path, "job.yaml")
    told = f"job.yaml:2:14: options.n: a number of {len(number)} digits, more than 100"
    assert raised.value.message == told
