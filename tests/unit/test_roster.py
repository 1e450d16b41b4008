"""Which servers there are: the kit's, or what an overseer said last."""

import json
from dataclasses import replace

import pytest

from fedhelm.config.kit import ServerAddress
from fedhelm.wire.overseer_api import ServerView
from fedhelm.wire.roster import known_servers, learn_servers
from tests.fakes.admin_network import make_kit


@pytest.fixture
def kit(tmp_path):
    return make_kit(tmp_path)


def view(name, host="10.0.0.9", port=7002):
    return ServerView(name=name, state="STANDBY", host=host, fed_learn_port=port, admin_port=port + 1)


def test_the_kits_servers_until_an_overseer_says_otherwise(kit):
    assert known_servers(kit) == kit.servers
    new = (ServerAddress("server2", "10.0.0.2", 7002, 7003), ServerAddress("server3", "10.0.0.3", 7002, 7003))
    assert learn_servers(kit, [view("server2", "10.0.0.2"), view("server3", "10.0.0.3")]) == new
    assert known_servers(kit) == new, "kept on disk, for when no overseer answers"


def test_a_kit_that_was_replaced_is_newer_than_what_was_learned(kit):
    learn_servers(kit, [view("server3")])
    newer = replace(kit, servers=(*kit.servers, ServerAddress("server4", "10.0.0.4", 1, 2)))
    assert known_servers(newer) == newer.servers


def test_an_overseer_that_does_not_say_the_host_changes_no_host(kit):
    views = [view("server1", "", 7002), view("server9", "", 7002)]
    assert learn_servers(kit, views) == (ServerAddress("server1", "127.0.0.1", 7002, 7003),)


@pytest.mark.parametrize(
    "views",
    [
        [],
        [view("Server One")],
        [view("server3", "a host")],
        [view("server3", "h" * 300)],
        [view("server3", port=0)],
        [view("server3", port=65535)],
        [view(f"server{number}") for number in range(65)],
    ],
)
def test_a_senseless_list_changes_nothing(kit, views):
    assert learn_servers(kit, views) == kit.servers
    assert not (kit.run / "servers.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cluster": 1}'])
def test_a_damaged_file_is_ignored(kit, text):
    kit.run.mkdir()
    (kit.run / "servers.json").write_text(text)
    assert known_servers(kit) == kit.servers


def test_another_clusters_file_is_ignored(kit):
    learn_servers(kit, [view("server3")])
    data = json.loads((kit.run / "servers.json").read_text())
    (kit.run / "servers.json").write_text(json.dumps({**data, "cluster": "1" * 32}))
    assert known_servers(kit) == kit.servers


def test_a_folder_that_cannot_be_written_to_only_forgets(kit, tmp_path):
    (tmp_path / "run").write_text("a file in its place")
    assert learn_servers(kit, [view("server3")])[0].name == "server3"
    assert known_servers(kit) == kit.servers
