"""Frames: however the bytes are cut, whoever closes, whatever is in them."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhelm.errors import ProtocolError
from fedhelm.local.channel import Channel, open_fd
from fedhelm.local.frames import LENGTH, MAX_FRAME, FrameReader, SyncChannel, decode, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
FRAMES = st.lists(st.fixed_dictionaries({"type": st.text()}, optional={"value": JSON}), max_size=5)


@given(FRAMES, st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_however_the_bytes_are_cut_the_frames_are_the_same(frames, cuts):
    data, reader, got, at = b"".join(encode(frame) for frame in frames), FrameReader(), [], 0
    for index in range(len(data) + 1):
        step = cuts[index % len(cuts)] or 1
        got += reader.feed(data[at : at + step])
        at += step
        if at >= len(data):
            break
    assert got == frames


def raw(text):
    data = text if isinstance(text, bytes) else text.encode()
    return LENGTH.pack(len(data)) + data


@pytest.mark.parametrize(
    "data",
    [
        raw(""),
        raw("nonsense"),
        raw("[]"),
        raw("{}"),
        raw('{"type": 7}'),
        raw('"type"'),
        raw(b'{"type": "\xff"}'),
        raw('{"type": "x", "value": NaN}'),
        raw('{"type": "x", "value": -Infinity}'),
        raw("[" * 100_000),
        raw('{"type": "x", "value": ' + "[" * 100_000),
        LENGTH.pack(MAX_FRAME + 1),
        b"HTTP/1.1 200 OK\r\n",
    ],
)
def test_what_is_no_frame_is_a_protocol_error(data):
    with pytest.raises(ProtocolError):
        FrameReader().feed(data)


@pytest.mark.parametrize("value", [math.nan, math.inf, b"bytes", object(), {1, 2}])
def test_what_is_no_json_is_not_sent(value):
    with pytest.raises(ProtocolError, match="'lines' is not JSON"):
        encode({"type": "lines", "value": value})


def test_a_frame_has_a_largest_size():
    room = MAX_FRAME - len(json.dumps({"type": "x", "value": ""}, separators=(",", ":")))
    assert len(encode({"type": "x", "value": "a" * room})) == MAX_FRAME + 4
    with pytest.raises(ProtocolError, match="larger"):
        encode({"type": "x", "value": "a" * (room + 1)})


def test_an_odd_file_name_in_a_text_does_not_stop_a_frame():
    assert decode(encode({"type": "x", "value": "no file 'a\udcff'"})[4:])["value"] == "no file 'a?'"


# -- blocking -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    ours, theirs = (SyncChannel(sock) for sock in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def test_frames_arrive_in_order_and_then_the_end(pair):
    ours, theirs = pair
    for number in range(5):
        ours.send("count", number=number)
    assert [theirs.receive()["number"] for _ in range(5)] == list(range(5))
    ours.close()
    assert theirs.receive() is None
    assert theirs.receive(timeout=1) is None


def test_a_half_frame_at_the_end_is_the_end(pair):
    ours, theirs = pair
    ours._socket.sendall(encode({"type": "whole"}) + encode({"type": "half"})[:-1])
    ours.close()
    assert theirs.receive() == {"type": "whole"}
    assert theirs.receive() is None


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_waiting_ends_after_the_time_out_and_nothing_is_lost(pair, timeout):
    ours, theirs = pair
    frame = encode({"type": "late"})
    ours._socket.sendall(frame[:3])
    with pytest.raises(TimeoutError):
        theirs.receive(timeout)
    ours._socket.sendall(frame[3:])
    assert theirs.receive(10) == {"type": "late"}


def test_sending_to_nobody_is_a_connection_error(pair):
    ours, theirs = pair
    theirs.close()
    with pytest.raises(ConnectionError):
        ours.send("x", value="y" * 1_000_000)


def test_one_thread_sends_while_another_waits_with_time_outs(pair):
    """The sender's socket is full, and the receiver of the same end goes on looking for frames with short time-outs."""
    ours, theirs = pair
    sent, failed = threading.Event(), []

    def send():
        try:
            for number in range(50):
                ours.send("large", number=number, value="x" * 200_000)
        except OSError as error:
            failed.append(error)
        finally:
            sent.set()

    thread = threading.Thread(target=send)
    thread.start()
    got = []

    def drain():
        got.extend(theirs.receive()["number"] for _ in range(50))

    for _ in range(200):  # the sender is stuck for most of them
        with pytest.raises(TimeoutError):
            ours.receive(timeout=0.0005)
    drainer = threading.Thread(target=drain, daemon=True)
    drainer.start()
    while not sent.is_set():
        with pytest.raises(TimeoutError):
            ours.receive(timeout=0.0005)
    thread.join(10)
    drainer.join(10)
    assert failed == []
    assert got == list(range(50))


# -- asyncio ------------------------------------------------------------------------------------------------------------


async def channels():
    return [await Channel.from_socket(sock) for sock in socket.socketpair()]


async def test_both_ways_and_many_senders_at_once():
    ours, theirs = await channels()
    await asyncio.gather(*(ours.send("x", n=n, pad="p" * 50_000) for n in range(20)), take(theirs, 20))
    theirs.post("y", n=1)
    assert await ours.receive() == {"type": "y", "n": 1}
    ours.close()
    theirs.close()


async def take(channel, count):
    got = [(await channel.receive())["n"] for _ in range(count)]
    assert sorted(got) == list(range(count))


async def test_the_end_and_after_it():
    ours, theirs = await channels()
    await ours.send("last")
    ours.close()
    assert await theirs.receive() == {"type": "last"}
    assert await theirs.receive() is None
    ours.post("lost")  # nobody hears it, nothing breaks
    with pytest.raises(ConnectionError):
        await theirs.send("x", value="y" * 10_000_000)
    theirs.close()


async def test_nonsense_is_a_protocol_error():
    ours, theirs = socket.socketpair()
    channel = await Channel.from_socket(ours)
    with theirs:
        theirs.sendall(LENGTH.pack(MAX_FRAME + 1))
        with pytest.raises(ProtocolError):
            await channel.receive()
    channel.close()


async def test_a_descriptor_passed_on_is_taken_over():
    ours, theirs = socket.socketpair()
    channel, other = await open_fd(ours.detach()), SyncChannel(theirs)
    await channel.send("hello")
    assert await asyncio.to_thread(other.receive, 10) == {"type": "hello"}
    channel.close()
    assert await asyncio.to_thread(other.receive, 10) is None
    other.close()


def test_a_child_that_dies_is_the_end_of_its_channel():
    ours, theirs = socket.socketpair()
    program = (
        "import socket, sys; from fedhelm.local.frames import SyncChannel; "
        "SyncChannel(socket.socket(fileno=int(sys.argv[1]))).send('hello'); import os; os.kill(os.getpid(), 9)"
    )
    with theirs:
        process = subprocess.Popen([sys.executable, "-c", program, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    channel = SyncChannel(ours)
    assert channel.receive(30) == {"type": "hello"}
    assert channel.receive(30) is None
    assert process.wait(30) == -9
    channel.close()
