from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fedhelm.errors import BadInput
from fedhelm.tensors import (
    Arrays,
    Bits,
    arrays_from,
    encode,
    from_torch,
    read_bits,
    read_file,
    read_header,
    to_torch,
    write_file,
)

NUMPY = {
    "f64": np.array([[1.5, -0.0], [np.inf, np.nan]]),
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f16": np.array([1, 65504], np.float16),
    "i64": np.array([-(2**63), 2**63 - 1]),
    "i32": np.array([[[7]]], np.int32),
    "i16": np.array([-3], np.int16),
    "i8": np.array([-128, 127], np.int8),
    "u8": np.array([0, 255], np.uint8),
    "u16": np.array([65535], np.uint16),
    "u32": np.array([2**32 - 1], np.uint32),
    "u64": np.array([2**64 - 1], np.uint64),
    "bool": np.array([True, False, True]),
    "scalar": np.array(3.25),
    "empty": np.zeros((0, 5), np.float32),
    "übung/λ": np.ones(1),
}


def same(left, right):
    assert list(left) == sorted(right)
    for name, array in left.items():
        assert array.dtype == right[name].dtype, name
        assert array.shape == right[name].shape, name
        assert array.tobytes() == right[name].tobytes(), name


def test_every_numpy_type_comes_back_bit_by_bit(tmp_path):
    size = write_file(tmp_path / "m.safetensors", NUMPY)
    assert size == (tmp_path / "m.safetensors").stat().st_size
    same(read_file(tmp_path / "m.safetensors"), NUMPY)
    assert [one.name for one in tmp_path.iterdir()] == ["m.safetensors"]


def test_the_same_arrays_give_the_same_bytes_in_any_order(tmp_path):
    write_file(tmp_path / "a", NUMPY)
    write_file(tmp_path / "b", dict(reversed(NUMPY.items())), sync=False)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_header(tmp_path / "a") == read_header(tmp_path / "b")


def test_every_tensor_is_aligned_for_readers_that_map_the_file(tmp_path):
    write_file(tmp_path / "a", {"a": np.ones(3, bool), "b": np.ones(3), "c": np.ones(3, np.float16)})
    for entry in read_header(tmp_path / "a"):
        assert entry.begin % Bits(entry.dtype, read_bits(tmp_path / "a")[entry.name].data).data.itemsize == 0
    assert int.from_bytes((tmp_path / "a").read_bytes()[:8], "little") % 8 == 0


def test_nothing_contiguous_is_copied():
    array = np.zeros(1000)
    views = list(encode({"a": array}))
    array[0] = 7.0
    assert np.frombuffer(views[1])[0] == 7.0


def test_views_byte_orders_and_single_numbers_are_written_as_their_values(tmp_path):
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    odd = {"t": wide.T, "step": wide[::2, ::-1], "big": np.arange(3, dtype=">f8"), "n": 3, "x": 0.5, "np": np.int8(4)}
    write_file(tmp_path / "a", odd)
    found = read_file(tmp_path / "a")
    for name, value in odd.items():
        assert np.array_equal(found[name], value), name
    assert found["big"].dtype == "<f8"
    assert found["n"].shape == ()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"w": np.array(["text"])}, "'w'"),
        ({"w": np.array([1j])}, "complex128"),
        ({"w": np.array([object()])}, "object"),
        ({"w": [1.0, 2.0]}, "'w' is a list"),
        ({3: np.ones(1)}, "3"),
        ({"\ud800": np.ones(1)}, "UTF-8"),
        ({"__metadata__": np.ones(1)}, "__metadata__"),
        ([np.ones(1)], "list"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name_and_nothing_is_written(tmp_path, value, words):
    with pytest.raises(BadInput, match=words):
        write_file(tmp_path / "a", value)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_disk_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_file(tmp_path / "taken", NUMPY)
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]


def test_an_empty_model_is_a_file(tmp_path):
    write_file(tmp_path / "a", {})
    assert read_file(tmp_path / "a") == {}
    assert Arrays(tmp_path / "a").names == ()


def test_arrays_read_lazily_and_share_nothing(tmp_path):
    arrays = Arrays(tmp_path / "later")
    write_file(tmp_path / "later", NUMPY)
    assert arrays.names == tuple(sorted(NUMPY))
    first = arrays.numpy()
    first["f32"][:] = 9
    same(arrays.numpy(), NUMPY)
    assert "later" in repr(arrays)


def test_torch_stays_unloaded_without_torch_tensors(tmp_path):
    code = (
        "import sys, numpy, pathlib\n"
        "from fedhelm.tensors import write_file, Arrays\n"
        f"path = pathlib.Path({str(tmp_path / 'a')!r})\n"
        "write_file(path, {'a': numpy.ones(3)})\n"
        "Arrays(path).numpy()\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_torch_tensors_of_every_type_come_back(tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = {
        str(dtype): torch.tensor([0, 1, 2]).to(dtype)
        for dtype in (
            torch.float64,
            torch.float32,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.uint16,
            torch.uint32,
            torch.uint64,
            torch.bool,
        )
    }
    state |= {
        "transposed": base.T,
        "strided": base[:, ::2],
        "shared": base,
        "same": base.view(-1),
        "bf16 transposed": base.to(torch.bfloat16).T,
        "scalar": torch.tensor(2.5),
        "bf16 scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3, dtype=torch.bfloat16),
        "learnt": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    write_file(tmp_path / "a", state)
    found = to_torch(tmp_path / "a")
    assert sorted(found) == sorted(state)
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor.detach()), name
    found["shared"].zero_()
    assert found["same"].sum() == base.sum()


def test_bf16_is_float32_in_numpy(tmp_path):
    torch = pytest.importorskip("torch")
    values = torch.tensor([1.0, -2.5, 3e38, float("inf"), 1e-40]).to(torch.bfloat16)
    write_file(tmp_path / "a", {"w": values})
    found = read_file(tmp_path / "a")["w"]
    assert found.dtype == np.float32
    assert np.array_equal(found, values.float().numpy())


def test_torch_tensors_without_a_layout_are_refused_by_name():
    torch = pytest.importorskip("torch")
    for value in (
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2).to(torch.float8_e4m3fn),
    ):
        with pytest.raises(BadInput, match="'w'"):
            from_torch({"w": value})


def test_bits_pass_unchanged():
    bits = arrays_from({"a": np.ones(2)})
    assert arrays_from(bits) == bits
