"""Downloads: resumed at the byte, checked, and visible only when they are complete."""

import pytest

from fedhelm.admin.session import Session
from fedhelm.admin.transfer import local_path
from fedhelm.errors import BadInput, Corrupt, ProtocolError
from tests.fakes.admin_network import FakeClock, FakeCluster, FakeNetwork, make_kit

JOB = "k7m3tq4w2zpx"


@pytest.fixture
def cluster():
    cluster = FakeCluster(FakeClock())
    cluster.jobs[JOB] = "FINISHED:COMPLETED"
    cluster.files = {"summary.json": b"{}", "models/final.safetensors": b"0123456789" * 3, "logs/server1.log": b""}
    return cluster


@pytest.fixture
def session(cluster, tmp_path):
    return Session(
        make_kit(tmp_path / "kit"), network=FakeNetwork(cluster), clock=cluster.clock, pause=cluster.clock.pause
    )


def offsets(cluster):
    return [(request.path, request.offset) for _, method, request in cluster.calls if method == "download_file"]


def test_everything_arrives_under_the_jobs_id(session, cluster, tmp_path):
    seen = []
    path = session.download(JOB[:4], tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "out" / JOB
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert found == cluster.files
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == [JOB]
    assert seen[-1] == (32, 32)


def test_the_default_folder_is_transfer(session, tmp_path):
    assert session.download(JOB) == tmp_path / "kit" / "transfer" / JOB


def test_a_relative_folder_gives_an_absolute_path(session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert session.download(JOB, "here") == tmp_path / "here" / JOB


def test_after_a_failover_it_goes_on_at_the_byte(session, cluster, tmp_path):
    def dies():
        cluster.kill("server1")
        cluster.fail_over("server2")

    cluster.files = {"big": b"0123456789" * 3}
    cluster.after.append(("download_file", dies))
    path = session.download(JOB, tmp_path)
    assert offsets(cluster) == [("big", 0), ("big", 8)]
    assert (path / "big").read_bytes() == b"0123456789" * 3


def test_an_interrupted_download_is_invisible_and_goes_on_later(session, cluster, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    cluster.files = {"a": b"aaaa", "big": b"0123456789" * 3}
    cluster.after.append(("download_file", interrupt))
    with pytest.raises(KeyboardInterrupt):
        session.download(JOB, tmp_path)
    assert not (tmp_path / JOB).exists()
    cluster.calls.clear()
    session.download(JOB, tmp_path)
    assert offsets(cluster) == [("big", 8)]
    assert (tmp_path / JOB / "big").read_bytes() == b"0123456789" * 3


def test_a_part_of_another_version_is_not_continued(session, cluster, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    cluster.files = {"log": b"0123456789" * 3}
    cluster.after.append(("download_file", interrupt))
    with pytest.raises(KeyboardInterrupt):
        session.download(JOB, tmp_path)
    cluster.files = {"log": b"abcdefghij" * 4}
    path = session.download(JOB, tmp_path)
    assert (path / "log").read_bytes() == b"abcdefghij" * 4
    assert [file.name for file in path.iterdir()] == ["log"]


def test_downloading_again_fetches_only_what_changed_and_keeps_a_persons_notes(session, cluster, tmp_path):
    path = session.download(JOB, tmp_path)
    (path / "notes.txt").write_text("mine")
    cluster.files["summary.json"] = b'{"x":1}'
    cluster.calls.clear()
    assert session.download(JOB, tmp_path) == path
    assert offsets(cluster) == [("summary.json", 0)]
    assert (path / "summary.json").read_bytes() == b'{"x":1}'
    assert (path / "notes.txt").read_text() == "mine"


def test_a_manifest_the_new_primary_does_not_know_is_made_again(session, cluster, tmp_path):
    def moved_on():
        cluster.generation = 2

    cluster.before.append(("download_file", moved_on))
    assert session.download(JOB, tmp_path).is_dir()
    assert cluster.names("prepare_download") == ["server1", "server1"]


def test_damage_is_noticed_and_given_up_on(session, cluster, tmp_path):
    cluster.files = {"a": b"good"}
    network = session._network
    dial = network.dial

    def damaging(server):
        stub, channel = dial(server)
        stub.download_file = lambda request, timeout=None: iter([b"evil"[request.offset :]])
        return stub, channel

    network.dial = damaging
    with pytest.raises(Corrupt, match="a: what arrived"):
        session.download(JOB, tmp_path)
    assert not (tmp_path / JOB).exists()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a\0b", "a\\..\\b"])
def test_a_server_cannot_write_outside_the_download(tmp_path, name):
    with pytest.raises(ProtocolError):
        local_path(tmp_path, name)


def test_a_folder_that_cannot_be_written_is_named(session, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="file"):
        session.download(JOB, tmp_path / "file")
