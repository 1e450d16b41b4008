"""At every port of a real federation: certificates that are refused, and connections that never come to a request.

One federation serves all cases. What is refused leaves the log as it was, and others are served meanwhile.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import itertools
import json
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedhelm.admin.network import WireNetwork
from fedhelm.errors import BadCertificate, Unreachable
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority
from fedhelm.security.tls import server_context
from fedhelm.v1 import fleet_pb2
from fedhelm.wire.faults import ERROR_KEY
from fedhelm.wire.overseer_console import OverseerConsoleClient
from fedhelm.wire.serving import HANDSHAKE_MS
from tests.support.federation import Federation
from tests.support.http2 import CONTINUATION, DATA, HEADERS, PREFACE, SETTINGS, frame, header, request
from tests.support.kits import ADMIN

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("ports")]

DAY = dt.timedelta(days=1)
TLS = "refused by TLS"
"""The handshake fails: no byte of a request was read."""
BAD, RIGHT = "BAD_CERTIFICATE", "NOT_AUTHORISED"
METRICS_AT = 30
SERVERS = ("server1", "server2")
PORTS = ("overseer", *(f"{server} {port}" for server in SERVERS for port in ("site", "admin", "metrics")))


# -- certificates -----------------------------------------------------------------------------------------------------


class Signer:
    """The project's root, which issues what `fedhelm` never would."""

    def __init__(self, authority):
        self._cert, self._key = authority._cert, authority._key

    def issue(self, folder, name, uris, *, start=-DAY, life=2 * DAY, server_auth=False, dns=()):
        """Write certificate and key below ``folder``; return their paths."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if server_auth else [])]
        names = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
        issuer = self._cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._cert.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + start)
            .not_valid_after(now + start + life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "crt").write_bytes(pem)
        (folder / "key").write_bytes(secret)
        return folder / "crt", folder / "key"


SITE, ADMIN_URI = "fedhelm://poc/site/site-1", f"fedhelm://poc/project_admin/{ADMIN}"
FORGED = {
    "expired": ([SITE], {"start": -3 * DAY, "life": DAY}),
    "not yet valid": ([SITE], {"start": DAY}),
    "role-less": ([], {}),
    "two URIs": ([SITE, ADMIN_URI], {}),
    "two URIs, the server's own first": (["fedhelm://poc/server/server1", SITE], {}),
    "URI of another project": (["fedhelm://other/site/site-1"], {}),
    "unknown role": (["fedhelm://poc/root/site-1"], {}),
    "another scheme": (["https://poc/site/site-1"], {}),
}
AT_THE_HANDSHAKE = ("none", "another root", "another root of the same name", "expired", "not yet valid")
BY_THE_URI = ("role-less", "two URIs", "two URIs, the server's own first", "URI of another project", "unknown role",
              "another scheme")  # fmt: skip


class World:
    """A running federation, its ports, and certificates good and bad."""

    def __init__(self, folder):
        self.federation = Federation(folder / "f", sites=1, servers=2)
        self.folder = folder / "certificates"
        base, state = self.federation.base_port, self.federation.root / "state"
        self.kits = {name: open_kit(self.federation.kit(name)) for name in ("server1", "server2", "site-1", ADMIN)}
        self.ca = self.kits["site-1"].ca
        self.ports = {"overseer": ("overseer", self.kits["site-1"].overseers[0].port)}
        for number, server in enumerate(SERVERS):
            address = self.kits[server].own_server
            self.ports[f"{server} site"] = (server, address.fed_learn_port)
            self.ports[f"{server} admin"] = (server, address.admin_port)
            self.ports[f"{server} metrics"] = (server, base + METRICS_AT + number)
            settings = self.kits[server].local / "server.json"
            settings.write_text(json.dumps({"metrics_port": base + METRICS_AT + number}))
        self.signer = Signer(
            CertificateAuthority.load("poc", (state / "rootCA.pem").read_bytes(), (state / "rootCA.key").read_bytes())
        )
        self.certificates = {"none": None}
        for name in ("server1", "site-1", ADMIN):
            self.certificates[name] = self.kits[name].cert, self.kits[name].key
        for name, (uris, more) in FORGED.items():
            self.certificates[name] = self.signer.issue(self.folder / name, "site-1", uris, **more)
        for name, project in (("another root", "other"), ("another root of the same name", "poc")):
            stranger = Signer(CertificateAuthority.create(project))
            self.certificates[name] = stranger.issue(self.folder / name, "site-1", [SITE])

    def context(self, who, *alpn):
        """As a client who trusts whatever server there is, so that it is the server that refuses."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self.ca)
        if self.certificates[who] is not None:
            context.load_cert_chain(*self.certificates[who])
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    def connect(self, port, who, *alpn):
        name, number = self.ports[port]
        plain = socket.create_connection(("127.0.0.1", number), timeout=10)
        return self.context(who, *alpn).wrap_socket(plain, server_hostname=name)

    def records(self):
        return len(self.federation.records())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("ports"))
    try:
        world.federation.start()
        world.federation.leader()
        yield world
    finally:
        world.federation.close()


# -- calls ------------------------------------------------------------------------------------------------------------


def call(world, port, who):
    """What a caller with this certificate is told: TLS, or the code of the error, or "served"."""
    kind = port.rpartition(" ")[2]
    if kind in ("site", "admin"):
        return grpc_call(world, port, who, *CALLS[kind])
    return https_call(world, port, who)


CALLS = {
    # With the right certificate it is refused for what it says: PushLines of no job.
    "site": ("/fedhelm.v1.Fleet/PushLines", fleet_pb2.LineBatch().SerializeToString()),
    "admin": ("/fedhelm.v1.Admin/Challenge", b""),
}
STANDBY = {"NOT_PRIMARY"}
SERVED = {"site": {"BAD_INPUT", *STANDBY}, "admin": {"served", *STANDBY}, "metrics": {"served"}, "overseer": {"served"}}


def grpc_call(world, port, who, method, data):
    name, number = world.ports[port]
    pair = world.certificates[who]
    cert, key = (path.read_bytes() for path in pair) if pair is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(world.ca.read_bytes(), key, cert)
    options = [("grpc.ssl_target_name_override", name), ("grpc.enable_retries", 0)]
    with grpc.secure_channel(f"127.0.0.1:{number}", credentials, options) as channel:
        try:
            channel.unary_unary(method)(data, timeout=10)
        except grpc.RpcError as error:
            return told_by(error)
        return "served"


def told_by(error):
    found = [value for key, value in error.trailing_metadata() or () if key == ERROR_KEY]
    if found:
        return json.loads(found[0])["code"]
    assert error.code() is grpc.StatusCode.UNAVAILABLE, error
    return TLS


def https_call(world, port, who):
    path = "/metrics" if port.endswith("metrics") else "/api/v1/servers"
    connection = http.client.HTTPSConnection("127.0.0.1", world.ports[port][1], context=world.context(who), timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    except (ssl.SSLError, ConnectionError):  # RemoteDisconnected is a ConnectionError
        return TLS
    finally:
        connection.close()
    if port.endswith("metrics"):
        return {200: "served", 403: BAD}[answer.status]
    assert answer.status in (200, 401, 403), body
    return "served" if answer.status == 200 else json.loads(body)["code"]


# -- who is refused where ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", PORTS)
def test_a_good_certificate_is_heard(world, port):
    """Else what follows would show nothing."""
    kind = port.rpartition(" ")[2]
    who = ADMIN if kind == "admin" else "site-1"
    assert call(world, port, who) in SERVED[kind]


@pytest.mark.parametrize("port", PORTS)
def test_no_wrong_old_or_young_certificate_gets_through_the_handshake(world, port):
    assert {who: call(world, port, who) for who in AT_THE_HANDSHAKE} == dict.fromkeys(AT_THE_HANDSHAKE, TLS)


@pytest.mark.parametrize("port", PORTS)
def test_a_certificate_must_carry_one_uri_of_this_project(world, port):
    before = world.records()
    assert {who: call(world, port, who) for who in BY_THE_URI} == dict.fromkeys(BY_THE_URI, BAD)
    assert world.records() == before


@pytest.mark.parametrize("server", SERVERS)
def test_a_port_is_for_its_own_role(world, server):
    before = world.records()
    told = {
        (port, who): call(world, f"{server} {port}", who)
        for port, who in (("admin", "site-1"), ("admin", "server1"), ("site", ADMIN), ("site", "server1"))
    }
    assert told == dict.fromkeys(told, RIGHT)
    assert world.records() == before


# -- who poses as a server --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def impostor(certificate, key, ca):
    """Something that listens with a site's certificate; yields its port."""
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], ca.read_bytes(), require_client_auth=True
    )
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield port
        finally:
            server.stop(0).wait(5)


@pytest.mark.parametrize("dns", [(), ("server1", "overseer")], ids=["its own", "with the name of a server"])
def test_a_sites_certificate_does_not_serve(world, tmp_path, dns):
    """Not even one that names a server: only the right to serve, which the root gives to servers, makes one."""
    if dns:
        certificate, key = world.signer.issue(tmp_path, "site-1", [SITE], dns=dns)
    else:
        certificate, key = world.kits["site-1"].cert, world.kits["site-1"].key
    kit = world.kits[ADMIN]
    with impostor(certificate, key, world.ca) as port:
        address = replace(kit.servers[0], host="127.0.0.1", admin_port=port)
        stub, channel = WireNetwork(kit).dial(address)
        with contextlib.closing(channel), pytest.raises(Unreachable, match=r"(?i)certificate"):
            stub.challenge(timeout=5)
    context = server_context(world.kits["site-1"])
    context.load_cert_chain(certificate, key)
    with listening(context) as port:
        console = OverseerConsoleClient(replace(kit, overseers=(replace(kit.overseers[0], port=port),)))
        with contextlib.closing(console), pytest.raises(BadCertificate, match=r"(?i)certificate|purpose|hostname"):
            console.servers()


@contextlib.contextmanager
def listening(context):
    """A TLS server that shakes hands and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    with contextlib.suppress(OSError), peer, context.wrap_socket(peer, server_side=True) as tls:
                        tls.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(15)


# -- before anything is known of the caller ---------------------------------------------------------------------------

SLACK_S = 5.0
"""A busy machine closes a little later."""
METRICS_S = 5.0
CLIENT_HELLO = bytes.fromhex("16030100c8010000c4")  # announces 200 bytes, and ends after 4


def closed_after(connection, send=lambda: None):
    """Seconds until the other side closed, while ``send`` is called now and then; what it said is read over."""
    began = time.monotonic()
    connection.settimeout(0.2)
    while time.monotonic() - began < 100:
        try:
            send()
            if not connection.recv(65536):
                break
        except TimeoutError:
            continue
        except OSError:  # reset, or a TLS alert
            break
    return time.monotonic() - began


def silent_caller(world, port, said):
    with socket.create_connection(("127.0.0.1", world.ports[port][1]), timeout=10) as plain:
        plain.sendall(said)
        return closed_after(plain)


def quiet_caller(world, port):
    """Shakes hands, and says nothing more."""
    with world.connect(port, "site-1", *([] if port.endswith("metrics") else ["h2"])) as tls:
        return closed_after(tls)


def slow_caller(world, port):
    with world.connect(port, "site-1") as tls:
        return closed_after(tls, lambda: tls.sendall(b"G"))


def all_at_once(calls):
    """Run these, each in a thread; their results by name."""
    with ThreadPoolExecutor(len(calls)) as threads:
        running = {name: threads.submit(one) for name, one in calls.items()}
        return {name: one.result() for name, one in running.items()}


def others_are_served(world):
    assert {call(world, port, ADMIN) for port in ("overseer", "server1 metrics", "server2 metrics")} == {"served"}
    for server in SERVERS:
        assert call(world, f"{server} admin", ADMIN) in SERVED["admin"]
        assert call(world, f"{server} site", "site-1") in SERVED["site"]


def limit_of(port):
    return METRICS_S if port.endswith("metrics") else HANDSHAKE_MS / 1000


def test_a_connection_that_never_comes_to_a_request_is_closed_in_time(world):
    """Nor one that finishes it and never asks. All ports at once; others are served meanwhile, past a hundred callers."""
    with contextlib.ExitStack() as crowd:
        for _ in range(100):
            address = ("127.0.0.1", world.ports["server1 admin"][1])
            crowd.enter_context(socket.create_connection(address, timeout=10))
        calls = {
            (port, said): (lambda port=port, said=said: silent_caller(world, port, said))
            for port, said in itertools.product(PORTS, (b"", CLIENT_HELLO, b"GET / HTTP/1.1\r\n"))
        }
        for port in PORTS:
            calls[port, "a handshake alone"] = lambda port=port: quiet_caller(world, port)
        for port in ("overseer", "server1 metrics"):
            calls[port, "a letter now and then"] = lambda port=port: slow_caller(world, port)
        calls["others", b""] = lambda: others_are_served(world)
        took = all_at_once(calls)
    late = {key: seconds for key, seconds in took.items() if seconds and seconds > limit_of(key[0]) + SLACK_S}
    assert not late


# -- who has a certificate, and says too much or too little -----------------------------------------------------------


def http_head(extra):
    return b"GET /metrics HTTP/1.1\r\nhost: x\r\n" + extra


HTTP_PORTS = ("overseer", "server1 metrics", "server2 metrics")
BIG = b"x" * 1_000_000


@pytest.mark.parametrize("port", HTTP_PORTS)
def test_a_head_without_end_is_cut_off(world, port):
    """One huge line, and lines for ever: after 64 KiB it is over, whatever more is sent."""
    with world.connect(port, "site-1") as huge:
        with contextlib.suppress(OSError):
            huge.sendall(http_head(b"a: " + BIG))
        assert closed_after(huge) < limit_of(port) + SLACK_S
    lines = itertools.count()
    with world.connect(port, "site-1") as endless:
        head = iter(itertools.chain([http_head(b"")], (b"h%d: %s\r\n" % (n, b"v" * 1000) for n in lines)))
        assert closed_after(endless, lambda: endless.sendall(next(head) + next(head) * 20)) < limit_of(port) + SLACK_S
    assert next(lines) < 1000
    assert call(world, port, "site-1") == "served"


def test_a_body_that_is_too_large_is_cut_off_at_the_overseer(world):
    with world.connect("overseer", "server1") as tls:
        head = b"POST /api/v1/servers/beat HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        tls.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        said = b""
        with contextlib.suppress(OSError):
            for _ in range(64):
                tls.sendall(piece)
        with contextlib.suppress(OSError):
            while data := tls.recv(65536):
                said += data
        assert said.startswith(b"HTTP/1.1 413 ") or said == b""  # a reset may overtake the answer
        assert closed_after(tls) < SLACK_S
    assert call(world, "overseer", "server1") == "served"


# -- the same for HTTP/2, by hand -------------------------------------------------------------------------------------

GRPC_PORTS = tuple(f"{server} {port}" for server in SERVERS for port in ("site", "admin"))
FIRST = request(b"/fedhelm.v1.Admin/Challenge")


@pytest.mark.parametrize("port", GRPC_PORTS)
def test_headers_without_end_come_to_nothing(world, port):
    """CONTINUATION frames, none of them the last: gRPC throws away what is over its limit, and others are served."""
    filler = b"".join(header(b"x-%04d" % number, b"v" * 100) for number in range(140))
    more = frame(CONTINUATION, 0, 1, filler) * 10
    before = world.federation.pids(port.split()[0], "child")
    with world.connect(port, ADMIN, "h2") as tls:
        with contextlib.suppress(OSError):
            tls.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, 0, 1, FIRST))
            for _ in range(4 * 1024**2 // len(more)):
                tls.sendall(more)
        others_are_served(world)
    assert world.federation.pids(port.split()[0], "child") == before


@pytest.mark.parametrize("port", GRPC_PORTS)
def test_what_is_no_http_2_is_cut_off(world, port):
    for said in (b"GET / HTTP/1.1\r\n\r\n", PREFACE + frame(DATA, 0, 1, b"x" * 16384), PREFACE + b"\xff" * 64):
        with world.connect(port, ADMIN, "h2") as tls:
            tls.sendall(said)
            assert closed_after(tls) < SLACK_S


@pytest.mark.parametrize("port", GRPC_PORTS)
def test_metadata_and_messages_that_are_too_large_are_refused(world, port):
    kind = port.rpartition(" ")[2]
    name, number = world.ports[port]
    cert, key = (path.read_bytes() for path in world.certificates[ADMIN if kind == "admin" else "site-1"])
    credentials = grpc.ssl_channel_credentials(world.ca.read_bytes(), key, cert)
    options = [
        ("grpc.ssl_target_name_override", name),
        ("grpc.max_metadata_size", 1 << 24),
        ("grpc.absolute_max_metadata_size", 1 << 24),
    ]
    with grpc.secure_channel(f"127.0.0.1:{number}", credentials, options) as channel:
        for data, metadata in ((b"", (("x-big", "v" * 100_000),)), (b"\x0a" + b"\xff" * (5 << 20), ())):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(CALLS[kind][0])(data, timeout=10, metadata=metadata)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    others_are_served(world)
