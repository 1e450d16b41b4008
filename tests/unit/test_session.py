"""Follow the primary: what is asked again, what must never happen twice, and when to give up."""

import json

import pytest

from fedhelm.admin.follow import told
from fedhelm.admin.session import Session
from fedhelm.errors import BadCertificate, DeadlineExceeded, JobNotFound, NoPrimary, Refused, Unreachable
from tests.fakes.admin_network import FakeClock, FakeCluster, FakeNetwork, make_kit

JOB = "k7m3tq4w2zpx"


@pytest.fixture
def cluster():
    return FakeCluster(FakeClock())


@pytest.fixture
def open_session(cluster, tmp_path):
    notes = []

    def make():
        session = Session(
            make_kit(tmp_path),
            network=FakeNetwork(cluster),
            clock=cluster.clock,
            notice=notes.append,
            pause=cluster.clock.pause,
        )
        session.notes = notes
        return session

    return make


@pytest.fixture
def session(open_session):
    return open_session()


def test_nothing_is_dialled_before_the_first_call(session, cluster):
    assert cluster.channels == []
    assert session.signed_in is None


def test_one_login_serves_many_calls(session, cluster):
    session.jobs()
    session.jobs()
    assert cluster.names("login") == ["server1"]
    assert session.signed_in.server == "server1"


def test_a_certificate_that_counts_no_longer_is_told_once_and_the_next_call_logs_in_anew(session, cluster):
    """By then another kit may lie there."""

    def refuse():
        raise BadCertificate("the certificate of project_admin admin@nvidia.com was revoked on 2026-11-23")

    session.jobs()
    cluster.before.append(("list_jobs", refuse))
    with pytest.raises(BadCertificate, match="was revoked"):
        session.jobs()
    assert cluster.channels[0].closed
    assert session.jobs() == []
    assert cluster.names("login") == ["server1", "server1"]


def test_a_call_that_has_no_time_left_does_not_cost_the_others_their_connection(session, cluster):
    session.jobs()
    cluster.hanging.add("server1")
    with pytest.raises(DeadlineExceeded, match=r"not done within 0\.3 s: server1 did not answer"):
        session.jobs(timeout=0.3)
    assert not cluster.channels[-1].closed
    cluster.hanging.clear()
    session.jobs()
    assert cluster.names("login") == ["server1"]
    cluster.hanging.add("server1")
    with pytest.raises(DeadlineExceeded, match="not done within 2 s"):
        session.jobs(timeout=2)
    assert cluster.channels[0].closed, "one that had its time and got no answer is given up"


def test_a_read_is_asked_again_at_the_new_primary(session, cluster):
    session.jobs()
    cluster.kill("server1")
    cluster.fail_over("server2")
    assert session.jobs() == []
    assert cluster.names("list_jobs") == ["server1", "server2"]
    assert session.signed_in.epoch == 2
    assert any(note.kind == "following" for note in session.notes)
    assert cluster.channels[0].closed


def test_an_answer_that_was_lost_after_the_submit_is_one_job(session, cluster, tmp_path):
    def dies():
        cluster.kill("server1")
        cluster.fail_over("server2")

    cluster.after.append(("submit_job", dies))
    handle = session.submit(tmp_path)
    sent = [request for _, method, request in cluster.calls if method == "submit_job"]
    assert cluster.names("submit_job") == ["server1", "server2"]
    assert len({request.request_id for request in sent}) == 1
    assert len({request.job for request in sent}) == 1
    assert list(cluster.jobs) == [handle.job_id]
    assert sent[0].bundle.owner == f"jobs/{handle.job_id}/bundle"
    signed = [request.submission.decode() for request in sent]
    assert signed == [f"signed:{handle.job_id} hello {'d' * 64} {n}" for n in (1, 2)], "its own digest, and afresh"


def test_a_line_that_breaks_during_the_upload_uploads_under_the_same_owner(session, cluster, tmp_path):
    cluster.after.append(("upload", lambda: None))
    session.submit(tmp_path)
    owners = [request for _, method, request in cluster.calls if method == "upload"]
    assert len(owners) == 2
    assert len(set(owners)) == 1
    assert len(cluster.jobs) == 1


def test_an_upload_that_is_repeated_counts_from_the_beginning(session, cluster, tmp_path):
    cluster.after.append(("upload", lambda: None))
    seen = []
    session.submit(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(6, 6), (6, 6)]


def test_two_submits_are_two_jobs(session, cluster, tmp_path):
    session.submit(tmp_path)
    session.submit(tmp_path)
    assert len(cluster.jobs) == 2


def test_an_abort_repeats_its_request_id(session, cluster):
    cluster.jobs[JOB] = "RUNNING"
    cluster.after.append(("abort_job", lambda: None))
    assert session.abort(JOB[:4]).status == "FINISHED:ABORTED"
    sent = [request for _, method, request in cluster.calls if method == "abort_job"]
    assert len(sent) == 2
    assert sent[0].request_id == sent[1].request_id
    assert sent[0].job == JOB


def test_without_a_primary_it_waits_and_says_so(session, cluster):
    cluster.leader = None
    cluster.clock.at.append((1003.0, lambda: cluster.fail_over("server2")))
    session.jobs()
    electing = [note for note in session.notes if note.kind == "electing"]
    assert electing[-1].seconds == pytest.approx(2.9, abs=0.2)
    assert electing[-1].text.startswith("electing… ")


def test_the_deadline_covers_the_whole_election(session, cluster):
    cluster.leader = None
    with pytest.raises(DeadlineExceeded, match="not done within 5 s"):
        session.jobs(timeout=5)
    assert cluster.clock.now == pytest.approx(1005, abs=0.01)


def test_nobody_at_all_is_unreachable_long_before_the_deadline(session, cluster):
    cluster.overseer_up = False
    cluster.down |= {"server1", "server2"}
    with pytest.raises(Unreachable) as caught:
        session.jobs(timeout=60)
    assert caught.value.code == "UNREACHABLE"
    assert cluster.clock.now < 1003


def test_nobody_at_all_names_everyone_who_was_asked(session, cluster):
    cluster.overseer_up = False
    cluster.down |= {"server1", "server2"}
    with pytest.raises(Unreachable) as caught:
        session.jobs()
    assert caught.value.message == (
        "nobody answers: overseer at 127.0.0.1:8443 (no overseer answers), "
        "server1 at 127.0.0.1:8003 (cannot be reached), server2 at 127.0.0.1:9003 (cannot be reached)"
    )


def test_a_reason_that_all_share_is_said_once():
    assert told([("overseer at a:1", "refused"), ("server1 at a:2", "server1 cannot be reached: refused")]) == (
        "overseer at a:1, server1 at a:2: refused"
    )


def test_a_time_out_reaches_the_overseer(session, cluster):
    session.primary(timeout=1.5)
    session.recent_events(timeout=0.5)
    assert session._network.overseer().timeouts == [1.5, 0.5]
    session.jobs(timeout=3)
    assert session._network.overseer().timeouts[-1] == pytest.approx(3, abs=0.1)


def test_events_carry_their_facts(session):
    (event,) = session.recent_events()
    assert (event.id, event.kind, event.data) == (7, "grant", {"epoch": 1})


def test_without_an_overseer_every_server_is_tried(session, cluster):
    cluster.overseer_up = False
    cluster.fail_over("server2")
    session.jobs()
    assert cluster.names("list_jobs") == ["server2"]


def test_without_an_overseer_an_election_among_standbys_is_waited_for(session, cluster):
    cluster.overseer_up = False
    cluster.leader = None
    cluster.clock.at.append((1004.0, lambda: cluster.fail_over("server2")))
    session.jobs()
    assert cluster.names("list_jobs") == ["server2"]


def test_an_overseer_that_still_names_the_dead_one_is_asked_again(session, cluster):
    session.jobs()
    cluster.kill("server1")
    cluster.overseer_names = "server1"

    def noticed():
        cluster.overseer_names = None
        cluster.fail_over("server2")

    cluster.clock.at.append((1004.0, noticed))
    session.jobs()
    assert cluster.names("list_jobs") == ["server1", "server2"]


def test_a_server_that_hangs_costs_one_attempt_not_the_deadline(session, cluster):
    session.jobs()
    cluster.hanging.add("server1")
    cluster.fail_over("server2")
    session.jobs(timeout=30)
    assert cluster.clock.now < 1006


def test_an_older_epoch_than_one_already_seen_is_rejected(session, cluster):
    cluster.epoch = 7
    session.jobs()
    cluster.epoch = 6
    session._follower.drop(session._follower.current)
    cluster.clock.at.append((1002.0, lambda: setattr(cluster, "epoch", 8)))
    session.jobs()
    assert session.signed_in.epoch == 8


def test_a_login_at_a_standby_that_accepts_it_ends_at_the_primary(session, cluster):
    cluster.standby_logins = True
    cluster.overseer_names = "server2"

    def noticed():
        cluster.overseer_names = None

    cluster.clock.at.append((1000.3, noticed))
    session.jobs()
    assert cluster.names("list_jobs") == ["server1"]


def test_the_next_process_goes_to_the_last_primary_without_asking(open_session, cluster):
    open_session().jobs()
    cluster.overseer_up = False
    second = open_session()
    second.jobs()
    assert not second.notes
    assert cluster.names("login") == ["server1", "server1"]


def test_a_remembered_primary_that_was_deposed_is_not_believed(open_session, cluster, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "primary.json").write_text(json.dumps({"server": "server2", "epoch": 5}))
    cluster.epoch = 6
    open_session().jobs()
    assert json.loads((tmp_path / "run" / "primary.json").read_text()) == {"server": "server1", "epoch": 6}


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"server": "server9", "epoch": 1}', '{"server": "server1", "epoch": "x"}']
)
def test_a_remembered_primary_that_does_not_read_is_ignored(open_session, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "primary.json").write_text(content)
    assert open_session().jobs() == []


def test_wait_goes_on_across_a_failover(session, cluster):
    cluster.jobs[JOB] = "RUNNING"

    def dies():
        cluster.kill("server1")
        cluster.fail_over("server2")
        cluster.jobs[JOB] = "FINISHED:FAILED"

    cluster.after.append(("watch_job", dies))
    seen = []
    ended = session.wait(JOB[:5], changed=lambda state: seen.append((state.round, state.status)))
    assert ended.status == "FINISHED:FAILED"
    assert not ended.summary.succeeded
    assert seen[0] == (1, "RUNNING")


def test_wait_gives_up_at_its_deadline(session, cluster):
    cluster.jobs[JOB] = "RUNNING"
    cluster.before += [("show_job", lambda: cluster.clock.pause(4)) for _ in range(9)]
    with pytest.raises(DeadlineExceeded):
        session.wait(JOB, timeout=10)


def test_get_active_never_waits(session, cluster):
    cluster.leader = None
    with pytest.raises(NoPrimary):
        session.primary()
    cluster.overseer_up = False
    with pytest.raises(Unreachable):
        session.primary()
    assert cluster.clock.now == 1000


def test_promote_returns_when_the_target_leads(session, cluster):
    leads = session.promote("server2")
    assert (leads.name, leads.epoch) == ("server2", 2)
    assert list(cluster.requests.values()) == ["server2"]


def test_a_promotion_that_was_rolled_back_is_refused(session, cluster):
    cluster.promotes = False
    with pytest.raises(Refused, match="server1 leads again"):
        session.promote("server2")


@pytest.mark.parametrize("reference", ["k7m", "../etc", "", "k7m3tq4w2zpxx", "K7M3TQ4W2ZPX"])
def test_what_cannot_be_a_job_is_not_found_before_anything_is_sent(session, cluster, reference):
    with pytest.raises(JobNotFound):
        session.job(reference)
    assert cluster.calls == []


def test_a_job_that_the_server_does_not_know(session):
    with pytest.raises(JobNotFound):
        session.job("zzzz")
