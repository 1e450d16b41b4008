"""The chain of every gRPC call, over real TLS on a free port; and the errors and epochs that travel."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import subprocess
import sys
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

import fedhelm.errors as errors_module
import fedhelm.wire
from fedhelm.errors import (
    BadCertificate,
    DeadlineExceeded,
    FedhelmError,
    JobNotFound,
    NotAuthorised,
    NotPrimary,
    ProtocolError,
    Unreachable,
    error_class,
)
from fedhelm.security.authorization import default_policy
from fedhelm.security.pki import CertificateAuthority, load_certificate, serial_of
from fedhelm.security.tls import client_context
from fedhelm.v1 import admin_pb2 as admin
from fedhelm.v1 import common_pb2 as common
from fedhelm.v1 import fleet_pb2 as fleet
from fedhelm.wire import alive, chain
from fedhelm.wire import serving as serving_module
from fedhelm.wire.chain import ServiceHandlers
from fedhelm.wire.channels import AdminStub, EpochGuard, FleetStub, aio_channel, sync_channel
from fedhelm.wire.faults import EPOCH_KEY, ERROR_KEY, decode_error, encode_error, epoch_of, status_of
from tests.fakes.wire_service import ADMIN, FLEET, SERVER_STOPPED, AdminDesk, FleetDesk, Noted, serving
from tests.support.kits import ADMIN as ADMIN_NAME
from tests.support.kits import make_kits
from tests.support.proxy import Proxy

assert fedhelm.wire

T = 10.0


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    return make_kits(tmp_path_factory.mktemp("kits"), servers=2, sites=2)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """The same names, issued by another authority."""
    return make_kits(tmp_path_factory.mktemp("strangers"))


def serial(kit):
    return serial_of(load_certificate(kit.cert.read_bytes(), "certificate"))


async def blocking(kit, port, call, name="server1", guard=None):
    """Run ``call(stub)`` with an admin stub in a thread."""

    def run():
        with sync_channel(kit, "127.0.0.1", port, name) as channel:
            return call(AdminStub(channel, name, guard))

    return await asyncio.to_thread(run)


def fleet_stub(kit, port, name="server1", guard=None):
    channel = aio_channel(kit, "127.0.0.1", port, name)
    return channel, FleetStub(channel, name, guard)


# -- the other end is silent --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[b"x" * 300], [bytes(1 << 20)] * 64], ids=["small", "large"])
async def test_an_upload_to_a_server_that_was_stopped_is_given_up_long_before_its_own_limit(kits, monkeypatch, pieces):
    """gRPC alone waits 60 s: its ping that measures the line is unanswered, so none is sent to keep alive."""
    monkeypatch.setattr(alive, "PING_TIMEOUT_MS", 500)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with serving(kits["server1"], ADMIN, AdminDesk()) as real:
        proxy = Proxy({"server1": (port, real)})
        await proxy.open()
        loop = asyncio.get_running_loop()

        def upload(stub):
            stub.challenge(timeout=T)
            asyncio.run_coroutine_threadsafe(proxy.set("server1", "drop"), loop).result(T)
            stub.put_blob(iter(pieces), timeout=45)

        try:
            with pytest.raises(Unreachable):  # and not DeadlineExceeded
                await blocking(kits[ADMIN_NAME], port, upload)
        finally:
            await proxy.close()


# -- building -----------------------------------------------------------------------------------------------------------


def build(service, implementation):
    return ServiceHandlers(service, implementation, project="poc", epoch=lambda: 1, policy=default_policy())


def test_a_service_without_a_handler_cannot_be_built():
    class Partial(FleetDesk):
        contribute = None

    with pytest.raises(ValueError, match=r"Fleet\.Contribute has no handler"):
        build(FLEET, Partial())
    build(FLEET, FleetDesk())
    build(ADMIN, AdminDesk())


@pytest.mark.parametrize("permission", ["", "site.everything"])
def test_a_service_whose_method_names_no_known_permission_cannot_be_built(permission):
    file = descriptor_pb2.FileDescriptorProto(
        name=f"test/{permission or 'none'}.proto",
        package="test",
        syntax="proto3",
        dependency=[common.DESCRIPTOR.name],
    )
    service = file.service.add(name=f"Made{len(permission)}")
    method = service.method.add(name="Do", input_type=".fedhelm.v1.Empty", output_type=".fedhelm.v1.Empty")
    if permission:
        method.options.Extensions[common.permission] = permission
    pool = descriptor_pool.Default()
    found = pool.AddSerializedFile(file.SerializeToString())

    async def do(request, call):
        return common.Empty()

    with pytest.raises(ValueError, match="permission"):
        build(found.services_by_name[service.name], SimpleNamespace(do=do))


def test_every_method_of_the_real_services_is_wrapped():
    for service, desk in ((FLEET, FleetDesk()), (ADMIN, AdminDesk())):
        handlers = build(service, desk)
        for method in service.methods:
            found = handlers.service(SimpleNamespace(method=f"/{service.full_name}/{method.name}"))
            assert found.request_streaming, "so that nothing is read before the gates"
            assert found.response_streaming == method.server_streaming
        assert handlers.service(SimpleNamespace(method=f"/{service.full_name}/Nothing")) is None


async def test_a_connection_that_never_finishes_its_handshake_is_closed(kits, monkeypatch):
    monkeypatch.setattr(serving_module, "HANDSHAKE_MS", 200)
    async with serving(kits["server1"], FLEET, FleetDesk()) as port:
        for said in (b"", bytes.fromhex("16030100c8010000c4")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            async with asyncio.timeout(10):
                assert await reader.read() == b""
            writer.close()


# -- identity and rights ------------------------------------------------------------------------------------------------


async def test_the_right_role_gets_through_and_is_named(kits):
    desk = FleetDesk()
    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = fleet_stub(kits["site-1"], port)
        async with channel:
            receipt = await stub.contribute(fleet.Contribution(site="site-1"), T)
    assert receipt.seq == 1
    (call,) = desk.calls
    assert (call.principal.role, call.principal.name, call.method) == ("site", "site-1", "Contribute")
    assert (call.principal.org, call.principal.serial) == (kits["site-1"].org, serial(kits["site-1"]))


@pytest.mark.parametrize("role", ["site-1", "server2", "overseer"])
async def test_whoever_is_no_admin_gets_nowhere_on_the_admin_port(kits, role):
    desk, trail = AdminDesk(), Noted()
    async with serving(kits["server1"], ADMIN, desk, trail=trail) as port:
        for call in (
            lambda stub: stub.challenge(T),
            lambda stub: stub.list_jobs(admin.ListJobsRequest(), T),
            lambda stub: stub.put_blob(iter([b"x"]), T),
            lambda stub: list(stub.watch_job(admin.JobRequest(), T)),
        ):
            with pytest.raises(NotAuthorised):
                await blocking(kits[role], port, call)
    assert desk.calls == []
    assert [entry.action for entry in trail.entries] == [
        "Admin.Challenge", "Admin.ListJobs", "Admin.PutBlob", "Admin.WatchJob"
    ]  # fmt: skip
    assert {(entry.outcome, entry.by.name) for entry in trail.entries} == {("denied", kits[role].name)}


async def test_an_admin_gets_nowhere_on_the_fleets_port(kits):
    desk = FleetDesk()
    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = fleet_stub(kits[ADMIN_NAME], port)
        async with channel:
            with pytest.raises(NotAuthorised):
                await stub.contribute(fleet.Contribution(), T)

            async def hello():
                yield fleet.SiteMessage(hello=fleet.Hello())

            with pytest.raises(NotAuthorised):
                await anext(stub.connect(hello()))
    assert desk.calls == []


async def test_a_certificate_of_another_project_of_the_same_authority_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    authority = CertificateAuthority.create("poc")
    kits = make_kits(tmp_path / "a", authority=authority)
    async with serving(kits["server1"], FLEET, FleetDesk(), project="another") as port:
        channel, stub = fleet_stub(kits["site-1"], port)
        async with channel:
            with pytest.raises(NotAuthorised):  # BadCertificate is one
                await stub.contribute(fleet.Contribution(), T)


async def test_a_certificate_of_another_authority_is_refused(kits, strangers):
    desk = AdminDesk()
    async with serving(kits["server1"], ADMIN, desk) as port:
        with pytest.raises(FedhelmError):
            await blocking(strangers[ADMIN_NAME], port, lambda stub: stub.check_status(5.0))
        # and one that trusts the server, with a stranger's certificate
        context = grpc.ssl_channel_credentials(
            kits["server1"].ca.read_bytes(),
            strangers[ADMIN_NAME].key.read_bytes(),
            strangers[ADMIN_NAME].cert.read_bytes(),
        )
        with pytest.raises(Unreachable):
            await asyncio.to_thread(raw_status, port, context)
    assert desk.calls == []


def raw_status(port, credentials):
    options = [("grpc.ssl_target_name_override", "server1")]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        return AdminStub(channel, "server1").check_status(5.0)


async def test_no_certificate_is_refused(kits):
    desk = AdminDesk()
    async with serving(kits["server1"], ADMIN, desk) as port:
        with pytest.raises(Unreachable):
            await asyncio.to_thread(raw_status, port, grpc.ssl_channel_credentials(kits["server1"].ca.read_bytes()))
    assert desk.calls == []


async def test_a_server_under_another_name_is_refused(kits):
    async with serving(kits["server2"], ADMIN, AdminDesk()) as port:
        with pytest.raises(Unreachable):
            await blocking(kits[ADMIN_NAME], port, lambda stub: stub.check_status(5.0))
        await blocking(kits[ADMIN_NAME], port, lambda stub: stub.check_status(T), name="server2")


def handshake(kit, port, version):
    context = client_context(kit)
    if version is not None:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    context.check_hostname = False
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="server1") as tls,
    ):
        return tls.version()


async def test_tls_1_2_is_refused_and_1_3_is_spoken(kits):
    async with serving(kits["server1"], ADMIN, AdminDesk()) as port:
        assert await asyncio.to_thread(handshake, kits[ADMIN_NAME], port, None) == "TLSv1.3"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(handshake, kits[ADMIN_NAME], port, ssl.TLSVersion.TLSv1_2)


async def test_a_connection_without_tls_is_refused(kits):
    async with serving(kits["server1"], ADMIN, AdminDesk()) as port:

        def plain():
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                return AdminStub(channel).check_status(5.0)

        with pytest.raises((Unreachable, DeadlineExceeded)):
            await asyncio.to_thread(plain)


# -- errors -------------------------------------------------------------------------------------------------------------

EVERY = sorted(
    {cls for cls in vars(errors_module).values() if isinstance(cls, type) and issubclass(cls, FedhelmError)},
    key=lambda cls: cls.code,
)


async def test_every_error_of_the_tree_travels_as_itself(kits):
    desk = FleetDesk()
    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = fleet_stub(kits["site-1"], port)
        async with channel:
            for cls in EVERY:
                desk.raises = cls(f"what happened: {cls.code}", hint="what to do")
                with pytest.raises(FedhelmError) as caught:
                    await stub.contribute(fleet.Contribution(), T)
                assert type(caught.value) is cls
                assert (caught.value.message, caught.value.hint) == (f"what happened: {cls.code}", "what to do")


@pytest.mark.parametrize("text", ["x" * 100_000, "\u00e9" * 100_000, "\U0001f600" * 5000, "two\nlines\0", '"\\' * 5000])
async def test_a_message_of_any_size_and_kind_arrives_with_its_class(kits, text):
    desk = FleetDesk()
    desk.raises = JobNotFound(text, hint=text)
    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = fleet_stub(kits["site-1"], port)
        async with channel:
            with pytest.raises(JobNotFound) as caught:
                await stub.contribute(fleet.Contribution(), T)
    assert len(caught.value.message) == min(len(text), 1000 // len(text[0].encode()))
    assert text.replace("\0", " ").startswith(caught.value.message)


@pytest.mark.parametrize("method", ["unary", "stream"])
async def test_a_bug_in_a_handler_is_an_internal_error_without_a_traceback(kits, caplog, method):
    desk = AdminDesk(raises=RuntimeError("secret detail"))

    def call(stub):
        if method == "unary":
            return stub.check_status(T)
        return list(stub.watch_job(admin.JobRequest(), T))

    async with serving(kits["server1"], ADMIN, desk) as port:
        with caplog.at_level(logging.ERROR), pytest.raises(FedhelmError) as caught:
            await blocking(kits[ADMIN_NAME], port, call)
    assert type(caught.value) is FedhelmError
    assert caught.value.code == "INTERNAL"
    assert "secret" not in caught.value.message
    assert "Traceback" not in caught.value.message
    assert "secret detail" in caplog.text  # the server's own log has it


async def test_an_upload_that_ends_with_its_server_is_no_failure_in_the_log(kits, caplog):
    caplog.set_level(logging.ERROR)
    desk = FleetDesk()
    desk.raises = SERVER_STOPPED("Server already stopped.")

    async def pieces():
        yield b"x"

    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = fleet_stub(kits["site-1"], port)
        with pytest.raises(Unreachable, match="the server stops"):
            await stub.put_blob(pieces())
        await channel.close()
    assert not [record for record in caplog.records if record.name.startswith("fedhelm")]
    assert not chain.is_stop(grpc.aio.UsageError())


async def test_what_was_streamed_before_an_error_arrives(kits):
    desk, got = AdminDesk(raises=JobNotFound("gone")), []
    async with serving(kits["server1"], ADMIN, desk) as port:
        with pytest.raises(JobNotFound):
            await blocking(
                kits[ADMIN_NAME], port, lambda stub: got.extend(stub.watch_job(admin.JobRequest(), T)) or None
            )
        with pytest.raises(JobNotFound):
            await blocking(kits[ADMIN_NAME], port, lambda stub: got.append(next(s := watch(stub))) or list(s))
    assert got[-1].round == 1


def watch(stub):
    return stub.watch_job(admin.JobRequest(), T)


async def test_a_call_without_an_answer_ends_at_its_deadline(kits):
    class Silent(AdminDesk):
        async def check_status(self, request, call):
            await asyncio.Event().wait()

    async with serving(kits["server1"], ADMIN, Silent()) as port:
        with pytest.raises(DeadlineExceeded, match="server1 did not answer"):
            await blocking(kits[ADMIN_NAME], port, lambda stub: stub.check_status(0.3))


async def test_nobody_there_is_unreachable(kits):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Unreachable, match="server1"):
        await blocking(kits[ADMIN_NAME], port, lambda stub: stub.check_status(5.0))


async def test_a_message_above_the_limit_is_refused(kits):
    desk = FleetDesk()
    async with serving(kits["server1"], FLEET, desk) as port:
        channel, stub = fleet_stub(kits["site-1"], port)
        async with channel:
            with pytest.raises(FedhelmError):
                await stub.contribute(fleet.Contribution(metrics_json="x" * (5 << 20)), T)
    assert desk.calls == []


def test_statuses_and_codes_of_the_tree_are_known_to_grpc():
    for cls in EVERY:
        assert isinstance(status_of(cls("x")), grpc.StatusCode)
        assert error_class(cls.code) is cls
    assert error_class("FROM_THE_FUTURE") is FedhelmError


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b"7", b"\xff", b'{"code": 1}', b'{"code":"X"}'])
def test_an_error_that_cannot_be_read_is_a_protocol_error(value):
    found = decode_error(grpc.StatusCode.INTERNAL, "x", ((ERROR_KEY, value),), "server1")
    assert isinstance(found, ProtocolError)


def test_an_error_from_grpc_itself_says_who_was_called():
    status = grpc.StatusCode
    for code, cls in (
        (status.UNAVAILABLE, Unreachable),
        (status.CANCELLED, Unreachable),
        (status.UNKNOWN, Unreachable),
        (status.INTERNAL, Unreachable),  # the server died while a message was on its way to it
        (status.DEADLINE_EXCEEDED, DeadlineExceeded),
        (status.UNAUTHENTICATED, BadCertificate),
        (status.RESOURCE_EXHAUSTED, ProtocolError),
        (status.UNIMPLEMENTED, ProtocolError),
    ):
        found = decode_error(code, None, None, "server1")
        assert type(found) is cls
        assert "server1" in found.message


_GRPC = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:8003: "


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        (f"{_GRPC}Failed to connect to remote host: Connection refused", "connection refused"),
        (
            (
                f"{_GRPC}Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:"
                "OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired: OK"
            ),
            "TLS handshake failed: certificate verify failed: certificate has expired",
        ),
        (
            (
                f"{_GRPC}Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:100000f7:SSL routines:"
                "OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid certificate verification context: OK"
            ),
            "TLS handshake failed: wrong version number",
        ),
        (
            (
                "failed to connect to all addresses; last error: UNAVAILABLE: ipv6:%5B::1%5D:8003: "
                "Handshake read failed (Socket closed)"
            ),
            "TLS handshake failed: socket closed",
        ),
        (f"{_GRPC}Peer name server2 is not in peer certificate", "Peer name server2 is not in peer certificate"),
        ("errors resolving x:9: [field:hostname lookup error:address lookup failed for x:9]", "unknown host name"),
        ("Socket closed", "connection closed"),
        ("the server is going away", "the server is going away"),
    ],
)
def test_a_lost_call_is_told_in_one_readable_reason(details, reason):
    found = decode_error(grpc.StatusCode.UNAVAILABLE, details, None, "server1")
    assert (type(found), found.message) == (Unreachable, f"server1 cannot be reached: {reason}")


def test_an_endless_reason_is_cut_to_a_line():
    found = decode_error(grpc.StatusCode.UNAVAILABLE, "word\n" * 500, None, "server1")
    assert len(found.message) < 200
    assert "\n" not in found.message


def test_a_hint_may_be_missing():
    found = decode_error(grpc.StatusCode.INTERNAL, "", ((ERROR_KEY, encode_error(JobNotFound("no job"))),), "server1")
    assert (type(found), found.message, found.hint) == (JobNotFound, "no job", None)


# -- epochs -------------------------------------------------------------------------------------------------------------


async def test_an_answer_with_an_older_epoch_is_refused(kits):
    epoch, guard = [3], EpochGuard()
    async with serving(kits["server1"], FLEET, FleetDesk(), epoch=lambda: epoch[0]) as port:
        channel, stub = fleet_stub(kits["site-1"], port, guard=guard)
        async with channel:
            await stub.contribute(fleet.Contribution(), T)
            assert guard.highest == 3
            epoch[0] = 5
            await stub.contribute(fleet.Contribution(), T)
            epoch[0] = 4
            with pytest.raises(NotPrimary, match="epoch 4"):
                await stub.contribute(fleet.Contribution(), T)
    assert guard.highest == 5


@pytest.mark.parametrize("stream", [False, True])
async def test_an_admin_refuses_an_older_epoch_too(kits, stream):
    def call(stub):
        return list(stub.watch_job(admin.JobRequest(), T)) if stream else stub.check_status(T)

    async with serving(kits["server1"], ADMIN, AdminDesk(), epoch=lambda: 2) as port:
        await blocking(kits[ADMIN_NAME], port, call, guard=EpochGuard(2))
        with pytest.raises(NotPrimary, match="epoch 2"):
            await blocking(kits[ADMIN_NAME], port, call, guard=EpochGuard(3))


def test_an_epoch_that_is_no_number_is_none():
    assert epoch_of(((EPOCH_KEY, "7"),)) == 7
    assert epoch_of(((EPOCH_KEY, b"7"),)) == 7
    for metadata in (None, (), ((EPOCH_KEY, "x"),), (("other", "7"),), ((EPOCH_KEY, "-1"),), ((EPOCH_KEY, "²"),)):
        assert epoch_of(metadata) is None
    guard = EpochGuard(4)
    guard.observe(None, "server1")
    assert guard.highest == 4


def test_a_server_refuses_to_start_where_grpc_came_first(kits):
    # grpc reads its environment when it is imported; without ours it accepts TLS 1.2.
    kit = kits["server1"]
    program = (
        "import grpc\n"
        "from pathlib import Path\n"
        "from fedhelm.config.kit import read_kit\n"
        "from fedhelm.wire.server_certificate import ServerCertificate\n"
        f"ServerCertificate(read_kit(Path({str(kit.root)!r})))\n"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("GRPC_")}
    env["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    for first, status in (("", 1), ("import fedhelm.wire\n", 0)):
        done = subprocess.run(
            [sys.executable, "-c", first + program], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == status, done.stderr
        assert ("TLS 1.2" in done.stderr) == bool(status)
