"""Every decoder of outside data eats thousands of hostile inputs: no crash, no hang, no memory, no file elsewhere.

The eating is done by a child (:mod:`tests.hostile.eat`), so that a crash, a hang or a bomb is the child's alone.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.eat import ROOT
from tests.hostile.mended import MENDED, Mended
from tests.hostile.table import decoders

QUICK = 3_000
LONG = 100_000
LONG_EACH = 5_000
MAX_GROWTH = 200 * 1024**2
REQUIRED = ("protobuf", "safetensors", "bundle", "yaml", "record", "blob", "name", "kit", "overseer", "certificate")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return decoders(tmp_path_factory.mktemp("table"))


def feed(scratch: Path, each: int, timeout: float, *, seed: int = 1) -> dict[str, Any]:
    """Let a child feed every decoder; return what it says."""
    command = [sys.executable, "-m", "tests.hostile.eat", str(scratch), "--each", str(each), "--seed", str(seed)]
    env = {**os.environ, "HOME": str(scratch / "place"), "TMPDIR": str(scratch / "place"), "PYTHONPATH": str(ROOT)}
    env["PYTHONWARNINGS"] = "ignore"  # of cryptography, about odd certificates
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail(f"a decoder hangs: {last_input(scratch)}")
    assert done.returncode == 0, f"{last_input(scratch)}\n{done.stderr.decode(errors='replace')[-3000:]}"
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def last_input(scratch: Path) -> str:
    path = scratch / "last-input"
    if not path.exists():
        return "nothing was eaten yet"
    name, _, rest = path.read_bytes().partition(b"\n")
    data = rest[8 : 8 + int.from_bytes(rest[:8], "big")]
    return f"{name.decode()} ate base64 {base64.b64encode(data[:20_000]).decode()}"


def check(told: dict[str, Any], request: pytest.FixtureRequest) -> None:
    eaten = {one["name"]: one["eaten"] for one in told["decoders"]}
    lines = [f"{count:7,} {name}" for name, count in eaten.items()]
    lines += [f"{sum(eaten.values()):7,} in total, by {len(eaten)} decoders; memory grew by {told['grown'] >> 20} MiB"]
    request.node.user_properties.append(("eaten", "\n".join(lines)))
    escaped = [
        f"{one['name']}: {kind}: {found['message']}\n    base64 {found['input']}"
        for one in told["decoders"]
        for kind, found in one["escaped"].items()
    ]
    assert not escaped, "\n".join(escaped)
    assert told["outside"] == []
    assert told["forbidden"] == {}
    assert told["grown"] < MAX_GROWTH


def test_decoders_eat_hostile_inputs(tmp_path, table, request):
    each = -(-QUICK // len(table))
    told = feed(tmp_path, each, timeout=100)
    assert sum(one["eaten"] for one in told["decoders"]) >= QUICK
    assert {one["name"] for one in told["decoders"]} == {one.name for one in table}
    check(told, request)


@pytest.mark.long
def test_decoders_eat_a_hundred_thousand(tmp_path, table, request):
    each = max(LONG_EACH, -(-LONG // len(table)))
    told = feed(tmp_path, each, timeout=7200, seed=int(os.environ.get("SEED", "2")))
    assert min(one["eaten"] for one in told["decoders"]) >= LONG_EACH
    assert sum(one["eaten"] for one in told["decoders"]) >= LONG
    check(told, request)


def test_every_kind_of_outside_data_has_a_decoder(table):
    for kind in REQUIRED:
        assert any(one.name.startswith(kind) for one in table), kind


def test_every_decoder_takes_what_is_good(table):
    """Else it would be the harness that refuses."""
    for one in table:
        if one.name.startswith(("fleet.", "admin.")):  # what is behind a request, a blob say, need not be there
            continue
        for data in one.seeds:
            refused = refusal(one, data)
            assert refused is None or (one.name, type(refused).__name__) in NOT_TAKEN, f"{one.name}: {refused!r}"


def refusal(decoder, data):
    try:
        decoder.decode(data)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is compared
        return error
    return None


NOT_TAKEN = frozenset(
    {
        ("overseer: requests", "ProtocolError"),  # no body is that of all requests at once
        ("overseer: answers", "ProtocolError"),
        ("overseer: refusals", "NotFound"),
        ("download: path", "ProtocolError"),
    }
)


@pytest.mark.parametrize("mended", MENDED, ids=lambda one: f"{one.decoder}-{one.escape}")
def test_what_escaped_once_is_refused(table, mended: Mended):
    (decoder,) = [one for one in table if one.name == mended.decoder]
    data = mended.change(decoder.seeds[0])
    error = refusal(decoder, decoder.repair(data) if decoder.repair else data)
    assert error is None or isinstance(error, decoder.refuses), repr(error)
