from __future__ import annotations

import hashlib
import itertools
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedhelm.errors import BadInput
from fedhelm.learning.aggregators import weighted_average
from fedhelm.learning.fitness import misfits
from fedhelm.learning.refusals import MAX_WEIGHT, Unfit
from fedhelm.learning.rounding import nearest, widen
from fedhelm.learning.sources import FileSource
from fedhelm.tensors import Bits, encode, header_of, read_bits, read_file, write_file
from fedhelm.tensors.bits import bits_from


class Memory:
    """A source in memory."""

    def __init__(self, arrays):
        self.content = arrays if isinstance(arrays, bytes) else b"".join(encode(arrays))

    @property
    def size(self):
        return len(self.content)

    def read_into(self, offset, view):
        assert offset + len(view) <= len(self.content)
        view[:] = self.content[offset : offset + len(view)]


def average(*parts, block_bytes=1 << 20):
    out = bytearray()
    weighted_average([(site, weight, Memory(arrays)) for site, weight, arrays in parts], out.extend, block_bytes)
    return bytes(out)


@pytest.fixture
def averaged(tmp_path):
    def run(*parts, **options):
        (tmp_path / "out").write_bytes(average(*parts, **options))
        return read_file(tmp_path / "out")

    return run


def test_the_average_is_weighted(averaged):
    found = averaged(("site-1", 1.0, {"w": np.array([0.0, 4.0])}), ("site-2", 3.0, {"w": np.array([4.0, 8.0])}))
    assert found["w"].tolist() == [3.0, 7.0]


def test_integers_are_rounded_and_booleans_vote(averaged):
    found = averaged(
        ("a", 1.0, {"n": np.array([1, 1, -1], np.int8), "b": np.array([True, True]), "step": np.array(10)}),
        ("b", 1.0, {"n": np.array([2, 4, -2], np.int8), "b": np.array([False, True]), "step": np.array(13)}),
    )
    assert found["n"].tolist() == [2, 2, -2]
    assert found["n"].dtype == np.int8
    assert found["b"].tolist() == [False, True]
    assert found["step"] == 12
    assert found["step"].shape == ()


def test_a_heavier_vote_wins(averaged):
    assert averaged(("a", 1.0, {"b": np.array([True])}), ("b", 0.9, {"b": np.array([False])}))["b"].tolist() == [True]


def test_what_all_sites_agree_on_stays_to_the_last_bit(averaged):
    model = {
        "i": np.array([2**63 - 1, -(2**63), 2**53 + 1]),
        "u": np.array([2**64 - 1, 2**60 + 1], np.uint64),
        "f": np.array([0.1, 1e308, 5e-324]),
        "s": np.array([0.1, 3e38, 1e-45], np.float32),
        "h": np.array([0.1, 65504], np.float16),
    }
    found = averaged(("a", 0.1, model), ("b", 0.3, model), ("c", 7.7, model))
    for name, array in model.items():
        assert found[name].tobytes() == array.tobytes(), name


def test_large_integers_stay_within_their_type(averaged):
    high = {"i": np.array([2**63 - 1]), "u": np.array([2**64 - 1], np.uint64)}
    found = averaged(("a", 1e9, high), ("b", 1e-9, {"i": np.array([2**63 - 2]), "u": np.array([2**64 - 2], np.uint64)}))
    assert found["i"][0] > 2**62
    assert found["u"][0] > 2**63


def test_half_precision_is_rounded_once():
    wide = np.array([1 + 2**-11, 1 + 2**-11 + 2**-40, 1 + 3 * 2**-11])
    assert nearest(wide, "F16").tolist() == [1.0, 1 + 2**-10, 1 + 2**-9]


@given(st.floats(-3e38, 3e38) | st.floats(-1e-37, 1e-37))
def test_bf16_is_the_nearest_with_ties_to_even(value):
    bits = int(nearest(np.array([value]), "BF16")[0])

    def exact(pattern):
        found = float(widen(np.array([pattern], np.uint16), "BF16")[0])
        return None if math.isinf(found) or math.isnan(found) else Fraction(found)

    here = exact(bits)
    distance = abs(here - Fraction(value))
    for neighbour in (bits - 1, bits + 1):
        if neighbour & 0x7FFF in (0x7FFF, 0x7F80) or exact(neighbour & 0xFFFF) is None:
            continue
        other = abs(exact(neighbour & 0xFFFF) - Fraction(value))
        assert distance < other or (distance == other and bits % 2 == 0)


def test_bf16_does_not_round_twice():
    # just above the tie between two bf16 numbers: float32 would make a tie of it, and even would win wrongly
    assert int(nearest(np.array([1 + 2**-8 + 2**-40]), "BF16")[0]) == 0x3F81
    assert int(nearest(np.array([1 + 2**-8]), "BF16")[0]) == 0x3F80
    assert int(nearest(np.array([-(1 + 2**-8 + 2**-40)]), "BF16")[0]) == 0xBF81


def test_bf16_models_average(tmp_path):
    one = {"w": Bits("BF16", np.array([0x3F80, 0x4000], np.uint16))}  # 1, 2
    two = {"w": Bits("BF16", np.array([0x4040, 0x4000], np.uint16))}  # 3, 2
    (tmp_path / "out").write_bytes(average(("a", 1.0, one), ("b", 1.0, two)))
    found = read_bits(tmp_path / "out")["w"]
    assert found.dtype == "BF16"
    assert found.numpy().tolist() == [2.0, 2.0]


FLOATS = hnp.arrays(np.float32, 23, elements=st.floats(-(2.0**99), 2.0**99, width=32))
DOUBLES = hnp.arrays(np.float64, 7, elements=st.floats(-1e300, 1e300))


@given(
    st.lists(st.tuples(FLOATS, DOUBLES, st.floats(0.001, 1e6)), min_size=1, max_size=4), st.integers(8, 300), st.data()
)
def test_the_bits_do_not_depend_on_order_or_blocks(parts, block_bytes, data):
    sites = [
        (f"site-{i}", weight, {"a": singles, "b": doubles, "c": np.array(i), "d": np.linspace(-i, 9, 31).astype("f2")})
        for i, (singles, doubles, weight) in enumerate(parts)
    ]
    shuffled = data.draw(st.permutations(sites))
    assert average(*sites) == average(*shuffled, block_bytes=block_bytes)


@given(st.lists(st.tuples(FLOATS, st.floats(0.001, 1e6)), min_size=1, max_size=4))
def test_floats_follow_the_definition(parts):
    out = average(*((f"s{i}", weight, {"w": array}) for i, (array, weight) in enumerate(parts)))
    total = sum(weight for _, weight in parts)
    expected = sum(weight * array.astype(np.float64) for array, weight in parts) / total
    assert out[-23 * 4 :] == expected.astype(np.float32).tobytes()


def test_the_result_is_a_fixed_value_on_every_machine():
    def model(k):
        return {"w": (np.arange(5000, dtype=np.float32) * np.float32(0.37) + np.float32(k)) ** 2 / np.float32(3)}

    out = average(*((f"site-{k}", 1.0 + 0.1 * k, model(k)) for k in range(4)), block_bytes=1024)
    assert hashlib.sha256(out).hexdigest() == "131bb82978962f84df397aaab980042794a7ca031758d3af51e08a2dde880c6e"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_value_that_is_not_finite_is_refused_with_site_and_tensor(bad, dtype):
    fine = {"ok": np.ones(9, dtype), "w": np.ones(9, dtype)}
    spoilt = {"ok": np.ones(9, dtype), "w": np.array([1] * 7 + [bad, 1], dtype)}
    with pytest.raises(BadInput, match=r"site-2 holds -?(nan|inf) in tensor 'w' \(element 7\)"):
        average(("site-1", 1.0, fine), ("site-2", 1.0, spoilt), ("site-3", 1.0, fine), block_bytes=16)


def test_everybody_who_spoils_the_average_is_found_at_once():
    fine = {"w": np.ones(3)}
    spoilt = [{"w": np.array([1.0, math.inf, 1.0])}, {"w": np.array([1.0, 1.0, math.nan])}]
    with pytest.raises(Unfit) as caught:
        average(("a", 1.0, fine), ("b", 1.0, spoilt[0]), ("c", 1.0, spoilt[1]), block_bytes=8)
    assert [*caught.value.reasons] == ["b", "c"]


def test_a_sum_beyond_float64_is_refused():
    with pytest.raises(Unfit, match="the weighted sum is beyond float64") as caught:
        average(("a", 1.0, {"w": np.array([1e308])}), ("b", 1.0, {"w": np.array([1.1e308])}))
    assert [*caught.value.reasons] == ["b"], "who gives the larger one"
    with pytest.raises(Unfit) as caught:
        average(("a", 9.0, {"w": np.array([1e308])}), ("b", 1.0, {"w": np.array([1.0])}))
    assert caught.value.reasons == {"a": "holds 1e+308 in tensor 'w' (element 0), and has weight 9"}


@pytest.mark.parametrize("weights", [(math.nan, 1), (math.inf, 1), (-1, 2), (0, 0), (1e308, 1e308)])
def test_weights_that_are_none_are_refused(weights):
    model = {"w": np.ones(1)}
    with pytest.raises(BadInput, match="weight") as caught:
        average(*((f"site-{i}", float(weight), model) for i, weight in enumerate(weights)))
    if any(weights):
        bad = [f"site-{i}" for i, weight in enumerate(weights) if not 0 <= weight <= MAX_WEIGHT]
        assert [*caught.value.reasons] == bad


def test_a_site_without_weight_changes_nothing():
    one, two = {"w": np.array([1.0])}, {"w": np.array([9.0])}
    assert average(("a", 1.0, one), ("b", 0.0, two)) == average(("a", 1.0, one))


def test_no_sites_and_the_same_site_twice_are_refused():
    with pytest.raises(BadInput, match="no site"):
        average()
    with pytest.raises(BadInput, match="twice"):
        average(("a", 1.0, {"w": np.ones(1)}), ("a", 1.0, {"w": np.ones(1)}))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"w": np.ones(3)}, r"tensor 'b' is missing"),
        ({"w": np.ones(3), "b": np.ones(1), "z": np.ones(1)}, "tensor 'z' is not expected"),
        ({"w": np.ones(3, np.float32), "b": np.ones(1)}, r"'w' is F32 \[3\], expected is F64 \[3\]"),
        ({"w": np.ones((3, 1)), "b": np.ones(1)}, r"'w' is F64 \[3, 1\]"),
    ],
)
def test_models_that_do_not_fit_are_refused_with_site_and_tensor(other, words):
    fine = {"w": np.ones(3), "b": np.ones(1)}
    with pytest.raises(Unfit, match="the contribution of a-site does not fit most contributions: .*" + words):
        average(("a-site", 1.0, other), ("site-1", 1.0, fine), ("site-2", 1.0, fine))
    with pytest.raises(BadInput, match="the contributions of a-site and site-1 do not fit one another: ") as caught:
        average(("a-site", 1.0, other), ("site-1", 1.0, fine))
    assert not isinstance(caught.value, Unfit), "nobody can tell whose fault it is"


def header(**tensors):
    return header_of(bits_from(tensors))


MODEL, OTHER = header(w=np.ones(3, np.float32)), header(w=np.ones(3))


@pytest.mark.parametrize(
    ("contributions", "members", "refused"),
    [
        ({"a": OTHER, "b": MODEL}, 2, {"a"}),
        ({"a": MODEL, "b": OTHER}, 2, {"b"}),
        ({"a": OTHER}, 2, {"a"}),
        ({"a": OTHER, "b": OTHER}, 4, {"a", "b"}),
        ({"a": OTHER, "b": OTHER, "c": MODEL}, 3, {"c"}),
        ({"a": OTHER}, 1, set()),
        ({"a": MODEL, "b": MODEL, "c": header(x=np.ones(3))}, 3, {"c"}),
        ({}, 3, set()),
    ],
)
def test_the_model_is_what_contributions_have_to_fit_unless_most_members_agree_otherwise(
    contributions, members, refused
):
    assert set(misfits(contributions, MODEL, members)) == refused


def test_where_a_tensor_lies_in_the_file_is_nothing():
    """Another program's layout: the same tensors give the same average."""
    arrays = {"a": np.arange(3, dtype=np.float64), "b": np.arange(2, dtype=np.float32)}
    table = (
        '{"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F64","shape":[3],"data_offsets":[8,32]}}'
    )
    text = table.encode() + b" " * (-len(table) % 8)
    other = len(text).to_bytes(8, "little") + text + arrays["b"].tobytes() + arrays["a"].tobytes()
    assert average(("x", 1.0, other), ("y", 1.0, arrays)) == average(("x", 1.0, arrays), ("y", 1.0, arrays))


@pytest.mark.parametrize("content", [b"", b"123", b"\xff" * 8, b"{}", (2).to_bytes(8, "little") + b"[]"])
def test_a_damaged_upload_is_refused_with_its_site(content):
    with pytest.raises(BadInput, match="site-2"):
        average(("site-1", 1.0, {"w": np.ones(1)}), ("site-2", 1.0, content))


def test_models_without_elements_average(averaged):
    assert averaged(("a", 1.0, {}), ("b", 1.0, {})) == {}
    assert averaged(("a", 1.0, {"w": np.ones((0, 3))}), ("b", 1.0, {"w": np.ones((0, 3))}))["w"].shape == (0, 3)


def test_memory_is_a_few_blocks_however_many_sites(tmp_path):
    size, block = 1 << 20, 64 * 1024
    paths = [tmp_path / f"{i}" for i in range(8)]
    for i, path in enumerate(paths):
        write_file(path, {"w": np.full(size, i, np.float32)}, sync=False)
    sources = [FileSource(path) for path in paths]
    written = itertools.count()
    tracemalloc.start()
    try:
        weighted_average(
            [(p.name, 1.0, s) for p, s in zip(paths, sources, strict=True)], lambda v: next(written), block
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        for source in sources:
            source.close()
    assert next(written) == 1 + size // (block // 8)
    assert peak < 16 * block


def test_a_file_cut_short_is_an_error(tmp_path):
    write_file(tmp_path / "a", {"w": np.ones(100)})
    with FileSource(tmp_path / "a") as source:
        (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:200])
        with pytest.raises(BadInput, match="cut off"):
            weighted_average([("a", 1.0, source)], lambda view: None)
    source.close()
