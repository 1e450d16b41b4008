"""What the gRPC library does when a server's certificate changes while it listens: what the servers can build on."""

from __future__ import annotations

import contextlib

import fedhelm.wire  # isort: skip  its cipher suite has to be set before grpc is loaded

import grpc
import pytest

from fedhelm.security.pki import CertificateAuthority, load_certificate, serial_of
from tests.support.kits import make_kits

assert fedhelm.wire


class Serving:
    """A ``grpc.aio`` server whose certificate comes from ``self.configuration`` for each new connection.

    Its one method answers with the URI and the serial number of the caller's certificate.
    """

    def __init__(self):
        self.asked = 0
        self.configuration = None

    def fetch(self):
        self.asked += 1
        return self.configuration

    async def start(self):
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handler = grpc.unary_unary_rpc_method_handler(self.answer)
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t.T", {"Who": handler})])
        credentials = grpc.dynamic_ssl_server_credentials(self.configuration, self.fetch, True)
        self.port = self.server.add_secure_port("127.0.0.1:0", credentials)
        await self.server.start()
        return self

    async def answer(self, _request, context):
        pem = context.auth_context()["x509_pem_cert"][0]
        return serial_of(load_certificate(pem, "x")).encode()


def configuration(kit):
    return grpc.ssl_server_certificate_configuration(
        [(kit.key.read_bytes(), kit.cert.read_bytes())], kit.ca.read_bytes()
    )


def channel(kit, port):
    credentials = grpc.ssl_channel_credentials(kit.ca.read_bytes(), kit.key.read_bytes(), kit.cert.read_bytes())
    options = [
        ("grpc.ssl_target_name_override", "server1"),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    ]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)


async def ask(channel):
    return (await channel.unary_unary("/t.T/Who")(b"", timeout=10)).decode()


def replace(kit, issuer, roots):
    issued = issuer.issue(kit.role, kit.name, kit.org)
    kit.cert.write_bytes(issued.cert)
    kit.key.write_bytes(issued.key)
    kit.ca.write_bytes(roots.cert_pem)
    return issued.serial


async def test_new_connections_get_the_new_certificate_and_roots_and_old_ones_go_on(tmp_path):
    old, new = CertificateAuthority.create("poc"), CertificateAuthority.create("poc")
    kits = make_kits(tmp_path, authority=old)
    server, site = kits["server1"], kits["site-1"]
    serving = Serving()
    serving.configuration = configuration(server)
    await serving.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(serving.server.stop, 0)
        first = await stack.enter_async_context(channel(site, serving.port))
        serial = await ask(first)
        assert serial == serial_of(load_certificate(site.cert.read_bytes(), "x"))

        # the server moves to the new root, and trusts only that
        replace(server, new, new)
        serving.configuration = configuration(server)
        assert await ask(first) == serial, "a connection that exists goes on"

        stale = await stack.enter_async_context(channel(site, serving.port))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(stale)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

        moved = replace(site, new, new)
        fresh = await stack.enter_async_context(channel(site, serving.port))
        assert await ask(fresh) == moved
        assert await ask(first) == serial


async def test_a_fetcher_without_news_keeps_the_certificate(tmp_path):
    kits = make_kits(tmp_path)
    serving = Serving()
    serving.configuration = configuration(kits["server1"])
    await serving.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(serving.server.stop, 0)
        serving.configuration = None  # what a fetcher returns to say: nothing new
        one = await stack.enter_async_context(channel(kits["site-1"], serving.port))
        assert await ask(one)
        assert serving.asked >= 1


async def test_both_roots_in_one_file_are_trusted_by_both_sides(tmp_path):
    old, new = CertificateAuthority.create("poc"), CertificateAuthority.create("poc")
    kits = make_kits(tmp_path, authority=old)
    server, site = kits["server1"], kits["site-1"]
    replace(server, new, new.trusting(old.signing_pem))
    site.ca.write_bytes(old.trusting(new.signing_pem).cert_pem)
    serving = Serving()
    serving.configuration = configuration(server)
    await serving.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(serving.server.stop, 0)
        one = await stack.enter_async_context(channel(site, serving.port))
        assert await ask(one) == serial_of(load_certificate(site.cert.read_bytes(), "x"))
