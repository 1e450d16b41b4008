"""The demo's decisions, and what it refuses before anything is started."""

from __future__ import annotations

import io
import json
import socket
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedhelm.admin.models import Job, JobDetail, SiteStatus
from fedhelm.errors import FedhelmError
from fedhelm.persist.record import By, Record
from fedhelm_console.render import Style
from fedhelm_lab import demo
from fedhelm_lab.demo_acts import free_base_port
from fedhelm_lab.demo_stage import Stage
from fedhelm_lab.demo_story import (
    Evidence,
    Progress,
    Round,
    count_calls,
    count_contributions,
    followed_after,
    moment_to_kill,
    rounds_of,
    rounds_table,
)


def state(number, *statuses, metrics=None, status="RUNNING"):
    sites = tuple(SiteStatus(f"site-{k}", word) for k, word in enumerate(statuses, 1))
    text = "" if metrics is None else json.dumps(metrics)
    return JobDetail(Job("2ocd232j527y", "hello-pt-tb", status, "", 1.0), number, 5, sites, "", "", text)


class TestMomentToKill:
    def test_one_site_has_contributed_and_another_trains(self):
        moment = moment_to_kill(state(2, "DONE", "TRAINING"))
        assert (moment.round, moment.done, moment.busy) == (2, ("site-1",), ("site-2",))

    @pytest.mark.parametrize(
        "early",
        [
            state(0, "WAITING", "WAITING"),
            state(1, "DONE", "TRAINING"),
            state(2, "TRAINING", "TRAINING"),
            state(2, "DONE", "DONE"),
            state(2, "WAITING", "DONE"),
        ],
    )
    def test_not_before(self, early):
        assert moment_to_kill(early) is None

    def test_a_lone_site_is_interrupted_while_it_trains(self):
        assert moment_to_kill(state(2, "WAITING")) is None
        assert moment_to_kill(state(2, "TRAINING")).busy == ("site-1",)

    @pytest.mark.parametrize(
        ("sites", "told"),
        [
            (("DONE", "TRAINING"), "round 2: site-1 has contributed, site-2 still trains"),
            (("TRAINING",), "round 2: site-1 still trains"),
            (
                ("DONE", "DONE", "DONE", "TRAINING", "TRAINING"),
                "round 2: 3 sites have contributed, site-4 and site-5 still train",
            ),
        ],
    )
    def test_it_is_told_in_a_sentence(self, sites, told):
        assert moment_to_kill(state(2, *sites)).sentence() == told

    def test_later_where_the_moment_was_missed(self):
        assert moment_to_kill(state(3, "WAITING", "WAITING")).round == 3

    def test_never_when_the_job_is_over(self):
        assert moment_to_kill(state(5, "DONE", "DONE", status="FINISHED:COMPLETED")) is None


class TestProgress:
    def told(self, states):
        progress = Progress()
        return [found for one in states if (found := progress.closed(one)) is not None]

    def test_each_round_is_told_once_whether_or_not_the_next_one_is_open(self):
        train = {"train_loss": 0.4}
        states = [
            state(1, "WAITING"),
            state(1, "DONE", metrics=train),
            state(1, "WAITING", metrics={"accuracy": 0.9}),
            state(2, "WAITING", metrics={"accuracy": 0.9}),
            state(2, "DONE", metrics=train),
            state(3, "WAITING", metrics={"accuracy": 0.95}),
            state(3, "DONE", metrics=train),
            state(3, "WAITING", metrics={"accuracy": 0.97}, status="FINISHED:COMPLETED"),
        ]
        assert self.told(states) == [(1, 0.9), (2, 0.95), (3, 0.97)]

    def test_a_round_that_nobody_saw_does_not_shift_the_numbers(self):
        states = [
            state(1, "WAITING", metrics={"accuracy": 0.9}),
            state(4, "WAITING", metrics={"accuracy": 0.95}),
            state(4, "WAITING", metrics={"accuracy": 0.96}),
        ]
        assert self.told(states) == [(1, 0.9), (3, 0.95), (4, 0.96)]


def record(kind, *items, seq=1):
    return Record(
        seq=seq, epoch=1, by=By("server1", "a"), nonce="n", prev="p", kind=kind, body={"items": list(items)}, sha256="s"
    )


def item(number, kind, site, job="2ocd232j527y"):
    return {"job": job, "round": number, "kind": kind, "site": site}


LOG = """\
2026-11-22T16:12:00.100Z site-1 INFO following server1, epoch 1
2026-11-22T16:12:00.200Z site-1 INFO job 2ocd232j527y: train of round 2 answered by the script
2026-11-22T16:12:00.250Z site-1 INFO job otherjob2222: train of round 2 answered by the script
2026-11-22T16:12:00.937Z site-1 INFO following server2, epoch 2
not a line of the log
2026-11-22T16:12:02.000Z site-1 INFO job 2ocd232j527y: evaluate of round 2 answered by the script
"""


class TestEvidence:
    def test_contributions_are_counted_from_the_log(self):
        records = [
            record("contribution", item(1, "train", "site-1"), item(1, "train", "site-2")),
            record("metrics", item(1, "train", "site-1")),
            record("contribution", item(1, "train", "site-1"), item(1, "train", "site-1", job="other")),
        ]
        found = count_contributions(records, "2ocd232j527y")
        assert found == {(1, "train", "site-1"): 2, (1, "train", "site-2"): 1}

    def test_the_scripts_answers_are_counted_from_a_sites_log(self):
        assert count_calls("site-1", LOG, "2ocd232j527y") == {(2, "train", "site-1"): 1, (2, "evaluate", "site-1"): 1}

    def test_when_a_site_followed_is_taken_from_its_log(self):
        killed = datetime(2026, 11, 22, 16, 12, 0, 722_000, tzinfo=UTC)
        assert followed_after(LOG, 2, killed) == pytest.approx(0.215)
        assert followed_after(LOG, 3, killed) is None

    def evidence(self, recorded=(), called=()):
        once = Counter(
            (number, kind, f"site-{k}") for number in (1, 2) for kind in ("train", "evaluate") for k in (1, 2)
        )
        return Evidence(("site-1", "site-2"), 2, once + Counter(recorded), once + Counter(called))

    def test_everything_exactly_once(self):
        evidence = self.evidence()
        evidence.check()
        assert evidence.nothing_lost
        assert evidence.verdict().startswith("Nothing was lost")
        assert max(len(line) for line in evidence.verdict().split("\n")) <= 77

    @pytest.mark.parametrize("part", ["recorded", "called"])
    def test_twice_is_not_once(self, part):
        evidence = self.evidence(**{part: [(2, "train", "site-2")]})
        assert not evidence.nothing_lost
        assert "train of round 2 by site-2" in evidence.verdict()
        with pytest.raises(FedhelmError, match="train of round 2 by site-2"):
            evidence.check()

    def test_what_is_missing_is_named(self):
        evidence = self.evidence()
        del evidence.recorded[1, "evaluate", "site-1"]
        with pytest.raises(FedhelmError, match="evaluate of round 1 by site-1: recorded 0 times, done 1 times"):
            evidence.check()

    def test_table_of_rounds(self):
        text = rounds_table([Round(1, 0.936, "server1", 1), Round(2, 0.9644, "server2", 2)], self.evidence())
        assert text.split("\n")[1].split() == ["1", "93.6%", "server1,", "epoch", "1", "site-1", "1,", "site-2", "1"]
        assert max(map(len, text.split("\n"))) <= 77

    def test_rounds_are_those_that_were_evaluated(self):
        summary = {
            "rounds": [
                {"round": 1, "kind": "train", "metrics": {"train_loss": 1}, "primary": "server1", "epoch": 1},
                {"round": 1, "kind": "evaluate", "metrics": {"accuracy": 0.5}, "primary": "server2", "epoch": 2},
            ]
        }
        assert rounds_of(summary) == [Round(1, 0.5, "server2", 2)]


class TestStage:
    def test_colours_only_where_the_style_has_them(self):
        for colour in (True, False):
            stream = io.StringIO()
            Stage(stream, Style(colour=colour)).command("fl server1·e1 ▸", "list_sp", "# a note")
            assert ("\x1b[" in stream.getvalue()) is colour

    def test_ascii(self):
        stream = io.StringIO()
        stage = Stage(stream, Style(ascii=True))
        stage.command("fl server1·e1 ▸", "list_sp")
        stage.say("electing…\nsecond line")
        assert stream.getvalue().isascii()
        assert stream.getvalue().endswith("   electing...\n   second line\n")

    def test_muted_events_are_dropped_and_the_rest_is_written(self):
        stream = io.StringIO()
        stage = Stage(stream, Style())
        stage.event("one")
        stage.mute()
        stage.event("two")
        stage.say("three")
        assert stream.getvalue() == "   one\n   three\n"


def test_free_base_port_is_free_and_below_the_kernels_own():
    base = free_base_port(5)
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert 10_240 <= base <= base + 4 < lowest or lowest < 11_240
    for port in range(base, base + 5):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))


class TestRefusals:
    def run(self, capsys, *argv):
        status = demo.main([*argv, "-o", "json"])
        out = json.loads(capsys.readouterr().out)
        assert out["status"] == "error"
        return status, out["error"]

    def test_unknown_option(self, capsys):
        status, error = self.run(capsys, "--nonsense")
        assert (status, error["code"]) == (2, "USAGE")

    def test_folder_that_is_not_empty_is_left_alone(self, capsys, tmp_path):
        (tmp_path / "mine").write_text("x")
        status, error = self.run(capsys, "-w", str(tmp_path))
        assert (status, error["code"]) == (1, "WORKSPACE_EXISTS")
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_folder_that_is_a_file(self, capsys, tmp_path):
        (tmp_path / "file").write_text("x")
        status, error = self.run(capsys, "-w", str(tmp_path / "file"))
        assert status == 2
        assert "file" in error["message"]

    def test_no_sites(self, capsys, tmp_path):
        status, error = self.run(capsys, "--sites", "0", "-w", str(tmp_path / "new"))
        assert (status, error["code"]) == (2, "BAD_INPUT")
        assert not (tmp_path / "new").exists()

    def test_chosen_port_that_is_taken(self, capsys, tmp_path):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            status, error = self.run(capsys, "--base-port", str(port), "-w", str(tmp_path / "new"))
        assert (status, error["code"]) == (1, "PORT_TAKEN")
        assert str(port) in error["message"]
        assert not (tmp_path / "new").exists()


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as done:
        demo.main(["-h"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--sites", "--base-port", "--workspace", "--keep", "-o"))
