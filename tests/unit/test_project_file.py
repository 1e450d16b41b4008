from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fedhelm.config.timing import PROFILES
from fedhelm.config.yaml_source import load_yaml
from fedhelm.errors import BadInput, NotSupportedYet
from fedhelm.privacy.policy import PrivacyPolicy
from fedhelm.provision.flare import notes_as_lines
from fedhelm.provision.project_file import parse_project, read_project_file
from fedhelm.provision.sample import SAMPLE

FLARE = Path(__file__).parents[1] / "data" / "projects" / "flare-2.1.yml"

GOOD = """\
api_version: 3
name: demo
snapshot_persistor: /shared/demo
participants:
- {name: overseer, type: overseer, org: nvidia, port: 8443}
- {name: server1, type: server, org: nvidia, fed_learn_port: 8002, admin_port: 8003}
- {name: site-1, type: client, org: hospital}
- {name: a@b.c, type: admin, org: nvidia, role: lead}
"""


def parsed(text):
    return parse_project(load_yaml(text, "project.yml", aliases=True))


def project_of(text):
    return parsed(text)[0]


def refused(text, kind=BadInput):
    with pytest.raises(kind) as caught:
        parsed(text)
    return caught.value.message.splitlines()


def test_a_short_file_becomes_a_project():
    project = project_of(GOOD)
    assert (project.name, project.store, project.timing) == ("demo", "/shared/demo", PROFILES["default"])
    assert [(one.name, one.role, one.ports) for one in project.participants] == [
        ("overseer", "overseer", (8443,)),
        ("server1", "server", (8002, 8003)),
        ("site-1", "site", ()),
        ("a@b.c", "lead", ()),
    ]
    assert (project.docker_image, project.authorization, project.interpreter) == (None, None, "")


def test_the_sample_is_a_project_and_so_is_each_thing_that_it_shows_as_a_comment():
    project, notes = parsed(SAMPLE)
    assert notes == ()
    assert [one.name for one in project.participants] == [
        "overseer",
        "server1",
        "server2",
        "site-1",
        "site-2",
        "admin@nvidia.com",
    ]
    assert project.participants[3].resources == {"gpu": [0, 1]}
    shown = SAMPLE.replace("# docker_image", "docker_image").replace("# overseer:\n#   l", "overseer:\n  l")
    for key in ("authorization", "privacy"):
        policy = SAMPLE[SAMPLE.index(f"# {key}:") :].split("\n\n")[0]
        shown = shown.replace(policy, policy.replace("# ", ""))
    more = project_of(shown)
    assert more.docker_image == "fedhelm:0.1"
    assert more.lease_store.startswith("postgresql://")
    assert '"manage_job": "n:submitter"' in more.authorization
    assert '"norm": 1.0' in more.privacy


def test_a_project_file_of_flare_is_read_as_it_stands(tmp_path):
    file = read_project_file(FLARE)
    people = {one.name: one for one in file.project.participants}
    assert [one.role for one in people.values()] == [
        "overseer",
        "server",
        "server",
        "site",
        "site",
        "project_admin",
        "lead",
    ]
    assert people["site-1"].resources == {"gpu": [0, 1, 2, 3]}
    assert people["site-2"].resources == {"gpu": [0, 1], "gpu_memory_gib": 8}
    assert [people[name].enable_byoc for name in ("site-1", "site-2")] == [True, False]
    assert (file.project.store, file.project.docker_image) == ("/tmp/nvflare/snapshot-storage", None)
    assert file.source == FLARE.read_bytes()


def test_what_has_no_meaning_here_is_named_once_with_what_takes_its_place():
    document = load_yaml(FLARE, "p.yml", aliases=True)
    lines = notes_as_lines(parse_project(document)[1])
    for builder in ("Workspace", "Template", "Docker", "StaticFile", "AuthPolicy", "Cert", "HE", "Signature"):
        assert sum(f"builder {builder}Builder has no meaning here: " in line for line in lines) == 1
    assert "p.yml:68:7: role super is project_admin here" in lines
    assert sum("component job_scheduler" in line for line in lines) == 1
    assert sum("ListResourceManager has no meaning here: the resource manager `list`" in line for line in lines) == 1
    assert all(line.startswith("p.yml:") for line in lines)


def test_notes_that_say_the_same_are_counted():
    admins = "".join(f"- {{name: a{i}@b.c, type: admin, org: o, role: super}}\n" for i in range(3))
    (line,) = notes_as_lines(parsed(GOOD + admins)[1])
    assert line == "project.yml:9:45: role super is project_admin here (and 2 more like it)"


def test_keys_that_only_hold_what_aliases_use_need_no_note():
    text = "x-mine: {a: 1}\nshared: &c {resource_manager: {args: {resources: {gpu: 2}}}}\n" + GOOD
    project, notes = parsed(text.replace("org: hospital}", "org: hospital, components: *c}"))
    assert notes == ()
    assert project.of("site")[0].resources == {"gpu": 2}
    assert refused("shared: {a: 1}\n" + GOOD) == ["project.yml:1:1: shared: unknown key"]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("api_version: 3", "api_version: 4", "1:1: api_version: this program reads 3, not 4"),
        ("name: demo", "name: My Demo", "2:1: name: project name 'My Demo' is not of lower-case"),
        ("name: demo", "nam: demo", "2:1: nam: unknown key (did you mean name?)"),
        ("/shared/demo", "store", "3:1: snapshot_persistor: an absolute path is needed"),
        ("/shared/demo", "/a/../b", "3:1: snapshot_persistor: an absolute path is needed"),
        ("snapshot_persistor: /shared/demo\n", "", "1:1: snapshot_persistor: missing"),
        ("name: demo", "name: demo\ntiming: slow", "timing: there is fast, default, wan, not 'slow'"),
        ("name: demo", "name: demo\ndocker_image: a b", "docker_image: not the name of an image"),
        ("name: demo", "name: demo\ndocker_image: --privileged", "docker_image: not the name of an image"),
        ("name: overseer", "name: Over", "5:4: participants[0].name: name 'Over' is not a host name"),
        ("name: server1", "name: -x", "participants[1].name: name '-x' is not a host name"),
        ("name: a@b.c", "name: bob", "8:4: participants[3].name: admin name 'bob' does not have the form"),
        ("name: site-1", "name: server1", "'server1' is the name of another participant, line 6"),
        ("name: overseer", "name: site-1.zip", "5:4: participants[0].name: 'site-1.zip' is the name of the zip of"),
        ("org: hospital", "org: hospital, own_key: maybe", "participants[2].own_key: input should be a valid boolean"),
        ("port: 8443", "port: 84430", "participants[0].port: 84430 is not a port number"),
        ("port: 8443", "port: x", "participants[0].port: input should be a valid integer"),
        ("port: 8443", "port: true", "participants[0].port: input should be a valid integer"),
        ("port: 8443", "protocol: http", "participants[0].protocol: only https is served"),
        ("port: 8443", "api_root: /v2", "participants[0].api_root: only /api/v1 is served"),
        ("port: 8443", "host: a_b", "'a_b' is neither a host name nor an IP address"),
        ("port: 8443", "role: lead", "participants[0].role: is a key of admins alone"),
        ("org: hospital", "org: hospital, port: 3", "participants[2].port: is a key of overseers alone"),
        ("org: hospital", "org: hospital, host: x", "participants[2].host: is a key of overseers and servers alone"),
        ("org: hospital", "org: ''", "participants[2].org: organisation ''"),
        ("type: client", "type: klient", "participants[2].type: input should be 'overseer', 'server'"),
        ("role: lead", "role: boss", "participants[3].role: unknown role 'boss'"),
        ("role: lead", "roles: [lead, member]", "participants[3].roles: exactly one role is needed"),
        ("role: lead", "roles: []", "participants[3].roles: exactly one role is needed"),
        (", role: lead", "", "participants[3].role: exactly one role is needed"),
        ("admin_port: 8003", "admin_port: 8002", "participants[1]: port 8002 of server1 is that of server1 already"),
        ("port: 8443", "port: 8002, host: server1", "port 8002 of server1 is that of overseer already"),
        ("type: overseer", "type: site", "participants: at least one overseer is needed"),
    ],
)
def test_a_mistake_is_named_with_line_column_and_path(old, new, line):
    assert old in GOOD
    lines = refused(GOOD.replace(old, new, 1))
    assert any(line in one for one in lines), lines
    assert all(one.startswith("project.yml:") for one in lines)


def test_all_mistakes_are_told_in_the_order_of_the_file():
    text = GOOD.replace("name: site-1", "name: Site").replace("name: demo", "name: De mo").replace("8003", "99999")
    places = [tuple(map(int, line.split(":")[1:3])) for line in refused(text)]
    assert len(places) == 3
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("manager", "message"),
    [
        ("{path: my.Own, args: {}}", "there are the resource managers list and gpu, not 'my.Own'"),
        ("{args: {gpu: [0]}}", "resources is needed and nothing else"),
        ("{args: {resources: {gpu: [0, 0]}}}", "a list of different ones is needed"),
        ("{args: {resources: {cpu: -1}}}", "a number, a text"),
        ("{args: {resources: {cpu: {a: 1}}}}", "a number, a text"),
        ("{args: {resources: {gpu: ['; rm']}}}", "is neither a list of GPUs nor a number"),
        ("{path: gpu}", "num_of_gpus is needed"),
        ("{path: gpu, args: {num_of_gpus: 1, mem_per_gpu_in_GiB: x}}", "a number of GiB is needed"),
        ("{args: {resources: {memory: 1e999}}}", "resources.memory: a number, a text"),
        ("{args: {resources: {memory: [1, 1e999]}}}", "resources.memory: a number, a text"),
        ("{path: gpu, args: {num_of_gpus: 1, mem_per_gpu_in_GiB: 1e999}}", "mem_per_gpu_in_GiB: a number of GiB"),
        ("{path: gpu, args: {num_of_gpus: 1, mem_per_gpu_in_GiB: -.inf}}", "mem_per_gpu_in_GiB: a number of GiB"),
        ("{pth: gpu}", "unknown key (did you mean path?)"),
    ],
)
def test_a_resource_manager_that_says_nothing_is_named(manager, message):
    text = GOOD.replace("org: hospital}", f"org: hospital, components: {{resource_manager: {manager}}}}}")
    (line,) = refused(text)
    assert line.startswith("project.yml:7:")
    assert message in line


@pytest.mark.parametrize("url", ["s3://bucket/key", "S3://bucket", "gs://x", "{directory: 's3://bucket'}"])
def test_a_store_in_a_bucket_is_refused_with_the_reason(url):
    (line,) = refused(GOOD.replace("/shared/demo", url), NotSupportedYet)
    assert line.startswith("project.yml:3:1: snapshot_persistor: ")
    assert "is not served yet: a directory that all servers share is" in line


def test_the_sites_privacy_policy_is_checked_and_named_in_the_file():
    made = project_of(GOOD + "privacy:\n  filters: [{type: clip, norm: 1.5}]\n  lines: [scalar]\n").privacy
    assert PrivacyPolicy.parse(made, "made").describe() == ("clip(norm=1.5)", "lines(only=scalar)")
    (line,) = refused(GOOD + "privacy:\n  filters:\n    - {type: noise}\n")
    assert line.startswith("project.yml:11:8: privacy.filters[0].type: unknown filter 'noise'")
    (line,) = refused(GOOD + "privacy:\n  filters:\n    - {type: clip, nrom: 1}\n")
    assert "privacy.filters[0].nrom: unknown key (did you mean norm?)" in line
    (line,) = refused(GOOD + "privacy: {scopes: []}\n", NotSupportedYet)
    assert "privacy.scopes: there are no scopes" in line


@pytest.mark.parametrize("nothing", ["", "privacy: {}\n", "privacy: {filters: []}\n"])
def test_a_privacy_policy_of_nothing_is_no_file_in_the_kits(nothing):
    assert project_of(GOOD + nothing).privacy is None


def test_the_policy_of_the_file_is_checked_and_named_in_the_file():
    policy = 'authorization:\n  format_version: "1.0"\n  permissions:\n    lead: {view: any}\n'
    assert '"view": "any"' in project_of(GOOD + policy).authorization
    (line,) = refused(GOOD + policy.replace("view", "veiw"))
    assert line.startswith("project.yml:12:12: authorization.permissions.lead.veiw: unknown right")


def test_overseers_that_share_a_database_do_not_name_its_password():
    two = GOOD + "- {name: o2, type: overseer, org: nvidia}\n"
    assert "2 overseers share one lease" in refused(two)[0]
    place = "overseer: {lease_store: 'postgresql://u@h/d?passfile=/x'}\n"
    assert project_of(two + place).lease_store == "postgresql://u@h/d?passfile=/x"
    for wrong in ("postgresql://u:hunter2@h/d", "mysql://hunter2"):
        (line,) = refused(two + f"overseer: {{lease_store: '{wrong}'}}\n")
        assert "overseer.lease_store: " in line
        assert "hunter2" not in line


@pytest.mark.parametrize("text", ["", "[]", "participants: 3", "api_version: 3\nbuilders: 7\n", "participants: [3]\n"])
def test_what_is_no_project_file_is_told_in_one_line_each(text):
    assert all(line.startswith("project.yml:") for line in refused(text))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"none\.yml: cannot be read"):
        read_project_file(tmp_path / "none.yml")


def test_a_file_is_read_once_so_that_a_pipe_will_do(tmp_path):
    pipe = tmp_path / "pipe.yml"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(GOOD,), daemon=True)
    writer.start()
    file = read_project_file(pipe)
    writer.join(10)
    assert (file.source.decode(), file.project.name) == (GOOD, "demo")


def test_a_file_without_end_is_refused():
    with pytest.raises(BadInput, match="/dev/zero: larger than 1 MiB"):
        read_project_file(Path("/dev/zero"))


def test_who_makes_its_own_key_says_so():
    project = project_of(GOOD.replace("org: hospital", "org: hospital, own_key: true"))
    assert [one.name for one in project.participants if one.own_key] == ["site-1"]
