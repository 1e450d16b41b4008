import dataclasses

import pytest

from fedhelm.errors import ProtocolError
from fedhelm_client.follow import Following, load_epoch, save_epoch

CLUSTER = "c" * 32


def welcome(view, server, epoch, leading):
    return view.welcome(server, server, CLUSTER, epoch, leading=leading)


def test_follows_the_server_that_says_it_leads():
    view = welcome(Following(CLUSTER), "server1", 7, True)
    assert (view.leader, view.highest) == ("server1", 7)


def test_a_standby_raises_the_epoch_and_is_not_followed():
    view = welcome(Following(CLUSTER), "server2", 7, False)
    assert (view.leader, view.highest) == (None, 7)
    view = welcome(view, "server1", 7, True)
    assert view.leader == "server1"


def test_a_server_below_the_highest_epoch_is_not_followed():
    view = Following(CLUSTER, highest=9)
    assert welcome(view, "server1", 8, True).leader is None
    assert welcome(view, "server1", 8, True).highest == 9


def test_failover_by_announcement_leaves_the_zombie():
    view = welcome(Following(CLUSTER), "server1", 1, True)
    view = welcome(view, "server2", 1, False)
    view = view.announce("server2", 2)
    assert (view.leader, view.highest) == ("server2", 2)
    view = view.announce("server1", 1)  # a zombie wakes up
    assert (view.leader, view.highest) == ("server2", 2)


def test_a_standby_that_has_seen_a_newer_fence_ends_the_zombies_time():
    view = welcome(Following(CLUSTER), "server1", 1, True)
    view = welcome(view, "server2", 2, False)
    assert view.leader is None


def test_without_a_stream_nobody_is_followed_and_the_epoch_stays():
    view = welcome(Following(CLUSTER), "server1", 3, True).gone("server1")
    assert (view.leader, view.highest) == (None, 3)
    assert welcome(view, "server1", 3, True).leader == "server1"


def test_another_federation_and_another_server_are_refused_by_name():
    with pytest.raises(ProtocolError, match="server1 belongs to another federation: cluster dddd"):
        Following(CLUSTER).welcome("server1", "server1", "d" * 32, 1, leading=True)
    with pytest.raises(ProtocolError, match="server1 calls itself server2"):
        Following(CLUSTER).welcome("server1", "server2", CLUSTER, 1, leading=True)


def test_assignments_count_in_order_and_only_from_the_highest_epoch():
    view = welcome(Following(CLUSTER), "server1", 2, True)
    view, counts = view.assignment("server1", 2, 10)
    assert counts
    assert not view.assignment("server1", 2, 9)[1]
    assert view.assignment("server1", 2, 10)[1]
    assert not view.assignment("server2", 1, 99)[1]
    view, counts = view.assignment("server2", 3, 4)  # a new epoch begins anew, whatever its position
    assert counts
    assert view.leader == "server2"


def test_epochs_never_decrease_whatever_comes():
    view = Following(CLUSTER, highest=5)
    for event in [
        lambda v: v.announce("server1", 3),
        lambda v: welcome(v, "server2", 4, True),
        lambda v: v.gone("server2"),
        lambda v: v.assignment("server1", 1, 1)[0],
    ]:
        view = event(view)
        assert view.highest == 5


def test_following_is_a_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Following(CLUSTER).highest = 3


def test_the_epoch_survives_and_belongs_to_one_federation(tmp_path):
    path = tmp_path / "epoch.json"
    assert load_epoch(path, "poc", CLUSTER) == 0
    save_epoch(path, "poc", CLUSTER, 12)
    assert load_epoch(path, "poc", CLUSTER) == 12
    assert load_epoch(path, "poc", "d" * 32) == 0
    assert load_epoch(path, "other", CLUSTER) == 0
    path.write_text("{")
    assert load_epoch(path, "poc", CLUSTER) == 0


@pytest.mark.parametrize("epoch", ["true", '"3"', "3.0", "-1", "1e999", "Infinity", "null", str(2**63), "[" * 100_000])
def test_an_epoch_that_is_none_is_none(tmp_path, epoch):
    path = tmp_path / "epoch.json"
    save_epoch(path, "poc", "c", 2**63 - 1)
    assert load_epoch(path, "poc", "c") == 2**63 - 1
    path.write_text(f'{{"project": "poc", "cluster": "c", "epoch": {epoch}}}')
    assert load_epoch(path, "poc", "c") == 0
