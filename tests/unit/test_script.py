import asyncio
import base64
import os
import socket
import stat
import struct
import threading
import zlib

import numpy as np
import pytest

import fedhelm.script as fl
from fedhelm.errors import BadInput, ProtocolError, Refused, Unreachable
from fedhelm.local.channel import Channel
from fedhelm.local.script_protocol import SOCKET_ENV, Result, check_line, check_lines
from fedhelm.tensors import read_file, write_file
from fedhelm_client.door import Door
from tests.fakes.client_desk import FakeDesk
from tests.support.waiting import eventually


@pytest.fixture
async def desk(tmp_path):
    return FakeDesk(tmp_path, options={"lr": 0.1})


@pytest.fixture
async def door(desk, tmp_path, monkeypatch):
    door = Door(tmp_path / "s", desk)
    door.open()
    for name, value in door.env.items():
        monkeypatch.setenv(name, value)
    yield door
    await door.close()


def run(script):
    return asyncio.wait_for(asyncio.to_thread(script), 10)


async def test_a_script_gets_its_tasks_and_answers_them(desk, door, tmp_path):
    write_file(tmp_path / "model.safetensors", {"w": np.arange(3.0)})
    desk.task(1)
    desk.task(2, model=tmp_path / "model.safetensors")
    desk.end()
    seen = []

    def script():
        with fl.connect() as site:
            assert (site.name, site.job_name, site.options["lr"]) == ("site-1", "hello", 0.1)
            assert site.members == ("site-1", "site-2")
            for task in site.tasks():
                seen.append((task.kind, task.round, task.rounds, task.step))
                base = task.model.numpy()["w"] if task.model is not None else np.zeros(3)
                task.submit({"w": base + 1}, weight=np.int64(5), metrics={"accuracy": np.float32(0.5)})
                assert task.submitted

    await run(script)
    assert seen == [("train", 1, 3, 0), ("train", 2, 3, 0)]
    first, second = desk.results
    assert (first.weight, first.metrics) == (5.0, {"accuracy": 0.5})
    assert read_file(tmp_path / "results" / second.file)["w"].tolist() == [1.0, 2.0, 3.0]


async def test_torch_both_ways(desk, door, tmp_path):
    import torch

    write_file(tmp_path / "model.safetensors", {"w": np.arange(3, dtype=np.float32)})
    desk.task(model=tmp_path / "model.safetensors")
    desk.end()

    def script():
        with fl.connect() as site:
            for task in site.tasks():
                state = task.model.torch()
                task.submit({"w": state["w"] * 2}, weight=torch.tensor(3))

    await run(script)
    assert desk.results[0].weight == 3.0
    assert read_file(tmp_path / "results" / desk.results[0].file)["w"].tolist() == [0.0, 2.0, 4.0]


async def test_lines_arrive_before_the_result_and_at_the_end(desk, door):
    desk.task()
    desk.end()

    def script():
        with fl.connect() as site:
            for task in site.tasks():
                site.log("loss", 0.5, 1)
                task.submit({"w": np.ones(1)})
            site.log("after", 1)

    await run(script)
    await eventually(lambda: len(desk.events) == 3)
    assert desk.events == [("line", "loss"), ("result", "0-0-1-train-0"), ("line", "after")]


async def test_lines_leave_while_the_script_is_busy(desk, door):
    desk.task()
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    release = threading.Event()

    def script():
        with fl.connect() as site:
            task = next(site.tasks())
            site.log("loss", 0.5, 1)
            loop.call_soon_threadsafe(started.set)
            assert release.wait(10)
            task.submit({"w": np.ones(1)})

    running = asyncio.ensure_future(run(script))
    await started.wait()
    await eventually(lambda: desk.log)
    release.set()
    await running


async def test_what_a_summary_writer_takes(desk, door):
    def script():
        with fl.connect() as site, site.summary_writer() as writer:
            writer.add_scalar("a", np.float32(1.5), 3)
            writer.add_scalars("b", {"x": 1, "y": float("nan")}, global_step=4)
            writer.add_text("c", "hallo", 5)
            writer.add_image("d", np.zeros((3, 2, 4)), 6)
            writer.add_image("e", np.full((2, 4), 255, np.uint8), dataformats="HW")
            writer.flush()

    await run(script)
    await eventually(lambda: len(desk.log) == 6)
    lines = {line["tag"]: line for line in desk.log}
    assert (lines["a"]["value"], lines["a"]["step"], lines["a"]["kind"]) == (1.5, 3, "scalar")
    assert lines["b/y"]["value"] == "nan"
    assert (lines["c"]["kind"], lines["c"]["value"]) == ("text", "hallo")
    for tag, width, pixels in (("d", 4, bytes(3 * 4)), ("e", 4, b"\xff" * 4)):
        png = base64.b64decode(lines[tag]["value"])
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">II", png[16:24]) == (width, 2)
        length = struct.unpack(">I", png[33:37])[0]
        rows = zlib.decompress(png[41 : 41 + length])
        assert rows == (b"\0" + pixels) * 2


@pytest.mark.parametrize(
    ("submit", "error", "text"),
    [
        (lambda t: t.submit(), BadInput, "needs arrays"),
        (lambda t: t.submit({"w": np.ones(1)}, weight=float("nan")), BadInput, "weight is nan"),
        (lambda t: t.submit({"w": np.ones(1)}, weight=0), BadInput, "weight is 0.0, it must be a positive number"),
        (lambda t: t.submit({"w": np.ones(1)}, weight="3"), BadInput, "weight is '3', it must be a number"),
        (lambda t: t.submit({"w": np.ones(1)}, weight=np.ones(2)), BadInput, "weight is no single number"),
        (lambda t: t.submit({"w": np.ones(1)}, metrics={"a": float("inf")}), BadInput, "the metric 'a' is inf"),
        (lambda t: t.submit({"w": np.ones(1)}, metrics=[1]), BadInput, "must be a dictionary"),
        (lambda t: t.submit({"w": np.ones(1)}, metrics={1: 1}), BadInput, "1 is not a name"),
        (lambda t: t.submit({"w": np.ones(1)}, metrics={"x" * 201: 1}), BadInput, "at most 200 characters"),
        (
            lambda t: t.submit({"w": np.ones(1)}, metrics=dict.fromkeys(map(str, range(1001)), 1)),
            BadInput,
            "1001 metrics",
        ),
        (lambda t: t.submit({"w": "text"}), BadInput, "'w' is a str"),
        (lambda t: t.submit([1, 2]), BadInput, "dictionary of named arrays"),
    ],
)
async def test_a_wrong_answer_is_refused_and_the_task_stays_open(desk, door, submit, error, text):
    desk.task()
    desk.end()

    def script():
        with fl.connect() as site:
            for task in site.tasks():
                with pytest.raises(error, match=text):
                    submit(task)
                assert not task.submitted
                task.submit({"w": np.ones(1)})

    await run(script)
    assert len(desk.results) == 1


async def test_an_evaluation_takes_no_arrays(desk, door):
    desk.task(kind="evaluate")
    desk.end()

    def script():
        with fl.connect() as site:
            for task in site.tasks():
                with pytest.raises(BadInput, match="the evaluate task of round 1 takes no arrays"):
                    task.submit({"w": np.ones(1)})
                task.submit(metrics={"accuracy": 1})

    await run(script)
    assert desk.results[0].file is None


async def test_submitting_twice_is_an_error(desk, door):
    desk.task()

    def script():
        with fl.connect() as site:
            task = next(site.tasks())
            task.submit({"w": np.ones(1)})
            with pytest.raises(Refused, match="was submitted already"):
                task.submit({"w": np.ones(1)})

    await run(script)
    assert len(desk.results) == 1


async def test_a_task_left_without_an_answer_is_an_error(desk, door):
    desk.task()
    desk.task(2)

    def asks_on():
        with fl.connect() as site:
            for _ in site.tasks():
                pass

    with pytest.raises(Refused, match="left the train task of round 1 without an answer"):
        await run(asks_on)

    def leaves():
        with fl.connect() as site:
            for _ in site.tasks():
                break

    with pytest.raises(Refused, match="left the train task of round 2 without an answer"):
        await run(leaves)


async def test_the_script_s_own_error_is_not_hidden(desk, door):
    desk.task()

    def script():
        with fl.connect() as site:
            next(site.tasks())
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await run(script)


async def test_the_reason_of_a_rejected_result_is_shown(desk, door):
    desk.task()
    desk.reject = "no task is open"

    def script():
        with fl.connect() as site:
            next(site.tasks()).submit({"w": np.ones(1)})

    with pytest.raises(Refused, match="the site refused: no task is open"):
        await run(script)


async def test_wrong_lines_are_refused(desk, door):
    def script():
        with fl.connect() as site:
            with pytest.raises(BadInput, match="the value of 'loss' is 'x'"):
                site.log("loss", "x")
            with pytest.raises(BadInput, match=r"step is 36893488147419103232, it must be a whole number of 64 bits"):
                site.log("loss", 1.0, 1 << 65)
            with pytest.raises(BadInput, match="step is 'x'"):
                site.log("loss", 1, "x")
            with pytest.raises(BadInput, match="a tag is a text"):
                site.log("", 1)
            with pytest.raises(BadInput, match="can be streamed"):
                site.summary_writer().add_text("t", "x" * 1_000_000)
            with pytest.raises(BadInput, match="is not CHW"):
                site.summary_writer().add_image("t", np.zeros(3))
            with pytest.raises(BadInput, match="not 2"):
                site.summary_writer().add_image("t", np.zeros((2, 3, 3)))

    await run(script)


def test_outside_a_job_it_says_how_to_run_it(monkeypatch):
    monkeypatch.delenv(SOCKET_ENV, raising=False)
    with pytest.raises(Refused, match="outside a Fedhelm job") as caught:
        fl.connect()
    assert "submit_job" in caught.value.hint


async def test_only_rank_0_talks(door, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(Refused, match="only rank 0"):
        await run(fl.connect)


async def test_a_dead_agent_is_an_error(door, monkeypatch, tmp_path):
    monkeypatch.setenv(SOCKET_ENV, str(tmp_path / "nobody"))
    with pytest.raises(Unreachable, match="does not answer"):
        await run(fl.connect)


async def test_an_agent_that_goes_away_ends_the_waiting(desk, door):
    waiting = asyncio.ensure_future(run(lambda: list(fl.connect().tasks())))
    await eventually(lambda: door._busy)
    await door.close()
    with pytest.raises(Unreachable):
        await waiting


async def test_another_token_is_refused(door, monkeypatch):
    monkeypatch.setenv("FEDHELM_TOKEN", "0" * 64)
    with pytest.raises(Refused, match="the token is not this job's"):
        await run(fl.connect)


async def test_one_process_talks_at_a_time(door):
    site = await run(fl.connect)
    with pytest.raises(Refused, match="one process talks"):
        await run(fl.connect)
    site.close()
    (await eventually(lambda: asyncio.to_thread(_try_connect))).close()


def _try_connect():
    try:
        return fl.connect()
    except Refused:
        return None


async def test_a_script_that_breaks_the_protocol_is_cut_off_and_the_door_stays_open(door, desk):
    for frame in ({"type": "surprise"}, {"type": "lines", "lines": [{"kind": "scalar"}]}):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(door._path))
        channel = await Channel.from_socket(sock)
        await channel.send("hello", token=door._token, pid=os.getpid())
        assert (await channel.receive())["type"] == "welcome"
        await channel.send(**frame)
        assert await asyncio.wait_for(channel.receive(), 10) is None
        channel.close()
        await eventually(lambda: not door._busy)
    assert desk.log == []


def test_results_and_lines_of_user_code_are_checked():
    good = {"type": "result", "key": "k", "file": "k.safetensors", "weight": 1, "metrics": {}}
    assert Result.from_frame(good).weight == 1.0
    for change in (
        {"file": "../client.key"},
        {"file": ".hidden"},
        {"file": 3},
        {"weight": float("nan")},
        {"weight": -1},
        {"weight": True},
        {"weight": None},
        {"weight": 10**400},
        {"metrics": {"a": 10**400}},
        {"metrics": {"a": "b"}},
        {"metrics": {"x" * 201: 1.0}},
        {"metrics": dict.fromkeys(map(str, range(1001)), 1.0)},
        {"metrics": None},
        {"key": 3},
    ):
        with pytest.raises(ProtocolError):
            Result.from_frame({**good, **change})
    line = {"kind": "scalar", "tag": "a", "value": 1, "step": None, "time": "2026-11-22T15:04:05.123Z"}
    assert check_line(line) == line
    whole = {"value": -(1 << 63), "step": (1 << 63) - 1}
    assert check_line({**line, **whole}) == {**line, **whole}
    for change in (
        {"kind": "x"},
        {"value": "x"},
        {"value": True},
        {"value": 10**400},  # some thousand bits of text, and more than float() takes
        {"value": 1 << 63},
        {"step": "x"},
        {"step": True},
        {"step": int.from_bytes(b"Jane Doe, HIV+")},
        {"step": -(1 << 63) - 1},
        {"time": "Jane Doe, HIV+ " * 50_000},
        {"time": ""},
        {"time": None},
        {"time": 1.5},
        {"time": "2026-11-22T15:04:05.123Z\n"},
        {"time": "2026-13-22T15:04:05.123Z"},
        {"time": "2026-11-22T15:04:05Z"},
        {"time": "\uff12026-11-22T15:04:05.123Z"},
        {"tag": 1},
        {"extra": 1},
        {"kind": "text", "value": 3},
        {"kind": "image", "value": "x" * 1_000_000},
    ):
        with pytest.raises(ProtocolError):
            check_line({**line, **change})
    with pytest.raises(ProtocolError):
        check_lines("no list")


async def test_the_socket_is_private(door, tmp_path):
    assert stat.S_ISSOCK((tmp_path / "s").stat().st_mode)


def test_importing_the_script_api_loads_no_transport():
    import subprocess
    import sys

    code = "import sys, fedhelm.script; print([m for m in ('grpc','numpy','torch','pydantic','cryptography') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def connected(path):
    return await asyncio.open_unix_connection(path)


async def test_a_stranger_is_heard_for_a_hello_and_no_more(door, tmp_path):
    reader, writer = await connected(tmp_path / "s")
    writer.write(struct.pack(">I", 16 * 1024 * 1024))
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_strangers_are_bounded_and_leave_the_door_open(desk, door, tmp_path, monkeypatch):
    monkeypatch.setattr("fedhelm_client.door._MAX_STRANGERS", 3)
    kept = [await connected(tmp_path / "s") for _ in range(3)]
    await eventually(lambda: door._strangers == 3, what="three wait")
    reader, writer = await connected(tmp_path / "s")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    for _, one in [*kept, (reader, writer)]:
        one.close()
    await eventually(lambda: door._strangers == 0, what="they are forgotten")
    desk.end()

    def script():
        with fl.connect() as site:
            assert list(site.tasks()) == []

    await run(script)


async def test_lines_beyond_the_burst_slow_their_script_down(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("fedhelm_client.door.asyncio.sleep", sleep)
    from fedhelm_client import door as module

    pace = module._Pace()
    await pace.spend(module._LINES_BURST // 2)
    assert slept == []
    await pace.spend(module._LINES_BURST)
    assert slept[0] == pytest.approx(module._LINES_BURST / 2 / module._LINES_RATE, rel=0.1)
