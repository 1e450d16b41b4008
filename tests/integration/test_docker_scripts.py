"""Each kit's docker.sh is run; the engine is played by a script that writes down what it was asked."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import shlex
import subprocess

import pytest

from fedhelm.provision.containers import container_files
from fedhelm.provision.kits import write_kits
from fedhelm.provision.project import Participant, Project
from fedhelm.provision.stop import KILL_TIMEOUT, STOP_GRACE
from fedhelm.security.kit import open_kit
from fedhelm.security.pki import CertificateAuthority
from tests.fakes.docker_engine import Docker
from tests.support.kits import make_project

ADMIN = "admin@nvidia.com"
OWNER = 1234
SITE = Participant("site-1", "site", "a", resources={"gpu": [0, 1]})
SERVER = Participant("server1", "server", "nvidia", ports=(8002, 8003))
OVERSEER = Participant("overseer", "overseer", "nvidia", ports=(8443,))


@pytest.fixture
def docker(tmp_path):
    return Docker(tmp_path / "engine")


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "shared store"
    folder.mkdir()
    return folder


def make_kit(folder, participant, *, store="/srv/store", image="example.org/fedhelm:1", others=(), owner=OWNER):
    """A kit as far as docker.sh knows one: its folders and the script."""
    present = {one.name: one for one in (OVERSEER, SERVER, *others, participant)}
    project = Project("demo", tuple(present.values()), store=str(store), docker_image=image)
    root = folder / participant.name
    for name in ("startup", "local"):
        (root / name).mkdir(parents=True)
    script = root / "startup" / "docker.sh"
    script.write_text(container_files(project, participant)["docker.sh"])
    script.chmod(0o755)
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, owner, owner)
    return root


def start(root, docker, *arguments, script=None, cwd=None, **options):
    return subprocess.run(
        [script or root / "startup" / "docker.sh", *arguments],
        env={"PATH": docker.path, "LC_ALL": "C"},
        cwd=cwd or root.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        **options,
    )


def started(root, docker, *arguments, **options):
    done = start(root, docker, *arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done


def refused(root, docker, *arguments, **options):
    """Run a script that must refuse: one line, nothing started. Returns (exit status, line)."""
    done = start(root, docker, *arguments, **options)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert [call for call in docker.calls if call[0] in ("run", "rm", "stop")] == []
    return done.returncode, done.stderr.rstrip()


def owner_of(root):
    status = root.stat()
    return f"{status.st_uid}:{status.st_gid}"


@pytest.mark.parametrize("participant", [OVERSEER, SERVER, SITE, Participant(ADMIN, "lead", "nvidia")])
def test_every_container_is_as_narrow_as_it_can_be(tmp_path, docker, store, participant):
    root = make_kit(tmp_path, participant, store=store)
    started(root, docker)
    run = docker.run
    assert {"--init", "--read-only"} <= run.switches
    assert run.flags["--cap-drop"] == ["ALL"]
    assert run.flags["--security-opt"] == ["no-new-privileges"]
    assert run.one("--user") == owner_of(root)
    assert "--privileged" not in run.flags
    assert {value.split(":")[0] for value in run.flags["--tmpfs"]} == {"/tmp", "/run"}
    assert all("noexec" in value and "nosuid" in value for value in run.flags["--tmpfs"])
    mounts = run.mounts
    assert mounts.pop("/kit") == (str(root), True)
    assert mounts.pop("/kit/startup") == (str(root / "startup"), False)
    assert mounts.pop("/kit/local") == (str(root / "local"), False)
    assert mounts == ({str(store): (str(store), True)} if participant.role == "server" else {})


@pytest.mark.parametrize(
    ("participant", "command"),
    [
        (OVERSEER, ["overseer", "--kit", "/kit"]),
        (SERVER, ["server", "--kit", "/kit"]),
        (SITE, ["client", "--kit", "/kit"]),
    ],
)
def test_it_runs_its_role_in_the_background_and_is_asked_how_it_is(tmp_path, docker, store, participant, command):
    root = make_kit(tmp_path, participant, store=store)
    done = started(root, docker, "-d")
    name = f"fedhelm-demo-{participant.name}"
    assert done.stdout == f"{participant.name} started, container {name}, log {root}/log.txt\n"
    run = docker.run
    assert (run.image, run.command, run.one("--entrypoint")) == ("example.org/fedhelm:1", command, "fedhelm")
    assert run.one("--name") == name
    assert run.switches >= {"--detach"}
    assert "--rm" not in run.switches
    assert run.one("--restart") == "on-failure"
    assert run.one("--health-cmd") == "python -P -m fedhelm.provision.health /kit"
    assert int(run.one("--stop-timeout")) > STOP_GRACE + KILL_TIMEOUT


def test_without_arguments_it_goes_to_the_background_too(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    started(root, docker)
    assert "--detach" in docker.run.switches


def test_in_the_foreground_nothing_stays_behind(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    started(root, docker, "--foreground")
    run = docker.run
    assert "--rm" in run.switches
    assert "--detach" not in run.switches
    assert "--restart" not in run.flags


def test_only_overseers_and_servers_publish_ports(tmp_path, docker, store):
    published = {}
    for participant in (OVERSEER, SERVER, SITE, Participant(ADMIN, "lead", "nvidia")):
        engine = Docker(tmp_path / f"engine-{participant.role}")
        started(make_kit(tmp_path, participant, store=store), engine)
        published[participant.role] = engine.run.flags.get("--publish", [])
        assert engine.run.one("--network") == "bridge"
    assert published == {
        "overseer": ["8443:8443"],
        "server": ["8002:8002", "8003:8003"],
        "site": [],
        "lead": [],
    }


def test_a_server_listens_at_its_name_in_the_container(tmp_path, docker, store):
    server = Participant("server1", "server", "nvidia", host="fl.example.org", ports=(8002, 8003))
    started(make_kit(tmp_path, server, store=store), docker)
    assert docker.run.one("--hostname") == "fl.example.org"


def test_who_listens_at_an_address_is_on_the_hosts_network(tmp_path, docker):
    overseer = Participant("overseer", "overseer", "nvidia", host="10.0.0.5", ports=(8443,))
    started(make_kit(tmp_path, overseer), docker)
    run = docker.run
    assert run.one("--network") == "host"
    assert "--publish" not in run.flags
    assert "--hostname" not in run.flags


@pytest.mark.parametrize(
    ("gpu", "asked"),
    [([0, 1], ['"device=0,1"']), (["GPU-3a23c669"], ['"device=GPU-3a23c669"']), (2, ["2"]), ([], None), (0, None)],
)
def test_gpus_of_the_sites_resources_are_handed_in(tmp_path, docker, gpu, asked):
    site = Participant("site-1", "site", "a", resources={"gpu": gpu})
    started(make_kit(tmp_path, site), docker)
    assert docker.run.flags.get("--gpus") == asked


def test_a_relative_store_is_found_beside_the_kit(tmp_path, docker):
    (tmp_path / "store").mkdir()
    started(make_kit(tmp_path, SERVER, store="../store"), docker)
    assert docker.run.mounts["/store"] == (str(tmp_path / "store"), True)


def test_a_store_that_is_no_folder_is_not_mounted(tmp_path, docker):
    started(make_kit(tmp_path, SERVER, store="s3://bucket/prefix"), docker)
    assert set(docker.run.mounts) == {"/kit", "/kit/startup", "/kit/local"}


def test_links_and_any_working_directory_lead_to_the_kit(tmp_path, docker):
    base = tmp_path / "a folder"
    base.mkdir()
    root = make_kit(base, SITE)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "one.sh").symlink_to(root / "startup" / "docker.sh")
    (elsewhere / "two.sh").symlink_to("one.sh")
    started(root, docker, script="./two.sh", cwd=elsewhere)
    assert docker.run.mounts["/kit"] == (str(root), True)


def test_what_the_participant_sets_itself_counts(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    data = tmp_path / "our data"
    data.mkdir()
    (root / "local" / "docker.conf").write_text(
        f"# ours\n\ndata={data}\nimage=mirror/fedhelm:2\ngpus=none\nmemory=8g\ncpus=2.5\nshm=4g\nnetwork=lab\nuser=77:88"
    )
    started(root, docker)
    run = docker.run
    assert run.image == "mirror/fedhelm:2"
    assert run.mounts["/data"] == (str(data), False)
    assert "--gpus" not in run.flags
    assert [run.one(f"--{key}") for key in ("memory", "cpus", "shm-size", "network", "user")] == [
        "8g",
        "2.5",
        "4g",
        "lab",
        "77:88",
    ]


def test_a_server_may_keep_the_store_elsewhere_on_its_host(tmp_path, docker, store):
    root = make_kit(tmp_path, SERVER, store="/srv/store")
    (root / "local" / "docker.conf").write_text(f"store={store}\n")
    started(root, docker)
    assert docker.run.mounts["/srv/store"] == (str(store), True)


def test_names_from_the_hosts_file_are_known_in_the_container(tmp_path, docker):
    root = make_kit(tmp_path, SITE, others=(Participant("server2", "server", "nvidia", ports=(9002, 9003)),))
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.1.1 overseer  # here\n#10.0.0.9 server1\n10.0.0.7\tother server1 more\n")
    (root / "local" / "docker.conf").write_text(f"hosts={hosts}\n")
    started(root, docker)
    assert sorted(docker.run.flags["--add-host"]) == ["overseer:host-gateway", "server1:10.0.0.7"]


def test_on_the_hosts_network_the_hosts_file_is_the_hosts(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    hosts = tmp_path / "hosts"
    hosts.write_text("10.0.0.7 server1\n")
    (root / "local" / "docker.conf").write_text(f"hosts={hosts}\nnetwork=host\n")
    started(root, docker)
    assert "--add-host" not in docker.run.flags


def test_the_console_gets_its_arguments_and_no_terminal_where_there_is_none(tmp_path, docker):
    root = make_kit(tmp_path, Participant(ADMIN, "project_admin", "nvidia"))
    started(root, docker, "-c", "list_jobs  -a", "--foreground")
    run = docker.run
    assert run.command == ["console", "/kit", "-c", "list_jobs  -a", "--foreground"]
    assert {"--rm", "--interactive", "--no-healthcheck"} <= run.switches
    assert "--tty" not in run.switches
    assert not {"--name", "--restart", "--health-cmd"} & set(run.flags)


def test_the_console_gets_the_terminal_where_there_is_one(tmp_path, docker):
    root = make_kit(tmp_path, Participant(ADMIN, "project_admin", "nvidia"))
    ours, theirs = pty.openpty()
    try:
        script = [root / "startup" / "docker.sh"]
        env = {"PATH": docker.path, "TERM": "xterm-256color"}
        subprocess.run(script, env=env, stdin=theirs, stdout=theirs, stderr=theirs, timeout=20, check=True)
    finally:
        os.close(ours)
        os.close(theirs)
    assert "--tty" in docker.run.switches
    assert docker.run.flags["--env"] == ["TERM=xterm-256color"]


def test_the_first_start_of_all_makes_the_store_in_a_container_of_its_own(tmp_path, docker, store):
    root = make_kit(tmp_path, SERVER, store=store)
    started(root, docker, "--found-store")
    founding, serving = docker.runs
    assert founding.one("--entrypoint") == "python"
    assert founding.command == ["-P", "-m", "fedhelm.provision.launch", "found-store", "/kit"]
    assert founding.mounts == serving.mounts
    assert founding.one("--user") == serving.one("--user") == owner_of(root)
    assert "--rm" in founding.switches
    assert not {"--publish", "--name", "--restart"} & set(founding.flags)
    assert serving.command == ["server", "--kit", "/kit"]


def test_only_a_server_makes_the_store(tmp_path, docker):
    assert "does not know the argument --found-store" in refused(make_kit(tmp_path, SITE), docker, "--found-store")[1]


@pytest.mark.parametrize("running", [None, "true", "false"])
def test_whether_it_can_work_is_looked_at_in_the_same_container(tmp_path, docker, store, running):
    root = make_kit(tmp_path, SERVER, store=store)
    if running:
        docker.container(running)
    started(root, docker, "--check")
    run = docker.run
    assert run.command == ["check", "/kit"]
    assert {"--rm", "--read-only", "--no-healthcheck"} <= run.switches
    assert run.one("--hostname") == "server1"
    assert not {"--publish", "--name", "--restart", "--health-cmd"} & set(run.flags)
    assert [call for call in docker.calls if call[0] in ("rm", "stop")] == []


def test_docker_that_is_missing_is_said_in_one_line(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    docker.program.unlink()
    assert refused(root, docker) == (
        1,
        "error[NOT_FOUND]: docker is not installed here (hint: install Docker Engine, or use start.sh)",
    )


def test_an_engine_that_does_not_answer_is_said_in_one_line(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    docker.silent()
    status, line = refused(root, docker)
    assert status == 3
    assert line.startswith("error[UNREACHABLE]: docker does not answer: Cannot connect to the Docker daemon")
    assert refused(root, docker, "--stop")[0] == 3


def test_an_image_that_is_absent_is_said_in_one_line(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    docker.without_image()
    status, line = refused(root, docker)
    assert status == 1
    assert line.startswith("error[NOT_FOUND]: the image example.org/fedhelm:1 is not on this machine")


def test_nobody_runs_as_root(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    docker.replace("ls", "echo 'drwx------ 2 0 0 4096 Jan 1 00:00 startup'")
    status, line = refused(root, docker)
    assert status == 2
    assert line.startswith(f"error[REFUSED]: {root} belongs to root")


def test_a_store_that_is_not_there_is_said_before_anything_starts(tmp_path, docker):
    root = make_kit(tmp_path, SERVER, store="../nowhere")
    status, line = refused(root, docker)
    assert status == 1
    assert "nowhere: no such folder" in line
    assert "store=FOLDER" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu=1\n", "docker.conf:1: gpu is not one of image network user hosts memory cpus data gpus shm"),
        ("# one\n\nimage\n", "docker.conf:3: not of the form KEY=VALUE"),
        ("data = /x\n", "docker.conf:1: data  is not one of"),
        ("data=relative\n", "relative is not an absolute path"),
        ("data=/no/such/folder", "/no/such/folder: no such folder"),
        ("hosts=/no/such/file\n", "/no/such/file cannot be read"),
    ],
)
def test_a_wrong_setting_is_named_by_file_and_line(tmp_path, docker, text, message):
    root = make_kit(tmp_path, SITE)
    (root / "local" / "docker.conf").write_text(text)
    assert message in refused(root, docker)[1]


def test_a_folder_that_cannot_be_mounted_is_refused(tmp_path, docker):
    folder = tmp_path / "a,b"
    folder.mkdir()
    status, line = refused(make_kit(folder, SITE), docker)
    assert status == 2
    assert "comma" in line


def test_an_argument_that_it_does_not_know_is_refused(tmp_path, docker):
    assert refused(make_kit(tmp_path, SITE), docker, "--privileged") == (
        2,
        "error[USAGE]: docker.sh does not know the argument --privileged (hint: docker.sh -h)",
    )


def test_two_of_one_participant_are_refused(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    docker.container("true")
    status, line = refused(root, docker)
    assert status == 1
    assert line.startswith("error[ALREADY_RUNNING]: site-1 is running already")


def test_a_container_that_ended_makes_room(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    docker.container("false")
    started(root, docker)
    assert next(call for call in docker.calls if call[0] in ("rm", "run")) == ["rm", "fedhelm-demo-site-1"]
    assert docker.run.image


def test_stop_asks_the_engine_and_leaves_nothing(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    docker.container("true")
    (root / "local" / "docker.conf").write_text("a mistake in the settings keeps nobody from stopping\n")
    assert started(root, docker, "--stop").stdout == "site-1 stopped\n"
    done = [call for call in docker.calls if call[0] in ("stop", "rm", "run")]
    assert done == [["stop", "fedhelm-demo-site-1"], ["rm", "--force", "fedhelm-demo-site-1"]]


def test_stop_says_so_where_nothing_runs(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    assert started(root, docker, "--stop").stdout == "site-1 is not running in a container\n"
    assert [call for call in docker.calls if call[0] in ("stop", "rm", "run")] == []


def test_help_needs_no_engine(tmp_path, docker):
    root = make_kit(tmp_path, SITE)
    docker.program.unlink()
    assert "--foreground" in started(root, docker, "-h").stdout


def test_nothing_of_the_project_file_is_run_as_shell(tmp_path, docker, store):
    hostile = "$(: >pwned)`: >pwned`'; : >pwned; '"
    server = Participant("server1", "server", "nvidia", host=hostile, ports=(8002, 8003))
    for name, participant in (("a", server), ("b", SITE)):
        engine = Docker(tmp_path / f"engine-{name}")
        folder = tmp_path / name
        folder.mkdir()
        root = make_kit(folder, participant, image=hostile, store=store, others=(server,))
        started(root, engine, cwd=folder)
        assert engine.run.image == hostile
    assert list(tmp_path.rglob("pwned")) == []


def test_a_kits_own_script_is_signed_and_starts_it(tmp_path, docker):
    project = dataclasses.replace(make_project(), docker_image="example.org/fedhelm:1")
    kits = write_kits(project, CertificateAuthority.create(project.name), tmp_path)
    for root in kits.values():
        script = root / "startup" / "docker.sh"
        assert script.stat().st_mode & 0o777 == 0o755
        assert "docker.sh" in json.loads((root / "startup" / "signature.json").read_text())["files"]
    root = kits["overseer"]
    docker.replace("ls", "echo 'drwx------ 2 1234 1235 4096 Jan 1 00:00 startup'")
    started(root, docker)
    assert docker.run.command == ["overseer", "--kit", "/kit"]
    assert docker.run.one("--user") == "1234:1235"
    assert open_kit(root).docker_image == docker.run.image


def test_kits_without_an_image_have_no_script():
    project = Project("demo", (OVERSEER, SERVER, SITE), store="/srv/store")
    assert [container_files(project, one) for one in project.participants] == [{}, {}, {}]


def test_the_script_is_plain_shell(tmp_path, docker):
    for participant in (OVERSEER, SERVER, SITE, Participant(ADMIN, "member", "nvidia")):
        root = make_kit(tmp_path, participant)
        text = (root / "startup" / "docker.sh").read_text()
        assert "@" not in text.replace("$@", "").replace(ADMIN, ""), "a place was left unfilled"
        assert max(map(len, text.splitlines())) < 160
        assert shlex.split(text, comments=True)
