"""The record's form: what is written is read, and nothing else is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedhelm.errors import BadInput, Corrupt
from fedhelm.persist.record import (
    KINDS,
    MAX_DEPTH,
    MAX_RECORD_BYTES,
    NO_RECORD,
    READABLE_VERSIONS,
    VERSION,
    By,
    Draft,
    canonical,
    decode,
    encode,
    seal,
)

BY = By("server1", "0123456789abcdef")
# A busy machine is no failure.
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
thorough = settings(calm, max_examples=300)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
drafts = st.builds(
    Draft,
    kind=st.sampled_from(["fence", "contribution", "round_close"]),
    epoch=st.integers(0, 10**16 - 1),
    by=st.builds(By, names, names),
    body=st.dictionaries(texts, json_values, max_size=4),
)


def sealed(body=None, *, seq=5, **changes):
    draft = Draft("contribution", 3, BY, {"items": []} if body is None else body)
    return seal(replace(draft, **changes), seq=seq, prev="ab" * 32, nonce="n")


def forged(change, seq=5):
    """Return a record with its value changed and its hash right: what a hostile writer could make."""
    value = json.loads(sealed(seq=seq)[1])
    change(value)
    value.pop("sha256", None)
    value["sha256"] = hashlib.sha256(canonical(value)).hexdigest()
    return canonical(value) + b"\n"


@pytest.mark.parametrize("version", [1, 2])
def test_the_format_on_disk_is_this_one(version):
    draft = Draft("fence", 1, By("server1", "00ff"), {"cause": "start \u00e9"})
    record, data = seal(draft, seq=1, prev=NO_RECORD, nonce="aa", version=version)
    plain = (
        '{"body":{"cause":"start é"},"by":{"incarnation":"00ff","name":"server1"},"epoch":1,"kind":"fence",'
        f'"nonce":"aa","prev":"{"0" * 64}","seq":1,"v":{version}}}'
    ).encode()
    digest = hashlib.sha256(plain).hexdigest()
    assert record.sha256 == digest
    assert data == plain.replace(b'"v":', b'"sha256":"' + digest.encode() + b'","v":') + b"\n"
    assert record.v == version
    assert data == canonical(json.loads(data)) + b"\n"


@calm
@given(drafts, st.integers(0, 10**16 - 1))
def test_what_is_encoded_is_decoded(draft, seq):
    record, data = seal(draft, seq=seq, prev="0" * 64, nonce="n")
    assert decode(data, seq) == record
    assert encode(record) == data
    assert (record.kind, record.epoch, record.by, record.body) == (draft.kind, draft.epoch, draft.by, draft.body)


def test_the_writer_holds_the_record_that_readers_get():
    body = {"items": (1, (2, 3)), "nested": {"x": [1]}}
    record, data = sealed(body)
    body["nested"]["x"].append(2)
    assert record.body == {"items": [1, [2, 3]], "nested": {"x": [1]}}
    assert decode(data, 5) == record


def test_every_single_changed_byte_is_detected():
    data = sealed({"cause": "é", "n": [1, 2.5, None, True]})[1]
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(Corrupt, match="slot 5"):
                decode(bytes(damaged), 5)


@calm
@given(drafts, st.data())
def test_any_changed_byte_of_any_record_is_detected(draft, data):
    good = seal(draft, seq=0, prev=NO_RECORD, nonce="n")[1]
    position = data.draw(st.integers(0, len(good) - 1))
    damaged = bytearray(good)
    damaged[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Corrupt):
        decode(bytes(damaged), 0)


def test_every_truncation_and_every_addition_is_detected():
    data = sealed()[1]
    for length in range(len(data)):
        with pytest.raises(Corrupt):
            decode(data[:length], 5)
    for more in (b"\n", b" ", b"\0", data):
        with pytest.raises(Corrupt):
            decode(data + more, 5)


@thorough
@given(st.binary(max_size=200))
def test_hostile_bytes_are_corrupt_and_nothing_else(data):
    with pytest.raises(Corrupt, match="slot 9"):
        decode(data, 9)


@thorough
@given(st.dictionaries(st.sampled_from(sorted(json.loads(sealed()[1]))), json_values, min_size=1))
def test_hostile_fields_with_a_right_hash_are_read_or_corrupt(changes):
    data = forged(lambda value: value.update(changes))
    try:
        record = decode(data, 5)
    except Corrupt:
        return
    assert encode(record) == data


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(seq=True),
        lambda value: value.update(seq=-1),
        lambda value: value.update(seq=5.0),
        lambda value: value.update(epoch="3"),
        lambda value: value.update(epoch=10**16),
        lambda value: value.update(nonce=""),
        lambda value: value.update(nonce="n" * 257),
        lambda value: value.update(prev="AB" * 32),
        lambda value: value.update(kind="no such form"),
        lambda value: value.update(body=[]),
        lambda value: value.update(by={"name": "server1"}),
        lambda value: value.update(by={"name": "server1", "incarnation": "x", "role": "y"}),
        lambda value: value.update(extra=1),
        lambda value: value.pop("nonce"),
    ],
)
def test_a_field_out_of_form_is_corrupt_though_the_hash_is_right(change):
    with pytest.raises(Corrupt, match="slot 5"):
        decode(forged(change), 5)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1e999}\n',
        b'{"a":NaN}\n',
        b'{"a":"\\ud800"}\n',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"seq":' + b"9" * 5000 + b"}",
        "{}".encode("utf-16"),
        b"\xef\xbb\xbf{}",
    ],
)
def test_json_that_only_some_parsers_take_is_corrupt(data):
    with pytest.raises(Corrupt):
        decode(data, 0)


def test_a_record_in_another_slot_is_corrupt():
    with pytest.raises(Corrupt, match="slot 6: holds record 5"):
        decode(sealed(seq=5)[1], 6)


def test_other_forms_of_the_same_json_are_corrupt():
    data = sealed()[1]
    for other in (
        data.replace(b'"epoch":3', b'"epoch": 3'),
        data.replace(b'"epoch":3', b'"epoch":3,"epoch":3'),
        data.replace(b"contribution", b"contr\\u0069bution"),
        data[:-1],
    ):
        assert other != data
        with pytest.raises(Corrupt):
            decode(other, 5)


@pytest.mark.parametrize("version", [0, 3, 99, -1, True, None, "1", 1.0])
def test_another_version_is_refused_by_name(version):
    with pytest.raises(Corrupt, match="version"):
        decode(forged(lambda value: value.update(v=version)), 5)


def test_this_version_and_the_one_before_are_read():
    assert {VERSION, VERSION - 1} == READABLE_VERSIONS
    for version in READABLE_VERSIONS:
        decode(forged(lambda value: value.update(v=version)), 5)  # noqa: B023 - called at once


@pytest.mark.parametrize("kind", ["", "Fence", "hologram", "fence\n", None, 1, []])
def test_an_unknown_kind_is_refused_by_its_slot(kind):
    with pytest.raises(Corrupt, match=r"slot 5.*kind"):
        decode(forged(lambda value: value.update(kind=kind)), 5)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_is_read_and_written_in_the_versions_that_have_it(kind):
    draft = Draft(kind, 3, BY, {})
    for version in READABLE_VERSIONS:
        if version >= KINDS[kind]:
            data = seal(draft, seq=5, prev="ab" * 32, nonce="n", version=version)[1]
            assert (decode(data, 5).kind, decode(data, 5).v) == (kind, version)
        else:
            with pytest.raises(BadInput, match=kind):
                seal(draft, seq=5, prev="ab" * 32, nonce="n", version=version)
            with pytest.raises(Corrupt, match=rf"slot 5.*{kind}.*version {version}"):
                decode(forged(lambda value: value.update(kind=kind, v=version)), 5)  # noqa: B023 - called at once


def test_a_version_that_nobody_reads_is_not_written():
    with pytest.raises(BadInput, match="version 3"):
        seal(Draft("fence", 3, BY, {}), seq=5, prev="ab" * 32, nonce="n", version=3)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), b"bytes", {1, 2}, object(), "\ud800", {"a": 1, 2: 3}, 10**5000],
    ids=["nan", "infinity", "bytes", "set", "object", "surrogate", "mixed keys", "long number"],
)
def test_what_is_not_json_is_not_written(value):
    with pytest.raises(BadInput):
        sealed({"value": [value]})


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "Fence"},
        {"kind": ""},
        {"epoch": -1},
        {"epoch": 1.5},
        {"by": By("", "x")},
        {"by": By("x", "")},
    ],
)
def test_what_readers_would_refuse_is_not_written(changes):
    with pytest.raises(BadInput):
        sealed(**changes)


def test_the_size_is_capped_for_writers_and_for_readers():
    room = MAX_RECORD_BYTES - len(sealed({"x": ""})[1])
    record, data = sealed({"x": "a" * room})
    assert len(data) == MAX_RECORD_BYTES
    assert decode(data, 5) == record
    with pytest.raises(BadInput, match="larger"):
        sealed({"x": "a" * (room + 1)})
    with pytest.raises(Corrupt, match="larger"):
        decode(b" " * (MAX_RECORD_BYTES + 1), 5)


def nested(levels):
    body: dict = {}
    for _ in range(levels - 1):
        body = {"x": body}
    return body


def test_the_depth_is_capped_for_writers_and_for_readers():
    record, data = sealed(nested(MAX_DEPTH))
    assert decode(data, 5) == record
    with pytest.raises(BadInput, match="deeper"):
        sealed(nested(MAX_DEPTH + 1))
    with pytest.raises(BadInput):
        sealed(nested(100_000))
    with pytest.raises(Corrupt, match="deeper"):
        decode(forged(lambda value: value.update(body=nested(MAX_DEPTH + 1))), 5)
