"""What an operator asks of a session: the same request id whatever breaks, and an end when the system is down."""

import pytest

from fedhelm.admin.session import Session
from fedhelm.errors import KitError, NoPrimary, Refused, Unreachable
from fedhelm.security.pki import CertificateAuthority
from fedhelm.wire.overseer_answers import HandedOver
from fedhelm.wire.overseer_api import RevocationsView
from tests.fakes.admin_network import FakeClock, FakeCluster, FakeNetwork, make_kit
from tests.support.kits import ADMIN, make_kits
from tests.support.revoking import signed_list

JOB = "k7m3tq4w2zpx"


@pytest.fixture
def cluster():
    return FakeCluster(FakeClock())


@pytest.fixture
def session(cluster, tmp_path):
    network = FakeNetwork(cluster)
    with Session(make_kit(tmp_path), network=network, clock=cluster.clock, pause=cluster.clock.pause) as session:
        yield session


def ids(cluster, method):
    return {request.request_id for _, called, request in cluster.calls if called == method}


def test_delete_job_is_one_request_across_a_failover(session, cluster):
    cluster.jobs[JOB] = "FINISHED:COMPLETED"

    def dies():
        cluster.kill("server1")
        cluster.fail_over("server2")

    cluster.after.append(("delete_job", dies))
    assert session.delete_job(JOB[:5]) == JOB
    assert cluster.names("delete_job") == ["server1", "server2"]
    assert len(ids(cluster, "delete_job")) == 1
    assert cluster.jobs == {}


def test_operate_is_one_request_across_a_failover(session, cluster):
    def dies():
        cluster.kill("server1")
        cluster.fail_over("server2")

    cluster.after.append(("operate", dies))
    told = session.operate_sites("restart", ("site-1",), reason="new driver")
    assert (told.told, told.missed) == (("site-1", "site-2"), ("site-3",))
    assert len(ids(cluster, "operate")) == 1
    request = cluster.calls[-1][2]
    assert (request.action, list(request.sites), request.server, request.reason) == (
        "restart",
        ["site-1"],
        False,
        "new driver",
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda session: session.pause_failover("upgrade"), ("pause",)),
        (lambda session: session.resume_failover(), ("resume",)),
        (lambda session: session.remove_server("server2", reason="sold"), ("remove", "server2")),
    ],
)
def test_overseers_are_told_with_one_request_id_until_one_answers(session, cluster, call, said):
    cluster.overseer_hiccups = 2
    call(session)
    assert len(cluster.operations) == 1
    assert cluster.operations[0][: len(said)] == said
    cluster.overseer_up = False
    with pytest.raises(Unreachable):
        call(session)
    assert len(cluster.operations) == 2


def test_explain_and_system(session, cluster):
    cluster.paused = True
    found = session.explain("server2")
    assert (found.candidate, found.verdict, found.next) == (False, "it lags", "server1")
    assert [(one.name, one.ok, one.text) for one in found.checks] == [("log", False, "12 records behind")]
    system = session.system()
    assert (system.paused, system.paused_by, system.reason, system.down) == (True, "admin@nvidia.com", "upgrade", False)


def test_a_restarted_primary_is_followed_by_another_epoch(session, cluster):
    leads = session.restart_primary()
    assert (leads.name, leads.epoch) == ("server2", 2)
    assert cluster.calls[-1][2].server is True


def test_shutdown_tells_sites_first_and_says_what_went(session, cluster):
    ended = session.shutdown_system(reason="the night")
    assert (ended.sites, ended.sites_left) == (("site-1", "site-2"), ("site-3",))
    assert (ended.servers, ended.servers_left) == (("server1", "server2"), ())
    assert not ended.complete, "site-3 was not connected"
    assert cluster.operations[0][0] == "shutdown"
    assert cluster.names("operate") == ["server1"]


def test_an_order_to_sites_is_signed_anew_at_each_try_and_one_to_a_server_is_not(session, cluster):
    def dies():
        cluster.kill("server1")
        cluster.fail_over("server2")

    cluster.after.append(("operate", dies))
    session.operate_sites("restart", ("site-1", "site-2"), reason="new driver" + "!" * 1000)
    request = cluster.calls[-1][2]
    assert len(request.reason) == 500
    said = f"signed:{request.request_id} restart site-1 site-2 {request.reason}"
    assert request.statement.decode() == f"{said} 2", "the second try has a signature of its own"
    session.restart_primary()
    assert cluster.calls[-1][2].statement == b""


def test_sites_that_refuse_are_told_with_their_reasons(session, cluster):
    cluster.refusing = {"site-2": "site site-2, org_admin olga@a.org: operate needs o:site"}
    cluster.deaf = {"site-2"}
    told = session.operate_sites("restart", ("@ALL",))
    assert (told.told, told.missed, told.refused) == (("site-1",), ("site-3",), cluster.refusing)
    ended = session.shutdown_system()
    assert (ended.sites, ended.sites_left) == (("site-1",), ("site-2", "site-3"))
    assert ended.sites_refused == cluster.refusing


def test_shutdown_names_what_does_not_go(session, cluster):
    cluster.deaf = {"site-2", "server1"}
    ended = session.shutdown_system()
    assert ended.sites_left == ("site-2", "site-3")
    assert ended.servers_left == ("server1",)
    assert 30 <= cluster.clock.now - 1000 < 32, "each has its 15 s"


def test_shutdown_while_nobody_leads_takes_the_servers_and_leaves_the_sites(session, cluster):
    cluster.leader = None
    ended = session.shutdown_system()
    assert ended.sites_left == ("site-1", "site-2")
    assert ended.servers == ("server1", "server2")
    assert cluster.names("operate") == []


def test_a_system_that_was_shut_down_is_not_waited_for(session, cluster):
    session.jobs()
    session.shutdown_system()
    began = cluster.clock.now
    with pytest.raises(NoPrimary, match="the system is down"):
        session.jobs(timeout=None)
    assert cluster.clock.now - began < 1


def test_a_server_that_the_kit_does_not_know_is_dialled_where_the_overseer_says(session, cluster, tmp_path):
    cluster.extra_servers = ("server3",)
    cluster.fail_over("server3")
    assert session.sign_in().server == "server3"
    cluster.overseer_up = False
    second = Session(make_kit(tmp_path), network=FakeNetwork(cluster), clock=cluster.clock, pause=cluster.clock.pause)
    (tmp_path / "run" / "primary.json").unlink()
    assert second.sign_in().server == "server3", "its address was kept for when no overseer answers"


def test_who_waits_for_a_primary_is_told_that_failover_is_paused(session, cluster):
    notes = []
    session._follower.notice = notes.append
    cluster.leader, cluster.paused = None, True
    cluster.clock.at.append((cluster.clock.now + 2, cluster.fail_over))
    session.jobs()
    assert {note.text.rpartition("… ")[0] for note in notes if note.kind == "electing"} == {
        "no primary, failover is paused"
    }


def test_every_overseer_says_what_it_made_of_the_list(session, cluster):
    away = Unreachable("overseer2 does not answer")
    cluster.overseers_said = (
        HandedOver("overseer", RevocationsView(version=3, certificates=1, taken=True)),
        HandedOver("overseer2", error=away),
    )
    said = session.revoke_certificates(b"list")
    assert [(one.overseer, one.taken, one.error) for one in said] == [
        ("overseer", True, None),
        ("overseer2", False, away),
    ]
    assert cluster.handed_over == [b"list"]


def test_a_list_that_no_overseer_takes_is_an_error_and_a_reason_says_more_than_silence(session, cluster):
    refused = Refused("version 4 is in force")
    cluster.overseers_said = (HandedOver("o1", error=Unreachable("silent")), HandedOver("o2", error=refused))
    with pytest.raises(Refused, match="version 4"):
        session.revoke_certificates(b"list")
    cluster.overseers_said = cluster.overseers_said[:1]
    with pytest.raises(Unreachable):
        session.revoke_certificates(b"list")


def test_a_list_is_read_with_the_root_of_the_kit(cluster, tmp_path):
    authority = CertificateAuthority.create("poc")
    kits = make_kits(tmp_path, authority=authority, cluster="c1")
    with Session(kits[ADMIN], network=FakeNetwork(cluster), clock=cluster.clock, pause=cluster.clock.pause) as session:
        found = session.read_revocations(signed_list(authority, 2, kits["server1"], kits["site-1"]))
        assert (found.version, found.certificates, found.own) == (2, 2, False)
        assert found.names == ("site site-1", "server server1")
        assert session.read_revocations(signed_list(authority, 3, kits[ADMIN])).own
        with pytest.raises(KitError, match="not signed"):
            session.read_revocations(signed_list(CertificateAuthority.create("poc"), 3, kits[ADMIN]))
