"""The proxy fails as networks do, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from tests.support.federation import free_base_port
from tests.support.proxy import Proxy, Wires

SHORT = 0.2


async def _echo(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def wire():
    """A proxy with one wire to an echo server, and a way to connect to it."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    target = server.sockets[0].getsockname()[1]
    listen = free_base_port(1)
    proxy = Proxy({"a>b": (listen, target)})
    await proxy.open()
    writers = []

    async def connect():
        reader, writer = await asyncio.open_connection("127.0.0.1", listen)
        writers.append(writer)
        return reader, writer

    yield proxy, connect
    for writer in writers:
        writer.transport.abort()
    await proxy.close()
    server.close()


async def _ask(connection, text):
    reader, writer = connection
    writer.write(text)
    return await asyncio.wait_for(reader.readexactly(len(text)), 5)


async def _silent(reader):
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), SHORT)


async def test_bytes_pass(wire):
    _, connect = wire
    assert await _ask(await connect(), b"hello") == b"hello"


async def test_dropped_bytes_are_held_and_arrive_when_it_passes_again(wire):
    proxy, connect = wire
    old = await connect()
    assert await _ask(old, b"one") == b"one"
    await proxy.set("a>b", "drop")
    old[1].write(b"two")
    new = await connect()  # the kernel accepts, and nobody answers
    new[1].write(b"three")
    await _silent(old[0])
    await _silent(new[0])
    await proxy.set("a>b", "pass")
    assert await asyncio.wait_for(old[0].readexactly(3), 5) == b"two"
    assert await asyncio.wait_for(new[0].readexactly(5), 5) == b"three"


async def test_rejected_connections_are_reset_old_and_new(wire):
    proxy, connect = wire
    old = await connect()
    assert await _ask(old, b"one") == b"one"
    await proxy.set("a>b", "reject")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(old[0].read(1), 5)
    with pytest.raises(ConnectionError):
        await _ask(await connect(), b"two")
    await proxy.set("a>b", "pass")
    assert await _ask(await connect(), b"three") == b"three"


@pytest.mark.parametrize("mode", ["no-requests", "no-answers"])
async def test_one_way(wire, mode):
    proxy, connect = wire
    there = await connect()
    assert await _ask(there, b"one") == b"one"
    await proxy.set("a>b", mode)
    there[1].write(b"two")
    await _silent(there[0])
    await proxy.set("a>b", "pass")
    assert await asyncio.wait_for(there[0].readexactly(3), 5) == b"two"


async def test_delay(wire):
    proxy, connect = wire
    there = await connect()
    await proxy.set("a>b", "delay", 0.1)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await _ask(there, b"one") == b"one"
    assert loop.time() - began >= 0.2  # there and back


async def test_unknown_wire_or_mode_is_refused(wire):
    proxy, _ = wire
    with pytest.raises(KeyError):
        await proxy.set("b>a", "pass")
    with pytest.raises(ValueError, match="none of pass"):
        await proxy.set("a>b", "nonsense")


def test_a_proxy_process_is_told_and_ends():
    base = free_base_port(2)
    with socket.create_server(("127.0.0.1", base + 1)) as target:
        wires = Wires({"a>b": (base, base + 1)})
        try:
            with socket.create_connection(("127.0.0.1", base), timeout=5) as near:
                far, _ = target.accept()
                with far:
                    far.settimeout(5)
                    near.sendall(b"hello")
                    assert far.recv(5) == b"hello"
                    wires.set(["a>b"], "reject")
                    with pytest.raises(ConnectionResetError):
                        near.recv(1)
            wires.heal()
            with pytest.raises(ValueError, match="refused"):
                wires.set(["a>b"], "nonsense")
        finally:
            wires.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", base), timeout=5)


def test_a_port_that_is_taken_is_an_error():
    with socket.create_server(("127.0.0.1", free_base_port(1))) as taken, pytest.raises(OSError, match="listen"):
        Wires({"a>b": (taken.getsockname()[1], 1)})
