"""What filters make of an update, against numbers computed here with numpy over whole arrays."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from fedhelm.errors import ProtocolError, Refused
from fedhelm.learning.rounding import nearest, widen
from fedhelm.privacy import updates
from fedhelm.privacy.noise import BYTES_EACH, gaussian
from fedhelm.privacy.policy import (
    Clip,
    Exclude,
    GaussianNoise,
    KeepLargest,
    Limits,
    Metrics,
    MinSamples,
    PrivacyPolicy,
    Weight,
)
from fedhelm.privacy.results import Result, check_round, filter_result
from fedhelm.tensors import read_bits, read_file, write_file
from fedhelm.tensors.bits import Bits
from fedhelm.tensors.dtypes import DTYPES

MODEL = {
    "a.weight": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
    "b.bias": np.array([0.5, -0.5, 8.0], np.float64),
    "steps": np.array(7, np.int64),
}
UPDATE = {
    "a.weight": np.array([[1.0, 5.0], [3.0, 0.0]], np.float32),
    "b.bias": np.array([0.5, -0.5, 20.0], np.float64),
    "steps": np.array(9, np.int64),
}
NORM = 13.0  # of 3, -4 and 12


class Stream:
    """Random bytes that are the same each time."""

    def __init__(self, seed=b"noise"):
        self._seed, self._count = seed, 0

    def __call__(self, size):
        self._count += 1
        return hashlib.shake_256(self._seed + self._count.to_bytes(4, "big")).digest(size)


def run(tmp_path, *filters, update=UPDATE, model=MODEL, weight=100.0, random=os.urandom):
    """Return the result that may leave, its arrays, and what the filters did."""
    source, folder = tmp_path / "script.safetensors", tmp_path / "outbox"
    folder.mkdir(exist_ok=True)
    write_file(source, update, sync=False)
    base = None
    if model is not None:
        base = tmp_path / "model.safetensors"
        write_file(base, model, sync=False)
    policy = PrivacyPolicy(filters)
    try:
        result, did = filter_result(
            policy, Result(source, weight, {}), model=base, folder=folder, key="1", random=random
        )
    except BaseException:
        assert list(folder.iterdir()) == [], "a file was left"
        raise
    if result.file != source:
        assert [result.file] == list(folder.iterdir())
    return result, read_file(result.file), did


def plain(tmp_path, *filters, **options):
    return run(tmp_path, *filters, **options)[1]


def floats(arrays):
    return {name: value for name, value in arrays.items() if value.dtype.kind == "f"}


def whole_change(update, model):
    return np.concatenate([(update[n].astype(float) - model[n].astype(float)).ravel() for n in sorted(floats(model))])


# -- one filter after the other, exact values -------------------------------------------------------------------------


def test_an_excluded_tensor_leaves_as_the_model_has_it_and_the_rest_as_it_is(tmp_path):
    _, got, did = run(tmp_path, Exclude(type="exclude", tensors=("b.*", "step?")))
    assert got["a.weight"].tolist() == UPDATE["a.weight"].tolist()
    assert got["b.bias"].tolist() == MODEL["b.bias"].tolist()
    assert got["steps"] == 7
    assert did == ("exclude: 2 tensors left out: b.bias, steps",)


def test_a_glob_that_matches_nothing_changes_nothing(tmp_path):
    got = plain(tmp_path, Exclude(type="exclude", tensors=("head.*",)))
    assert {name: value.tobytes() for name, value in got.items()} == {n: v.tobytes() for n, v in UPDATE.items()}


def test_clip_scales_the_whole_change_to_the_norm_and_holds_integers_back(tmp_path):
    got = plain(tmp_path, Clip(type="clip", norm=6.5))
    assert got["a.weight"].tolist() == [[1.0, 3.5], [3.0, 2.0]]
    assert got["b.bias"].tolist() == [0.5, -0.5, 14.0]
    assert got["steps"] == 7
    assert np.linalg.norm(whole_change(got, MODEL)) == 6.5


def test_a_change_below_the_norm_keeps_its_bits(tmp_path):
    odd = {"w": np.array([1e-10, -0.0, 1e10], np.float32)}  # a sum with the model's numbers would lose them
    got = plain(tmp_path, Clip(type="clip", norm=1e12), update=odd, model={"w": np.array([1e10, 1, 1], np.float32)})
    assert got["w"].tobytes() == odd["w"].tobytes()


def test_noise_is_the_clipped_change_plus_the_draws_times_norm_times_multiplier(tmp_path):
    got = plain(tmp_path, GaussianNoise(type="gaussian_noise", norm=6.5, multiplier=2.0), random=Stream())
    draws = Stream()
    # the file has the wide tensor first
    for name in ("b.bias", "a.weight"):
        want = MODEL[name] + (UPDATE[name].astype(float) - MODEL[name]) / 2
        want = want + 13.0 * gaussian(want.size, draws).reshape(want.shape)
        assert np.allclose(got[name], want.astype(UPDATE[name].dtype), rtol=1e-15, atol=0)
    assert got["steps"] == 7


def test_noise_comes_without_a_change_too(tmp_path):
    got = plain(tmp_path, GaussianNoise(type="gaussian_noise", norm=1.0, multiplier=1.0), update=MODEL)
    assert not np.array_equal(got["b.bias"], MODEL["b.bias"])
    assert np.linalg.norm(whole_change(got, MODEL)) < 60


def test_what_was_excluded_before_is_in_no_norm_and_gets_no_noise(tmp_path):
    filters = Exclude(type="exclude", tensors=("b.bias",)), Clip(type="clip", norm=2.5)
    got = plain(tmp_path, *filters)
    assert got["a.weight"].tolist() == [[1.0, 3.5], [3.0, 2.0]]  # 3 and -4: a norm of 5
    assert got["b.bias"].tolist() == MODEL["b.bias"].tolist()
    noisy = plain(tmp_path, filters[0], GaussianNoise(type="gaussian_noise", norm=1.0, multiplier=1.0))
    assert noisy["b.bias"].tolist() == MODEL["b.bias"].tolist()
    assert not np.array_equal(noisy["a.weight"], MODEL["a.weight"])


def test_the_largest_changes_are_kept_and_the_others_are_the_models(tmp_path):
    got = plain(tmp_path, KeepLargest(type="keep_largest", share=2 / 7))
    assert got["a.weight"].tolist() == [[1.0, 2.0], [3.0, 0.0]]
    assert got["b.bias"].tolist() == [0.5, -0.5, 20.0]
    limited = plain(tmp_path, KeepLargest(type="keep_largest", share=2 / 7, limit=3.0))
    assert limited["a.weight"].tolist() == [[1.0, 2.0], [3.0, 1.0]]
    assert limited["b.bias"].tolist() == [0.5, -0.5, 11.0]
    assert limited["steps"] == 7


def test_a_share_of_less_than_one_element_keeps_nothing(tmp_path):
    got = plain(tmp_path, KeepLargest(type="keep_largest", share=0.1))
    assert {name: value.tolist() for name, value in got.items()} == {n: v.tolist() for n, v in MODEL.items()}


def test_of_equal_changes_no_more_than_the_share_are_kept(tmp_path):
    model, update = {"w": np.zeros(8, np.float32)}, {"w": np.array([1, -1, 1, 2, 1, 1, -1, 0], np.float32)}
    got = plain(tmp_path, KeepLargest(type="keep_largest", share=0.5), update=update, model=model)
    assert got["w"].tolist() == [1, -1, 1, 2, 0, 0, 0, 0]


def test_filters_follow_one_another_in_their_order(tmp_path):
    clip, largest = Clip(type="clip", norm=6.5), KeepLargest(type="keep_largest", share=1 / 7)
    assert plain(tmp_path, clip, largest)["b.bias"].tolist() == [0.5, -0.5, 14.0]
    assert plain(tmp_path, largest, clip)["b.bias"].tolist() == [0.5, -0.5, 14.5]


# -- weights, sizes, metrics ------------------------------------------------------------------------------------------


def test_nothing_leaves_of_too_few_samples_and_only_the_site_learns_how_few(tmp_path):
    with pytest.raises(Refused) as caught:
        run(tmp_path, MinSamples(type="min_samples", samples=50), weight=12.0)
    assert caught.value.message == (
        "the privacy filter min_samples of this site: the result is of too few samples to leave"
    )
    assert "12" in caught.value.hint
    assert run(tmp_path, MinSamples(type="min_samples", samples=50), weight=50.0)[0].weight == 50.0


def test_the_weight_that_leaves_hides_the_one_that_was_checked(tmp_path):
    filters = Weight(type="weight", value=1.0), MinSamples(type="min_samples", samples=50)
    result, got, _ = run(tmp_path, *filters, weight=60.0, model=None)
    assert result.weight == 1.0
    assert got["steps"] == 9  # no filter on tensors: the file is the script's own
    with pytest.raises(Refused, match="too few"):
        run(tmp_path, *filters, weight=40.0)


@pytest.mark.parametrize(
    ("limits", "word"),
    [({"tensors": 2}, "more tensors"), ({"bytes": 47}, "more bytes"), ({"tensors": 3, "bytes": 48}, None)],
)
def test_an_update_beyond_the_limits_does_not_leave(tmp_path, limits, word):
    one = Limits(type="limits", **limits)
    if word is None:
        assert run(tmp_path, one, model=None)[1]["steps"] == 9
        return
    with pytest.raises(Refused, match=word):
        run(tmp_path, one, model=None)


def test_metrics_that_are_not_named_stay_and_the_others_are_rounded(tmp_path):
    policy = PrivacyPolicy(metrics=(Metrics(only=("loss", "val_*"), digits=3), Metrics(digits=2)))
    metrics = {"loss": 0.123456, "val_acc": 98765.0, "patients": 77.0}
    result, _ = filter_result(policy, Result(None, 1.0, metrics), model=None, folder=tmp_path, key="1")
    assert result.metrics == {"loss": 0.12, "val_acc": 99000.0}


# -- what cannot be filtered does not leave ---------------------------------------------------------------------------

EVERY = (
    Exclude(type="exclude", tensors=("x",)),
    Clip(type="clip", norm=1.0),
    GaussianNoise(type="gaussian_noise", norm=1.0, multiplier=1.0),
    KeepLargest(type="keep_largest", share=0.5),
)


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.type)
def test_a_round_without_a_model_is_refused_before_and_after_training(tmp_path, one):
    with pytest.raises(Refused, match=rf"{one.type} of this site: .* no model: the job needs an initial_model"):
        run(tmp_path, one, model=None)
    with pytest.raises(Refused, match="initial_model"):
        check_round(PrivacyPolicy((one,)), has_model=False)
    check_round(PrivacyPolicy((one,)), has_model=True)
    check_round(PrivacyPolicy((MinSamples(type="min_samples", samples=1),)), has_model=False)


@pytest.mark.parametrize("one", EVERY[1:], ids=lambda one: one.type)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_does_not_leave(tmp_path, one, bad):
    update = UPDATE | {"a.weight": np.array([[1, bad], [3, 4]], np.float32)}
    with pytest.raises(Refused, match=rf"filter {one.type} of this site: tensor 'a.weight' holds .* not finite"):
        run(tmp_path, one, update=update)


def test_a_norm_beyond_float64_is_refused(tmp_path):
    with pytest.raises(Refused, match="the norm of the change is not finite"):
        run(tmp_path, Clip(type="clip", norm=1.0), update={"w": np.array([1e200])}, model={"w": np.zeros(1)})


def test_noise_that_a_type_cannot_hold_is_refused(tmp_path):
    noise = GaussianNoise(type="gaussian_noise", norm=1e6, multiplier=1.0)
    with pytest.raises(Refused, match="what would leave of tensor 'w' is beyond F16"):
        run(tmp_path, noise, update={"w": np.ones(8, np.float16)}, model={"w": np.ones(8, np.float16)})


@pytest.mark.parametrize(
    "update",
    [
        UPDATE | {"secret of patient 7": np.zeros(1)},
        {name: value for name, value in UPDATE.items() if name != "steps"},
        UPDATE | {"steps": np.array([9], np.int64)},
        UPDATE | {"b.bias": UPDATE["b.bias"].astype(np.float32)},
    ],
    ids=["one more", "one less", "another shape", "another type"],
)
def test_an_update_of_other_tensors_than_the_models_does_not_leave_nor_do_its_names(tmp_path, update):
    with pytest.raises(Refused) as caught:
        run(tmp_path, Clip(type="clip", norm=1.0), update=update)
    assert "does not have the names, types and shapes of the round's model" in caught.value.message
    assert "patient" not in caught.value.message
    assert "tensor" in caught.value.hint


def test_what_is_no_tensor_file_does_not_leave_nor_does_its_content(tmp_path):
    folder, source = tmp_path / "outbox", tmp_path / "script"
    folder.mkdir()
    source.write_bytes(b"patient 7 has the flu" * 3)
    with pytest.raises(Refused, match="no safetensors file") as caught:
        filter_result(
            PrivacyPolicy((Limits(type="limits", tensors=9),)),
            Result(source, 1, {}),
            model=None,
            folder=folder,
            key="1",
        )
    assert "patient" not in caught.value.message
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("how", ["link", "hard link", "folder", "pipe", "missing"])
def test_what_is_no_plain_file_of_the_script_is_not_read(tmp_path, how):
    folder, source, other = tmp_path / "outbox", tmp_path / "script", tmp_path / "other.safetensors"
    folder.mkdir()
    write_file(other, UPDATE)
    if how == "link":
        source.symlink_to(other)
    elif how == "hard link":
        source.hardlink_to(other)
    elif how == "folder":
        source.mkdir()
    elif how == "pipe":
        os.mkfifo(source)
    with pytest.raises(ProtocolError):
        filter_result(
            PrivacyPolicy((Limits(type="limits", tensors=9),)),
            Result(source, 1, {}),
            model=None,
            folder=folder,
            key="1",
        )
    assert read_file(other)["steps"] == 9


def test_a_script_that_writes_on_after_it_submitted_changes_nothing_that_leaves(tmp_path):
    """Noise is drawn after the norm was measured: then the script writes large numbers into the file it still holds."""
    noise = GaussianNoise(type="gaussian_noise", norm=6.5, multiplier=1.0)
    (tmp_path / "honest").mkdir()
    want = plain(tmp_path / "honest", noise, random=Stream())
    source, folder, model = tmp_path / "script", tmp_path / "outbox", tmp_path / "model"
    folder.mkdir()
    write_file(source, UPDATE)
    write_file(model, MODEL)
    write_file(tmp_path / "large", {name: value * 1000 for name, value in UPDATE.items()})
    draws = Stream()
    with source.open("r+b") as hand:

        def while_it_writes(size):
            hand.seek(0)
            hand.write((tmp_path / "large").read_bytes())
            hand.flush()
            return draws(size)

        result, _ = filter_result(
            PrivacyPolicy((noise,)), Result(source, 1, {}), model=model, folder=folder, key="1", random=while_it_writes
        )
    got = read_file(result.file)
    assert {name: value.tolist() for name, value in got.items()} == {n: v.tolist() for n, v in want.items()}


# -- layout -----------------------------------------------------------------------------------------------------------


def test_the_file_that_leaves_has_one_layout_and_no_comments(tmp_path):
    from safetensors.numpy import save_file

    folder, source = tmp_path / "outbox", tmp_path / "script"
    folder.mkdir()
    save_file({"b": np.array([True, False]), "a": np.ones(2, np.float32)}, source, metadata={"patient": "7"})
    raw = bytearray(source.read_bytes())
    place = raw.rindex(b"\x01\x00")
    raw[place] = 77  # any byte but 0 is true
    source.write_bytes(raw)
    result, _ = filter_result(
        PrivacyPolicy((Limits(type="limits", tensors=9),)), Result(source, 1, {}), model=None, folder=folder, key="1"
    )
    write_file(tmp_path / "same", {"a": np.ones(2, np.float32), "b": np.array([True, False])})
    assert result.file.read_bytes() == (tmp_path / "same").read_bytes()


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 2, 2)], ids=str)
def test_every_type_and_shape(tmp_path, dtype, shape):
    """Floats are changed, everything else leaves as the model has it, and types and shapes stay."""
    storage = np.dtype("u1") if dtype == "BOOL" else DTYPES[dtype]
    # 1.0 and 2.0 where BF16 is bits
    old, new = (0x3F80, 0x4000) if dtype == "BF16" else (0, 1) if dtype == "BOOL" else (1, 2)
    as_bits = (lambda v: np.full(shape, v, storage) != 0) if dtype == "BOOL" else (lambda v: np.full(shape, v, storage))
    model, update = {"t": Bits(dtype, as_bits(old))}, {"t": Bits(dtype, as_bits(new))}
    elements = int(np.prod(shape))
    norm = np.sqrt(elements) / 2 if elements else 1.0
    result, got, _ = run(tmp_path, Clip(type="clip", norm=norm), update=update, model=model)
    (bits,) = read_bits(result.file).values()
    assert (bits.dtype, bits.shape) == (dtype, shape)
    if dtype in updates.FLOATS:
        assert (got["t"] == 1.5).all()
    else:
        assert np.array_equal(bits.data, model["t"].data)
    for one in EVERY:
        result, _, _ = run(tmp_path, one, update=update, model=model)
        (bits,) = read_bits(result.file).values()
        assert (bits.dtype, bits.shape) == (dtype, shape)


# -- properties -------------------------------------------------------------------------------------------------------

SMALL = hypothesis.settings(max_examples=40, deadline=None)
VALUES = some.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6))


@SMALL
@hypothesis.given(VALUES, st.floats(1e-3, 1e3), st.integers(0, 2**32))
def test_a_clipped_change_has_the_direction_and_at_most_the_norm(tmp_path_factory, change, norm, seed):
    model = {"w": np.random.default_rng(seed).normal(size=len(change))}
    update = {"w": model["w"] + change}
    got = plain(tmp_path_factory.mktemp("p"), Clip(type="clip", norm=norm), update=update, model=model)
    left, asked = got["w"] - model["w"], update["w"] - model["w"]
    size = np.linalg.norm(asked)
    want = asked * min(1.0, norm / size) if size else asked
    assert np.allclose(left, want, rtol=1e-9, atol=1e-12)
    assert np.linalg.norm(left) <= norm * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("dtype", sorted(updates.FLOATS))
@pytest.mark.parametrize("norm", [1e-3, 0.1, 3.0])
def test_the_bound_holds_for_what_leaves_in_every_type(tmp_path, dtype, norm):
    """Rounded to nearest, the coarse types would go beyond it: the model is large, and the change as large as a step."""
    rng = np.random.default_rng(5)
    model = rng.normal(size=1000) * 10.0 ** rng.integers(-3, 3, 1000)
    update = model + rng.normal(size=1000) * 10.0 ** rng.integers(-5, 1, 1000)
    files = ({"w": Bits(dtype, nearest(values, dtype))} for values in (model, update))
    base, own = files
    _, got, _ = run(tmp_path, Clip(type="clip", norm=norm), update=own, model=base)
    have = widen(base["w"].data, dtype)
    assert 0 < np.linalg.norm(got["w"].astype(float) - have) <= norm * (1 + 1e-12)
    limit = KeepLargest(type="keep_largest", share=1.0, limit=norm)
    _, got, _ = run(tmp_path, limit, update=own, model=base)
    assert 0 < np.abs(got["w"].astype(float) - have).max() <= norm
    assert (np.sign(got["w"].astype(float) - have) * np.sign(widen(own["w"].data, dtype) - have) >= 0).all()


@SMALL
@hypothesis.given(VALUES, st.floats(0.01, 1.0))
def test_the_kept_are_the_largest_and_no_more_than_the_share(tmp_path_factory, change, share):
    model = {"w": np.zeros(len(change))}
    got = plain(
        tmp_path_factory.mktemp("p"), KeepLargest(type="keep_largest", share=share), update={"w": change}, model=model
    )
    number = int(np.floor(share * len(change)))
    order = np.argsort(-np.abs(change), kind="stable")[:number]
    want = np.zeros(len(change))
    want[order] = change[order]
    assert got["w"].tolist() == want.tolist()


def test_tensors_of_many_blocks_are_one_update(tmp_path):
    rng = np.random.default_rng(1)
    shape = (3, updates.BLOCK_ELEMENTS // 2 + 17)
    model = {name: rng.normal(size=shape).astype(np.float32) for name in "ab"}
    update = {name: value + rng.normal(size=shape).astype(np.float32) for name, value in model.items()}
    change = whole_change(update, model)
    clipped = plain(tmp_path, Clip(type="clip", norm=10.0), update=update, model=model)
    want = np.concatenate([model[n].astype(float).ravel() for n in "ab"]) + change * (10.0 / np.linalg.norm(change))
    got = np.concatenate([clipped[n].ravel() for n in "ab"])
    assert np.allclose(got, want.astype(np.float32), rtol=1e-6, atol=1e-7)
    largest = plain(tmp_path, KeepLargest(type="keep_largest", share=0.25), update=update, model=model)
    kept = whole_change(largest, model) != 0
    assert kept.sum() == len(change) // 4
    assert np.abs(change)[kept].min() >= np.abs(change)[~kept].max()


# -- noise ------------------------------------------------------------------------------------------------------------


def test_the_draws_are_normal_and_independent():
    """Moments and the distribution function, with the bytes of one fixed stream: a wrong formula misses by far."""
    draws = gaussian(200_000, Stream())
    assert abs(draws.mean()) < 0.01
    assert abs(draws.var() - 1) < 0.01
    assert abs((draws**3).mean()) < 0.03
    assert abs((draws**4).mean() - 3) < 0.06
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.01
    sorted_ = np.sort(draws)
    places = np.linspace(-3, 3, 61)
    have = np.searchsorted(sorted_, places) / len(sorted_)
    want = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in places])
    assert np.abs(have - want).max() < 0.004  # Kolmogorov and Smirnov: 1.63 / sqrt(n) at one in a hundred


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_the_smallest_and_the_largest_random_bytes_give_finite_draws(byte):
    draws = gaussian(3, lambda size: byte * size)
    assert np.isfinite(draws).all()
    assert np.abs(draws).max() < 12.2


def test_the_generator_is_the_systems_and_each_draw_takes_fresh_bytes():
    assert not np.array_equal(gaussian(8), gaussian(8))
    asked = []
    gaussian(5, lambda size: asked.append(size) or bytes(size))
    assert asked == [5 * BYTES_EACH]


# -- a job that ends while its result is filtered ---------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [0, 1, 5, 7])
def test_a_call_that_is_not_wanted_any_more_ends_at_the_next_block_and_leaves_nothing(tmp_path, blocks):
    """Three tensors of a block each: one pass copies, one measures two of them, one writes."""

    class Ended(Exception):
        pass

    left = iter(range(blocks))

    def go_on():
        if next(left, None) is None:
            raise Ended

    folder, source, model = tmp_path / "outbox", tmp_path / "script", tmp_path / "model"
    folder.mkdir()
    write_file(source, UPDATE)
    write_file(model, MODEL)
    policy = PrivacyPolicy((Clip(type="clip", norm=1.0),))
    with pytest.raises(Ended):
        filter_result(policy, Result(source, 1, {}), model=model, folder=folder, key="1", go_on=go_on)
    assert list(folder.iterdir()) == []


# -- memory -----------------------------------------------------------------------------------------------------------

PEAK = """
import sys, pathlib
from fedhelm.privacy.policy import PrivacyPolicy, Exclude, GaussianNoise, KeepLargest
from fedhelm.privacy.results import Result, filter_result
policy = PrivacyPolicy((
    Exclude(type="exclude", tensors=("head*",)),
    GaussianNoise(type="gaussian_noise", norm=1.0, multiplier=1.0),
    KeepLargest(type="keep_largest", share=0.5),
))
for folder in map(pathlib.Path, sys.argv[1:]):
    filter_result(policy, Result(folder / "update", 1, {}), model=folder / "model", folder=folder, key="1")
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    """One process, first an update of one block, then one of 12 MiB: its peak grows by a small part of that."""
    folders = []
    for elements in (updates.BLOCK_ELEMENTS, 3 * 1024 * 1024):
        folder = tmp_path / str(elements)
        folder.mkdir()
        for name in ("model", "update"):
            write_file(folder / name, {"w": np.ones(elements, np.float32)}, sync=False)
        folders.append(str(folder))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *folders], capture_output=True, text=True, check=True, timeout=300
    )
    small, large = map(int, done.stdout.split())
    assert large - small < 4 * 1024, f"peaks of {small} and {large} KiB"
