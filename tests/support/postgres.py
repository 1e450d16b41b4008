"""A PostgreSQL of a test's own: a free port of the loopback interface, a folder in /tmp, gone when the test process is."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.support.waiting import eventually_sync

USER = "fedhelm"
_DEBIAN = Path("/usr/lib/postgresql")


def _programs():
    """The folder of ``initdb`` and ``postgres``; the newest version's on Debian, where they are not on the path."""
    found = shutil.which("postgres")
    if found and shutil.which("initdb"):
        return Path(found).parent
    versions = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3].split(".")[0]))
    return versions[-1].parent if versions else None


def _account():
    """The user that may run it: root may not, and lends it Debian's account."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


def why_not():
    """Why no PostgreSQL can be started here; None if one can."""
    if _programs() is None:
        return "PostgreSQL is not installed here (initdb, postgres)"
    if os.getuid() == 0 and _account() is None:
        return "PostgreSQL refuses root, and there is no user called postgres to run it"
    return None


class Postgres:
    """One server. Everything it starts ends with ``close``, and with the process that made it."""

    def __init__(self):
        self._bin = _programs()
        self._account = _account()
        self.folder = Path(tempfile.mkdtemp(prefix="fedhelm-pg-", dir="/tmp"))
        if self._account is not None:
            os.chown(self.folder, self._account.pw_uid, self._account.pw_gid)
        self.password = secrets.token_hex(8)
        self.port = _free_port()
        self.process = None
        self._databases = 0
        try:
            self._init()
            self.start()
        except BaseException:
            self.close()
            raise

    def _user(self):
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

    def _init(self):
        words = self.folder / "pw"
        words.write_text(self.password)
        if self._account is not None:
            os.chown(words, self._account.pw_uid, self._account.pw_gid)
        self._run("initdb", "-D", "data", "-U", USER, "--auth=scram-sha-256", f"--pwfile={words}", "-E", "UTF8")
        self.passfile = self.folder / "passfile"
        self.passfile.write_text(f"*:*:*:{USER}:{self.password}\n")
        self.passfile.chmod(0o600)

    def _run(self, program, *words):
        done = subprocess.run(
            [self._bin / program, *words, "--locale=C.UTF-8", "--no-sync"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **self._user(),
        )
        assert done.returncode == 0, (program, done.stdout, done.stderr)

    def start(self):
        """Start it, and wait until it answers. From the main thread: it ends with the thread that started it."""
        quiet = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "logging_collector=off"]
        settings = [word for one in quiet for word in ("-c", one)]
        # PDEATHSIG: it ends with this process, however that ends. SIGINT is its fast shutdown.
        command = [
            "setpriv",
            *self._lent(),
            "--pdeathsig",
            "INT",
            self._bin / "postgres",
            "-D",
            "data",
            "-p",
            str(self.port),
            *settings,
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        eventually_sync(self._answers, 60, f"PostgreSQL answers: {self.log()[-2000:]}")

    def _lent(self):
        who = self._account
        return [] if who is None else [f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--clear-groups"]

    def _answers(self):
        assert self.process.poll() is None, self.log()
        try:
            psycopg.connect(self.admin_url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def log(self):
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def admin_url(self, database="postgres"):
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def url(self, database, port=None):
        """The URL as a kit would say it: the password is in a file."""
        return f"postgresql://{USER}@127.0.0.1:{port or self.port}/{database}?passfile={self.passfile}"

    def database(self):
        """Make an empty database and return its name."""
        self._databases += 1
        name = f"lease{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def execute(self, statement, database="postgres"):
        with closing(psycopg.connect(self.admin_url(database), autocommit=True, connect_timeout=10)) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def enable_tls(self, cert, key):
        """Offer TLS to new connections, with this certificate (PEM)."""
        for name, data in (("server.crt", cert), ("server.key", key)):
            path = self.folder / "data" / name
            path.write_bytes(data)
            path.chmod(0o600)
            if self._account is not None:
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        self.execute("ALTER SYSTEM SET ssl = on")
        self.execute("SELECT pg_reload_conf()")
        eventually_sync(lambda: self.execute("SHOW ssl") == [("on",)], 20)

    def _processes(self):
        if self.process is None or self.process.poll() is not None:
            return []
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    @contextmanager
    def frozen(self):
        """All of it is stopped, as by a disk that hangs: TCP still answers, nobody else does."""
        stopped = self._processes()
        for one in stopped:
            one.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for one in stopped:
                one.send_signal(signal.SIGCONT)

    def stop(self, sig=signal.SIGINT):
        """Stop it; SIGINT is the fast shutdown, SIGQUIT what a crash does."""
        if self.process is not None:
            for one in self._processes():
                one.send_signal(signal.SIGCONT)
            self.process.send_signal(sig)
            self.process.wait(60)

    def close(self):
        left = self._processes()
        if left:
            self.stop()
        psutil.wait_procs(left, timeout=30)
        assert not any(one.is_running() for one in left), f"processes were left behind: {left}"
        shutil.rmtree(self.folder)


def _free_port():
    for port in range(11_000 + os.getpid() % 500, 12_000):
        with closing(socket.socket()) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port for PostgreSQL")


@pytest.fixture(scope="module")
def postgres():
    """One server for a module's tests, which take a database each; they are skipped where there is none."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Postgres()
    try:
        yield made
    finally:
        made.close()
