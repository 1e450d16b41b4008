from __future__ import annotations

import pytest

from fedhelm.plain_json import MAX_DEPTH, NotPlainJson, parse_plain


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2.5, null, true], "b": {"c": "\\u00e9"}}', "[]", "7", '"x"', "-0.0", "1e308"]
)
def test_json_is_read_as_text_and_as_bytes(text):
    assert parse_plain(text) == parse_plain(text.encode())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "line 1 column 1: Expecting value"),
        (b'{"a": 1,\n "b" 2}', "line 2 column 6: Expecting ':' delimiter"),
        (b"\xff", "not UTF-8"),
        ("\ufeff{}", "line 1 column 1: Unexpected UTF-8 BOM (decode using utf-8-sig)"),
        (b"[NaN]", "NaN is no JSON value"),
        (b"[-Infinity]", "-Infinity is no JSON value"),
        (b'{"epoch": 1e999}', "1e999 is too large"),
        (b"9" * 5000, "a number is too long"),
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a' is there twice"),
        (b'[{"x": {"a": 1, "a": 1}}]', "key 'a' is there twice"),
    ],
)
def test_what_is_no_plain_json_is_one_kind_of_error_and_says_why(data, told):
    with pytest.raises(NotPlainJson) as raised:
        parse_plain(data)
    assert str(raised.value) == told
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_bounded_whatever_it_is_made_of(begin, end):
    def nested(depth: int) -> str:
        return begin * (depth - 1) + "[]" + end * (depth - 1)

    parse_plain(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 500, 100_000):
        with pytest.raises(NotPlainJson, match=f"nested deeper than {MAX_DEPTH}"):
            parse_plain(nested(depth))
    with pytest.raises(NotPlainJson, match="nested deeper than 3"):
        parse_plain(nested(4), max_depth=3)


def test_many_brackets_side_by_side_are_not_deep():
    assert len(parse_plain("[" + ",".join(["[]"] * 1000) + "]")) == 1000


def test_brackets_in_texts_are_no_depth():
    assert parse_plain(b'"' + b"[" * 1000 + b'"') == "[" * 1000


def test_size_is_bounded():
    assert parse_plain(b'"abc"', max_size=5) == "abc"
    with pytest.raises(NotPlainJson, match="longer than 4 bytes"):
        parse_plain(b'"abc"', max_size=4)
