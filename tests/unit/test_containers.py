from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from fedhelm.errors import BadInput
from fedhelm.provision import image, launch
from fedhelm.provision.compose import compose_file
from fedhelm.provision.container_values import STOP_SECONDS, gpus_of, store_mount
from fedhelm.provision.containers import container_files, project_files
from fedhelm.provision.project import Participant, Project
from fedhelm.provision.stop import KILL_TIMEOUT, STOP_GRACE
from fedhelm.provision.units import PROGRAM
from tests.support.dockerfile import instructions
from tests.support.kits import make_kits

TREE = Path(__file__).parents[2]
SCHEMA = json.loads((TREE / "tests/data/compose-spec.json").read_bytes())


def make_project(*more, host="", store="/srv/store", image="example.org/fedhelm:1", **options):
    participants = (
        Participant("overseer", "overseer", "nvidia", host, (8443,)),
        Participant("server1", "server", "nvidia", host, (8002, 8003)),
        Participant("server2", "server", "nvidia", host and "10.0.0.6", (9002, 9003)),
        *more,
    )
    return Project("demo", participants, store=store, docker_image=image, **options)


SITES = (
    Participant("site-1", "site", "a", resources={"gpu": [0, 1], "memory": "8g"}),
    Participant("site-2", "site", "b", resources={"gpu": 2}),
    Participant("site-3", "site", "b"),
)
PEOPLE = (
    Participant("admin@nvidia.com", "project_admin", "nvidia"),
    Participant("admin+nvidia.com@x", "lead", "nvidia"),
    Participant("admin-nvidia.com@x", "member", "nvidia"),
)
PROJECTS = {
    "whole": make_project(*SITES, *PEOPLE),
    "smallest": Project(
        "one.two_three",
        (Participant("o", "overseer", "x", ports=(1,)), Participant("s", "server", "x", ports=(2, 3))),
        "s",
    ),
    "no image": make_project(*SITES, image=None),
    "addresses": make_project(*SITES, *PEOPLE, host="10.0.0.5"),
    "relative store": make_project(*SITES, store="../store"),
    "bucket": make_project(*SITES, store="s3://bucket/demo"),
    "dollars": make_project(*SITES, store="/srv/$store", image="x/$HOME:${TAG}"),
    "two overseers": make_project(
        Participant("overseer2", "overseer", "nvidia", ports=(8444,)),
        *SITES,
        lease_store="postgresql://fl@db/lease?passfile=/kit/local/pgpass",
    ),
}


def compose_of(project):
    return yaml.safe_load(compose_file(project))


@pytest.mark.parametrize("project", PROJECTS.values(), ids=PROJECTS)
def test_the_compose_file_is_of_the_published_form(project):
    body = compose_of(project)
    errors = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(body)]
    assert errors == []
    assert len(body["services"]) == len(project.participants)


def test_the_schema_refuses_what_compose_does_not_know():
    body = compose_of(PROJECTS["whole"])
    body["services"]["site-1"]["capdrop"] = ["ALL"]
    assert not Draft202012Validator(SCHEMA).is_valid(body)


@pytest.mark.parametrize("project", PROJECTS.values(), ids=PROJECTS)
def test_every_service_is_as_narrow_as_docker_sh_makes_it(project):
    for name, service in compose_of(project)["services"].items():
        assert service["read_only"] is True, name
        assert service["init"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"].startswith("${FEDHELM_UID:?")
        assert "privileged" not in service
        mounts = {one["target"]: one["read_only"] for one in service["volumes"]}
        assert mounts["/kit"] is False
        assert mounts["/kit/startup"] is mounts["/kit/local"] is True
        assert mounts.get("/data", True) is True


def test_only_overseers_and_servers_publish_ports_and_only_servers_see_the_store():
    services = compose_of(PROJECTS["whole"])["services"]
    assert {name: one["ports"] for name, one in services.items() if "ports" in one} == {
        "overseer": ["8443:8443"],
        "server1": ["8002:8002", "8003:8003"],
        "server2": ["9002:9002", "9003:9003"],
    }
    with_store = [name for name, one in services.items() if any(v["target"] == "/srv/store" for v in one["volumes"])]
    assert with_store == ["server1", "server2"]


def test_services_are_checked_restarted_and_given_time_to_stop():
    services = compose_of(PROJECTS["whole"])["services"]
    running = {name: one for name, one in services.items() if "profiles" not in one}
    assert set(running) == {"overseer", "server1", "server2", "site-1", "site-2", "site-3"}
    for one in running.values():
        assert one["restart"] == "on-failure"
        assert one["stop_grace_period"] == f"{STOP_SECONDS}s"
        assert one["healthcheck"]["test"][-2:] == ["fedhelm.provision.health", "/kit"]
    assert STOP_SECONDS > STOP_GRACE + KILL_TIMEOUT


def test_people_have_a_console_each_that_starts_only_when_asked():
    services = compose_of(PROJECTS["whole"])["services"]
    consoles = {name: one for name, one in services.items() if one.get("profiles") == ["console"]}
    assert len(consoles) == len(PEOPLE)
    assert all(one["command"] == ["console", "/kit"] and one["tty"] for one in consoles.values())


def test_gpus_are_reserved_for_the_sites_that_have_them():
    services = compose_of(PROJECTS["whole"])["services"]
    devices = {
        name: one["deploy"]["resources"]["reservations"]["devices"][0]
        for name, one in services.items()
        if "deploy" in one
    }
    assert devices == {
        "site-1": {"driver": "nvidia", "capabilities": ["gpu"], "device_ids": ["0", "1"]},
        "site-2": {"driver": "nvidia", "capabilities": ["gpu"], "count": 2},
    }


def test_where_kits_say_addresses_all_are_on_the_hosts_network():
    body = compose_of(PROJECTS["addresses"])
    assert "networks" not in body
    for service in body["services"].values():
        assert service["network_mode"] == "host"
        assert not {"ports", "networks", "hostname"} & set(service)


@pytest.mark.parametrize(("host", "network"), [("127.0.0.1", "host"), ("::1", "host"), ("10.0.0.5", "bridge")])
def test_who_dials_a_loopback_address_is_on_the_hosts_network(host, network):
    project = make_project(*SITES, *PEOPLE, host=host)
    for one in (*project.of("site"), *project.of("project_admin")):
        assert f"\nnetwork={network}\n" in container_files(project, one)["docker.sh"]
    assert "\nnetwork=bridge\n" in container_files(PROJECTS["whole"], SITES[0])["docker.sh"]


def test_the_requirements_say_that_they_have_no_hashes():
    text = image.pinned_requirements()
    assert "--hash" not in text
    assert "# It has no hashes" in text


def test_compose_replaces_nothing_in_what_the_project_says():
    services = compose_of(PROJECTS["dollars"])["services"]
    assert services["server1"]["image"] == "${FEDHELM_IMAGE:-x/$$HOME:$${TAG}}"
    assert services["server1"]["volumes"][-1]["source"] == "${FEDHELM_STORE:-/srv/$$store}"


@pytest.mark.parametrize(
    ("store", "place"),
    [("/srv/store", "/srv/store"), ("../store", "/store"), ("store", None), ("../../a/./b", "/a/b"), ("s3://b", None)],
)
def test_the_store_is_mounted_where_the_kit_looks_for_it(store, place):
    assert store_mount(make_project(store=store)) == place
    assert store in ("store", "s3://b") or Path("/kit", store).resolve() == Path(place)


@pytest.mark.parametrize("gpu", ["all", [0, "x y"], [True], -1, True, {"a": 1}, [[0]], ['0"'], 1.5])
def test_gpus_in_a_form_that_no_engine_takes_are_refused(gpu):
    site = Participant("site-1", "site", "a", resources={"gpu": gpu})
    with pytest.raises(BadInput, match="site-1: gpu"):
        gpus_of(site)
    with pytest.raises(BadInput, match="site-1: gpu"):
        container_files(make_project(site), site)


def test_the_store_is_founded_once_by_what_the_scripts_call(tmp_path, capsys):
    kits = make_kits(tmp_path)
    for _ in range(2):
        assert launch.main(["found-store", str(kits["server1"].root)]) == 0
        assert [path.name for path in (tmp_path / "store" / "log").iterdir()] == ["0" * 16]
    assert launch.main(["found-store", str(kits["site-1"].root)]) == 2
    assert "belongs to a server" in capsys.readouterr().err


# -- the image


DOCKERFILE = instructions()


def test_deploy_has_the_same_files_as_a_projects_resources():
    files = project_files(PROJECTS["two overseers"])
    for name in ("Dockerfile", ".dockerignore"):
        assert (TREE / "deploy" / name).read_text() == files[name], "python -m fedhelm.provision.image deploy"


def test_the_image_is_built_in_two_stages_and_runs_as_an_ordinary_user():
    stages = [rest for word, rest in DOCKERFILE if word == "FROM"]
    assert stages == ["${BASE} AS build", "${BASE}"]
    last = DOCKERFILE[[word for word, _ in DOCKERFILE].index("FROM", 3) :]
    assert [rest for word, rest in last if word == "USER"] == ["10001:10001"]
    assert [word for word, _ in last].index("USER") > max(i for i, (word, _) in enumerate(last) if word == "RUN")
    commands = " ".join(rest for word, rest in last if word == "RUN")
    assert not re.search(r"\b(apt|apt-get|pip|gcc|make|build-essential)\b", commands)
    (health,) = [rest for word, rest in last if word == "HEALTHCHECK"]
    assert json.loads(health.partition("CMD ")[2]) == ["python", "-P", "-m", "fedhelm.provision.health", "/kit"]


def test_the_image_copies_only_what_its_folder_has():
    context = {*project_files(PROJECTS["whole"]), "fedhelm-0.1.0-py3-none-any.whl"}
    ignored = image.DOCKERIGNORE.split()
    assert ignored[0] == "*"
    sent = {name for name in context if any(fnmatch.fnmatch(name, rule[1:]) for rule in ignored[1:])}
    copies = [rest.split() for word, rest in DOCKERFILE if word == "COPY"]
    from_context = [words[:-1] for words in copies if not words[0].startswith("--from=")]
    assert from_context
    for pattern in (one for words in from_context for one in words):
        assert [name for name in sent if fnmatch.fnmatch(name, pattern)], pattern
    assert [words for words in copies if words[0].startswith("--from=")] == [
        ["--from=build", "/opt/fedhelm", "/opt/fedhelm"]
    ]


def pins(text):
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {image.canonical(name): version for name, version in (line.split("==") for line in lines)}


CONSTRAINTS = pins((TREE / "constraints.txt").read_text())


def test_the_images_versions_are_those_that_the_tests_run_with():
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    wanted = image.needs([*project["dependencies"], *project["optional-dependencies"]["postgres"]])
    deployed = pins((TREE / "deploy" / "requirements.txt").read_text())
    assert wanted.keys() <= deployed.keys(), "python -m fedhelm.provision.image deploy"
    assert deployed.items() <= CONSTRAINTS.items(), "python -m fedhelm.provision.image deploy"
    assert deployed == image.installed_closure(wanted)


def test_a_projects_requirements_are_pinned_and_have_the_database_where_it_is_used():
    alone = pins(project_files(PROJECTS["whole"])["requirements.txt"])
    shared = pins(project_files(PROJECTS["two overseers"])["requirements.txt"])
    assert {"grpcio", "cryptography", "fastapi"} <= alone.keys()
    assert "psycopg-binary" not in alone
    assert "fedhelm" not in alone
    assert {"psycopg", "psycopg-binary"} <= shared.keys()
    assert not {"pytest", "mypy", "torch"} & shared.keys()
    assert shared.items() <= CONSTRAINTS.items()


@pytest.mark.parametrize(
    ("text", "extras", "found"),
    [
        ("psycopg[binary,Pool]>=3.2; extra == 'postgres'", ("postgres",), {"psycopg": {"binary", "pool"}}),
        ("psycopg[binary]>=3.2; extra == 'postgres'", (), {}),
        ('Typing_Extensions>=4; python_version < "3.13"', (), {"typing-extensions": set()}),
        ("zope.interface (>=5)", (), {"zope-interface": set()}),
    ],
)
def test_requirements_are_read_as_metadata_says_them(text, extras, found):
    assert image.needs([text], extras) == found


def test_the_files_of_an_image_can_be_had_without_a_project(tmp_path, capsys):
    assert image.main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"Dockerfile", ".dockerignore", "requirements.txt"}
    assert image.main([str(tmp_path / "nowhere")]) == 1
    assert "no such folder" in capsys.readouterr().err


# -- systemd


def test_each_role_has_a_unit_that_restarts_what_failed_and_waits_for_its_end():
    files = project_files(PROJECTS["whole"])
    for role, command in {"overseer": "overseer", "server": "server", "site": "client"}.items():
        text = files[f"fedhelm-{role}@.service"]
        lines = text.splitlines()
        assert f"ExecStart={PROGRAM} {command} --kit /var/lib/fedhelm/%i" in lines
        assert {"Restart=on-failure", "User=fedhelm", "NoNewPrivileges=yes", "ProtectSystem=strict"} <= set(lines)
        assert f"TimeoutStopSec={STOP_SECONDS}s" in lines
        store = "/srv/store" if role == "server" else ""
        assert f"ReadWritePaths=/var/lib/fedhelm/%i {store}".strip() in lines


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
@pytest.mark.parametrize("name", ["whole", "relative store", "dollars"])
def test_systemd_takes_the_units(tmp_path, name):
    units = []
    for file, text in project_files(PROJECTS[name]).items():
        if file.endswith(".service"):
            assert PROGRAM in text
            # Only the program's place is another: it has to be there for systemd to be content.
            (tmp_path / file).write_text(text.replace(PROGRAM, shutil.which("true")))
            units.append(tmp_path / file)
    assert len(units) == 3
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
def test_systemd_names_a_mistake_in_a_unit(tmp_path):
    text = project_files(PROJECTS["whole"])["fedhelm-site@.service"].replace(PROGRAM, shutil.which("true"))
    unit = tmp_path / "fedhelm-site@.service"
    unit.write_text(text.replace("KillMode=mixed", "KillMode=mixd"))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "mixd" in done.stderr
