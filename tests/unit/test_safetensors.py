"""The codec against the reference package, and the parser against hostile files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedhelm.errors import BadInput
from fedhelm.tensors import read_bits, read_file, read_header, to_torch, write_file
from fedhelm.tensors.header import MAX_HEADER, parse_header

DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "u2", "u4", "u8", "?"]
MODELS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10).filter(lambda name: name != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=5,
)


def same(left, right):
    assert sorted(left) == sorted(right)
    for name in left:
        assert (left[name].dtype, left[name].shape) == (right[name].dtype, right[name].shape)
        assert left[name].tobytes() == right[name].tobytes()


@given(MODELS)
def test_the_reference_package_reads_what_we_write(tmp_path_factory, model):
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path_factory.mktemp("m") / "a.safetensors"
    write_file(path, model, sync=False)
    same(safetensors_numpy.load(path.read_bytes()), model)
    same(safetensors_numpy.load_file(path), model)


@given(MODELS)
def test_we_read_what_the_reference_package_writes(tmp_path_factory, model):
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path_factory.mktemp("m") / "a.safetensors"
    safetensors_numpy.save_file(model, path, metadata={"format": "np"})
    same(read_file(path), model)


def test_torch_files_both_ways(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors_torch = pytest.importorskip("safetensors.torch")
    model = {
        "flags": torch.tensor([True, False, True]),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "wide": torch.arange(3, dtype=torch.float64),
        "none": torch.zeros(0, 2),
        "one": torch.tensor(4),
    }
    write_file(tmp_path / "ours", model)
    safetensors_torch.save_file(model, tmp_path / "theirs")
    for found in (
        safetensors_torch.load_file(tmp_path / "ours"),
        safetensors_torch.load((tmp_path / "ours").read_bytes()),
        to_torch(tmp_path / "theirs"),
    ):
        assert sorted(found) == sorted(model)
        for name, tensor in model.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def file_of(tmp_path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "hostile.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def tensor(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


HOSTILE = {
    "header beyond the cap": (b"{}", b"", MAX_HEADER + 1),
    "header beyond 64 bits of memory": (b"{}", b"", 2**64 - 1),
    "header cut off": (b"{}", b"", 200),
    "not JSON": (b"{nonsense", b""),
    "not an object": (b"[]", b""),
    "begins with a space": (b" {}", b""),
    "not UTF-8": (b'{"\xff": 1}', b""),
    "nested for ever": (b'{"a":' + b"[" * 200_000, b""),
    "a number of thousands of digits": (
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 9000 + b'],"data_offsets":[0,4]}}',
        b"",
    ),
    "NaN": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"1234"),
    "the same name twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"1234",
    ),
    "the same key twice": (b'{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    "a lone surrogate": (b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    "unknown dtype": ({"a": tensor("F8_E4M3", (4,))}, b"1234"),
    "dtype that is no text": ({"a": tensor(["F32"])}, b"1234"),
    "shape that is no list": ({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, b"1234"),
    "negative dimensions": ({"a": tensor(shape=(-1, -1))}, b"1234"),
    "true as a dimension": ({"a": tensor(shape=(True,))}, b"1234"),
    "half a dimension": ({"a": tensor(shape=(1.0,))}, b"1234"),
    "too many dimensions": ({"a": tensor(shape=(1,) * 65)}, b"1234"),
    "a product beyond memory": ({"a": tensor(shape=(2**61, 2**61, 0), offsets=(0, 0))}, b""),
    "shape and bytes differ": ({"a": tensor(shape=(2,))}, b"1234"),
    "negative offset": ({"a": tensor(offsets=(-4, 0))}, b"1234"),
    "offsets reversed": ({"a": tensor(offsets=(4, 0))}, b"1234"),
    "one offset": ({"a": tensor(offsets=(4,))}, b"1234"),
    "beyond the end": ({"a": tensor(offsets=(4, 8))}, b"1234"),
    "data cut off": ({"a": tensor()}, b"123"),
    "data left over": ({"a": tensor()}, b"12345"),
    "a gap": ({"a": tensor(), "b": tensor(offsets=(8, 12))}, b"1" * 12),
    "an overlap": ({"a": tensor(shape=(2,), offsets=(0, 8)), "b": tensor(shape=(2,), offsets=(4, 12))}, b"1" * 12),
    "twice the same bytes": ({"a": tensor(), "b": tensor()}, b"1234"),
    "an unknown key": ({"a": tensor(more=1)}, b"1234"),
    "a key missing": ({"a": {"dtype": "F32", "shape": [1]}}, b"1234"),
    "a tensor that is a list": ({"a": []}, b""),
    "comments that are no texts": ({"__metadata__": {"a": 1}}, b""),
    "comments that are a list": ({"__metadata__": []}, b""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(tmp_path, case):
    path = file_of(tmp_path, *HOSTILE[case])
    for read in (read_header, read_bits, read_file):
        with pytest.raises(BadInput, match="hostile"):
            read(path)


def test_a_file_that_is_too_short_is_refused(tmp_path):
    for content in (b"", b"1234567"):
        (tmp_path / "short").write_bytes(content)
        with pytest.raises(BadInput, match="short"):
            read_header(tmp_path / "short")


def test_the_header_they_point_at_is_right(tmp_path):
    path = file_of(tmp_path, {"a": tensor(), "b": tensor("U8", (2, 0), (4, 4)), "__metadata__": {"k": "v"}}, b"1234")
    assert read_header(path).names == ("a", "b")


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("h") / "a"
    path.write_bytes(content)
    try:
        read_file(path)
    except BadInput as wrong:
        refusal = wrong.message
    else:
        return
    assert str(path) in refusal


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["F32", "U8", "BOOL"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), JSON, max_size=3), st.integers(0, 64))
def test_no_json_crashes_the_parser(table, size):
    try:
        header = parse_header(json.dumps(table).encode(), size, "x")
    except BadInput:
        return
    assert header.data_size == size


@given(MODELS, st.data())
def test_a_flipped_byte_never_crashes(tmp_path_factory, model, data):
    path = tmp_path_factory.mktemp("h") / "a"
    write_file(path, model, sync=False)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        read_file(path)
    except BadInput as wrong:
        refusal = wrong.message
    else:
        return
    assert str(path) in refusal
