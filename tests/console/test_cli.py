"""``fedhelm console`` from its arguments: kits, formats, files, standard input, and what it imports."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from datetime import timedelta

import pytest

from fedhelm.clock import SystemClock
from fedhelm.security.pki import CertificateAuthority
from fedhelm_console.cli import main
from tests.fakes.provision_clock import FixedClock
from tests.support.kits import ADMIN, make_kits

RUN = "import sys; from fedhelm_console.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    # Nothing listens there: ports below 1024 that no test may open.
    return make_kits(tmp_path_factory.mktemp("poc"), servers=2, base_port=1)


@pytest.fixture
def kit(kits):
    return str(kits[ADMIN].root)


@pytest.fixture
def objects(capsys):
    def read():
        out, err = capsys.readouterr()
        assert err == ""
        return [json.loads(line) for line in out.splitlines()]

    return read


def test_a_certificate_that_ends_soon_is_said_beside_the_data(tmp_path, capsys):
    authority = CertificateAuthority.create("poc", clock=FixedClock(SystemClock().utcnow() - timedelta(days=340)))
    kit = make_kits(tmp_path, base_port=1, authority=authority)[ADMIN]
    assert main([str(kit.root), "-o", "json", "-c", "help"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["status"] == "ok"
    assert re.fullmatch(r"your certificate expires on \S+, in 2\d days: ask the project's administrator .*\n", err)


@pytest.mark.parametrize(
    "order", [("K", "-o", "json", "-c", "help"), ("-c", "help", "-o", "json", "K"), ("-ojson", "K", "-c", "help")]
)
def test_options_in_any_order(kit, objects, order):
    assert main([kit if word == "K" else word for word in order]) == 0
    assert [one["status"] for one in objects()] == ["ok"]


@pytest.mark.parametrize(
    "argv",
    [
        ["-o", "json", "-c"],
        ["-o", "json", "--nope"],
        ["-o", "json", "a", "b", "-c", "help"],
        ["-o", "json", "-c", "help", "--timeout", "soon"],
        ["-o", "json", "-c", "help", "-f", "x"],
        ["-o", "json", "-f", "/does/not/exist"],
        ["-o", "json", "-c", "help"],
    ],
)
def test_broken_arguments_are_one_object(objects, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    (body,) = objects()
    assert body["status"] == "error"
    assert body["data"] is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["K", "promote_sp", "server 2"], "fedhelm console K -c 'promote_sp '\"'\"'server 2'\"'\"''"),
        (["K", "list_jobs", "-d"], "fedhelm console K -c 'list_jobs -d'"),
        (["list_sp"], "fedhelm console KIT -c list_sp"),
    ],
)
def test_a_command_without_c_is_shown_with_it(kit, objects, words, told):
    assert main([kit if word == "K" else word for word in [*words, "-o", "json"]]) == 2
    (body,) = objects()
    assert body["error"]["code"] == "USAGE"
    assert body["error"]["hint"] == told.replace(" K ", f" {kit} ")


def test_without_json_a_usage_error_is_one_line_on_stderr(capsys):
    assert main(["-c"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error\[USAGE\]: .*\n", err)


def test_several_commands_and_keep_going(kit, objects):
    assert main([kit, "-o", "json", "-c", "help", "-c", "nonsense", "-c", "help"]) == 2
    assert [one["status"] for one in objects()] == ["ok", "error"]
    assert main([kit, "-o", "json", "-c", "nonsense", "-c", "help", "--keep-going"]) == 2
    assert [one["status"] for one in objects()] == ["error", "ok"]


def test_commands_from_a_file_and_from_standard_input(kit, objects, tmp_path, monkeypatch):
    (tmp_path / "commands").write_text("# first\nhelp\n\nhelp wait\nbye\nnonsense\n")
    assert main([kit, "-o", "json", "-f", str(tmp_path / "commands")]) == 0
    assert len(objects()) == 3
    monkeypatch.setattr(sys, "stdin", io.StringIO("help\nnonsense\n"))
    assert main([kit, "-o", "json"]) == 2
    assert [one["status"] for one in objects()] == ["ok", "error"]


@pytest.mark.parametrize("command", ["list_jobs", "get_active_sp", "list_sp", "history"])
def test_nobody_there_is_unreachable(kit, capsys, command):
    assert main([kit, "-o", "json", "-c", command]) == 3
    out, err = capsys.readouterr()
    body = json.loads(out)
    assert body["error"]["code"] == "UNREACHABLE"
    assert "127.0.0.1" in body["error"]["message"]
    # Talk stands on stderr, and says a thing once.
    assert err.count("\n") == (command == "list_jobs")


def test_the_kit_may_be_the_current_folder(kit, objects, monkeypatch):
    monkeypatch.chdir(kit)
    assert main(["-o", "json", "-c", "help"]) == 0


def test_another_participants_kit_is_refused(kits, objects):
    assert main([str(kits["site-1"].root), "-o", "json", "-c", "help"]) == 4
    assert objects()[0]["error"]["code"] == "BAD_KIT"


def test_a_changed_kit_is_refused_by_file(objects, tmp_path):
    kit = make_kits(tmp_path, base_port=1)[ADMIN]
    path = kit.startup / "fed_admin.json"
    path.chmod(0o600)
    path.write_text(path.read_text() + " ")
    assert main([str(kit.root), "-o", "json", "-c", "help"]) == 4
    (body,) = objects()
    assert "fed_admin.json" in body["error"]["message"]


def test_no_such_kit(objects, tmp_path):
    assert main([str(tmp_path / "none"), "-o", "json", "-c", "help"]) == 4
    assert objects()[0]["error"]["code"] == "BAD_KIT"


def imported(kit, command):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", RUN, kit, "-o", "json", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "fedhelm_console.batch" in names
    return {name.partition(".")[0] for name in names}, done


def test_a_short_command_imports_nothing_of_the_prompt(kit):
    names, done = imported(kit, "list_jobs")
    assert done.returncode == 3
    assert names & {"prompt_toolkit", "fastapi", "torch", "numpy", "sqlalchemy", "uvicorn", "httpx", "rich"} == set()
    assert "grpc" in names


def test_asking_the_overseer_alone_is_done_with_the_standard_library(kit):
    names, done = imported(kit, "get_active_sp")
    assert done.returncode == 3
    assert names & {"grpc", "httpx", "rich", "click", "asyncio", "prompt_toolkit"} == set()


def test_help_connects_to_nobody(kit):
    names, done = imported(kit, "help")
    assert done.returncode == 0
    assert names & {"grpc", "httpx", "prompt_toolkit"} == set()


def test_a_frozen_overseer_holds_up_nobody_beyond_the_timeout(objects, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as frozen:
        port = frozen.getsockname()[1]
        kit = make_kits(tmp_path, base_port=port)[ADMIN]
        assert main([str(kit.root), "-o", "json", "--timeout", "0.3", "-c", "get_active_sp"]) == 3
    (body,) = objects()
    assert body["error"]["code"] == "UNREACHABLE"
    assert body["error"]["message"] == f"no overseer answers (overseer at 127.0.0.1:{port}: no answer in time)"


def test_ctrl_c_is_130_and_one_object(kits, tmp_path):
    import socket

    listener = socket.create_server(("127.0.0.1", 0))  # accepts, and never says a word: a stopped overseer
    port = listener.getsockname()[1]
    kit = make_kits(tmp_path, base_port=port)[ADMIN]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(kit.root), "-o", "json", "-c", "list_sp"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        listener.settimeout(10)
        connection, _ = listener.accept()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=10)
        connection.close()
    finally:
        process.kill()
        process.wait()
        listener.close()
    assert process.returncode == 130
    (line,) = out.splitlines()
    assert json.loads(line)["error"]["code"] == "INTERRUPTED"


def test_a_reader_that_went_away_is_no_traceback(kit):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", RUN, kit, "-c", "help"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode != 0
