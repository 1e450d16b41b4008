"""Text for people, at 80 columns, in ASCII, and narrow."""

import re
from dataclasses import replace

import pytest

from fedhelm.admin.models import (
    Event,
    Failover,
    Job,
    JobDetail,
    Primary,
    Server,
    SignedIn,
    Site,
    SiteStatus,
    Status,
    System,
)
from fedhelm_console import prompt, render
from fedhelm_console.news import Item
from fedhelm_console.render import Style
from fedhelm_console.view import View
from tests.fakes.admin_session import EXPLAINED, FAILOVER, JOBS

PLAIN = Style(80)
ASCII = Style(80, ascii=True)


def test_jobs_at_80_columns():
    assert render.jobs(JOBS, PLAIN) == (
        "JOB           NAME         STATUS                SUBMITTED            TOOK\n"
        "k7m3tq4w2zpx  hello-pt-tb  ▶ RUNNING             2026-11-22 12:03:41  14.2 s\n"
        "k7m3aaaaaaaa  hello-numpy  ✓ FINISHED:COMPLETED  2026-11-22 11:00:00  2.5 s\n"
        "k6aaaaaaaaaa  broken       ✗ FINISHED:FAILED     2026-11-21 11:00:00  1 h 01 m"
    )


def test_jobs_in_ascii():
    text = render.jobs(JOBS, ASCII)
    assert text.isascii()
    assert "> RUNNING" in text
    assert "x FINISHED:FAILED" in text


def test_a_long_name_is_cut_and_nothing_else():
    long = Job("k7m3tq4w2zpx", "n" * 100, "FINISHED:COMPLETED", "2026-11-22T12:03:41Z", 1.0)
    lines = render.jobs([long], PLAIN).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" in lines[1]
    assert lines[1].endswith("2026-11-22 12:03:41  1.0 s")


def test_no_jobs():
    assert render.jobs([], PLAIN) == "no jobs"


def test_colours_stand_beside_words_and_only_where_wanted():
    text = render.jobs(JOBS, Style(80, colour=True))
    assert "\x1b[31m✗ FINISHED:FAILED" in text
    assert "\x1b" not in render.jobs(JOBS, PLAIN)


def test_one_job():
    detail = JobDetail(
        JOBS[2], 3, 5, (SiteStatus("site-1", "FAILED"),), "site-1: ValueError", "Traceback:\n  boom\n", '{"loss": 0.25}'
    )
    assert render.job_detail(detail, PLAIN) == (
        "job        k6aaaaaaaaaa\n"
        "name       broken\n"
        "status     ✗ FINISHED:FAILED\n"
        "submitted  2026-11-21 11:00:00 by lead@nvidia.com\n"
        "took       1 h 01 m\n"
        "round      3 of 5\n"
        "sites      site-1 ✗ FAILED\n"
        "metrics    loss 0.25\n"
        "reason     site-1: ValueError\n"
        "\n"
        "Traceback:\n"
        "  boom"
    )


@pytest.mark.parametrize("broken", ["{", "[1]", '{"a": "text"}'])
def test_metrics_that_do_not_read_are_left_out(broken):
    assert "metrics" not in render.job_detail(JobDetail(JOBS[0], 0, 5, (), "", "", broken), PLAIN)


def test_servers_sites_status_history():
    servers = [Server("server1", "ACTIVE", 4, 120, 0.21), Server("server2", "DOWN", None)]
    assert render.servers(servers, PLAIN).splitlines()[1:] == [
        "server1  ● ACTIVE  4      -          -    0.2 s",
        "server2  ✗ DOWN    -      ✗ no       -    -",
    ]
    assert "site-1  ● CONNECTED  k7m3" in render.sites([Site("site-1", True, ("k7m3",))], PLAIN)
    assert "1 running, 2 waiting" in render.status(Status("server1", "ACTIVE", 1, 3, (), 1, 2), PLAIN)
    assert "0.4 s  -     killed" in render.failovers(
        [Failover(2, "server2", "killed", "2026-11-22T12:00:00Z", 0.41)], PLAIN
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.04, "0.0 s"), (99.94, "99.9 s"), (100, "1 m 40 s"), (3599.6, "1 h 00 m"), (90000, "1 d 01 h")],
)
def test_durations(seconds, text):
    assert render.duration(seconds) == text


UP = View(
    "up", "server2", 4, (Server("server1", "STANDBY", None), Server("server2", "ACTIVE", 4)), 3, 3, 1, 2, tuple(JOBS)
)


def shown(view, style=PLAIN):
    return "".join(text for _, text in prompt.prompt(view, style))


def test_prompt():
    assert shown(UP) == "fl server2·e4 ▸ "
    assert shown(View("electing", "server2", 4)) == "fl server2·e4 (electing…) ▸ "
    assert shown(View("electing")) == "fl (electing…) ▸ "
    assert shown(View()) == "fl no primary ▸ "
    assert shown(UP, ASCII) == "fl server2-e4 > "
    colours = [prompt.prompt(View(mode, "s", 1), Style(80, colour=True))[1][0] for mode in ("up", "electing", "none")]
    assert colours == ["ansigreen", "ansiyellow", "ansired"]


def test_toolbar_loses_parts_in_order_and_never_primary_and_epoch():
    wide = prompt.toolbar(UP, Style(120))
    assert wide == " ● server2 e4 │ standby server1 │ sites 3/3 │ jobs 1▶ 2… │ hello-pt-tb k7m3tq │ F1 help  F3 events"
    lengths = {}
    for width in range(12, 120):
        text = prompt.toolbar(UP, Style(width))
        assert len(text) <= width
        assert "server2 e4" in text if width >= 13 else True
        lengths[width] = [part for part in ("F1", "hello", "standby", "jobs", "sites") if part in text]
    assert lengths[90] == ["hello", "standby", "jobs", "sites"]
    assert lengths[60] == ["standby", "jobs", "sites"]
    assert lengths[40] == ["jobs", "sites"]
    assert lengths[30] == ["sites"]
    assert lengths[20] == []


def test_toolbar_without_primary_or_overseer():
    assert prompt.toolbar(View(), Style(80)) == " ● no primary │ F1 help  F3 events"
    assert "electing, last server2 e4" in prompt.toolbar(View("electing", "server2", 4), Style(80))
    assert "(no overseer)" in prompt.toolbar(View("up", "server2", 4), Style(80))
    assert prompt.toolbar(UP, Style(120, ascii=True)).isascii()


def test_news_lines():
    item = Item("2026-11-22T12:03:41.120Z", "good", "failover server1 → server2  epoch 4", "(child exited)", moved=True)
    assert prompt.news_line(item, PLAIN, "2 jobs resumed")[8:] == (
        " ▲ failover server1 → server2  epoch 4  2 jobs resumed  (child exited)"
    )
    narrow = prompt.news_line(item, Style(60), "2 jobs resumed").splitlines()
    assert narrow[0][8:] == " ▲ failover server1 → server2  epoch 4  2 jobs resumed"
    assert narrow[1] == "           (child exited)"
    assert prompt.news_line(item, ASCII).isascii()
    assert prompt.news_line(Item("now", "bad", "\x1b]2;owned\x07"), PLAIN) == "--:--:-- ▼  ]2;owned "


@pytest.mark.parametrize(("jobs", "text"), [(0, ""), (1, "1 job resumed"), (2, "2 jobs resumed")])
def test_how_many_jobs_go_on(jobs, text):
    assert prompt.resumed(jobs) == text


def test_the_summary_of_a_login():
    found = SignedIn("admin@nvidia.com", "project_admin", "demo", "server1", 4, 1, 2, 2, 0)
    view = View("up", "server1", 4, sites_up=2, sites=2, all_sites=2)
    assert prompt.signed_in(found, 1, view, Style(200)) == (
        "Signed in as admin@nvidia.com (project_admin) · project demo · server1 primary, epoch 4, 1 standby, "
        "2/2 sites up · 0 jobs running"
    )
    lines = prompt.signed_in(found, 0, view, PLAIN).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1] == "server1 primary, epoch 4, no standby, 2/2 sites up · 0 jobs running"
    assert prompt.signed_in(found, 2, view, ASCII).isascii()


def test_who_may_see_some_of_the_sites_is_told_the_same_of_them_everywhere():
    found = SignedIn("lead@a.org", "lead", "demo", "server1", 4, 1, 2, 2, 0)
    view = View("up", "server1", 4, sites_up=1, sites=1, all_sites=2)
    assert "1 standby, 1/1 of your sites up" in prompt.signed_in(found, 1, view, Style(200))
    assert "│ your sites 1/1 │" in prompt.toolbar(view, Style(200))


def test_one_live_line_of_a_job():
    sites = tuple(SiteStatus(f"site-{k}", word) for k, word in enumerate(("DONE", "TRAINING", "TRAINING"), 1))
    state = JobDetail(JOBS[0], 3, 5, sites, "", "", '{"loss": 0.25}')
    line = "round 3 of 5  site-1 ✓ DONE, site-2 ▶ TRAINING, site-3 ▶ TRAINING  loss 0.25"
    assert render.job_line(state, PLAIN) == line
    assert render.job_line(state, Style(40)) == line[:38] + "…"
    many = JobDetail(JOBS[0], 3, 5, sites * 2, "", "", "")
    assert render.job_line(many, PLAIN) == "round 3 of 5  2 ✓ DONE, 4 ▶ TRAINING"
    waits = JobDetail(Job("k7m3tq4w2zpx", "n", "SUBMITTED", "", 0.0), 0, 5, (), "waits for site-2\nto come", "", "")
    assert render.job_line(waits, ASCII) == ". SUBMITTED  waits for site-2 to come"


def test_events_in_a_table():
    text = render.events(FAILOVER, PLAIN)
    assert text.splitlines()[0].split() == ["ID", "TIME", "KIND", "WHAT"]
    assert max(map(len, text.splitlines())) <= 80
    assert render.events([], PLAIN) == "no events"


def test_event_lines(monkeypatch):
    event = Event(1, "failover", "2026-11-22T12:03:41.120Z", "failover server1 -> server2  epoch 4")
    line = prompt.event_line(event, PLAIN)
    assert line[2] == line[5] == ":"
    assert line[8:] == " ▲ failover server1 → server2  epoch 4"
    assert prompt.event_line(event, ASCII).endswith(" ^ failover server1 -> server2  epoch 4")
    evil = Event(2, "release", "now", "\x1b]2;owned\x07")
    assert prompt.event_line(evil, PLAIN) == "--:--:-- ▼  ]2;owned "


SERVERS = [
    Server("server1", "UNLEASED", 4, 120, 0.21, None, False, 0),
    Server(
        "server2",
        "STANDBY",
        None,
        108,
        0.3,
        "12 records behind: not granted the lease before it has read them",
        False,
        12,
    ),
    Server("server3", "STANDBY", None, 120, 0.1, None, True, 0),
]


def test_servers_at_80_columns_wrap_the_note():
    assert render.servers(SERVERS, PLAIN) == (
        "SERVER   STATE       EPOCH  CANDIDATE  LAG  SEEN   NOTE\n"
        "server1  ◍ UNLEASED  4      -          0    0.2 s\n"
        "server2  ○ STANDBY   -      ✗ no       12   0.3 s  12 records behind: not\n"
        "                                                   granted the lease before it\n"
        "                                                   has read them\n"
        "server3  ○ STANDBY   -      ✓ yes      0    0.1 s"
    )


def test_servers_show_their_versions_while_an_upgrade_is_under_way():
    same = [replace(one, software="1.4.0") for one in SERVERS]
    assert "VERSION" not in render.servers(same, PLAIN)
    mixed = render.servers([replace(same[0], software="1.5.0"), *same[1:]], Style(160)).splitlines()
    assert [line.split()[:2] for line in mixed] == [
        ["SERVER", "VERSION"],
        ["server1", "1.5.0"],
        ["server2", "1.4.0"],
        ["server3", "1.4.0"],
    ]


def test_servers_at_120_columns_and_in_ascii():
    wide = render.servers(SERVERS, Style(120)).splitlines()
    assert len(wide) == 4
    assert wide[2].endswith("12 records behind: not granted the lease before it has read them")
    text = render.servers(SERVERS, ASCII)
    assert text.isascii()
    assert "x no " in text
    assert "+ yes" in text


def test_what_stands_below_the_servers():
    system = System(True, "admin@nvidia.com", "upgrade", down=True)
    assert render.standing(SERVERS, system) == [
        "the system is down: it was shut down by an admin",
        "failover is paused by admin@nvidia.com: upgrade; resume_failover ends that",
        "DEGRADED: no failover, the primary cannot renew its lease",
    ]
    assert render.standing(SERVERS[1:], System()) == []


def test_an_explanation_at_80_columns():
    assert render.explanation(EXPLAINED, PLAIN) == (
        "server2 cannot be granted the lease: it is 12 records behind.\n"
        "\n"
        "CHECK      OK     FINDING\n"
        "heard      ✓ yes  heard 0.2 s ago\n"
        "log        ✗ no   epoch 1, slot 29, 12 records behind: promote_sp would be\n"
        "                  refused until it has read them\n"
        "hold down  ✓ yes  not held down\n"
        "\n"
        "If the primary died now, server3 would lead."
    )
    assert "nobody would lead" in render.explanation(replace(EXPLAINED, next=None), PLAIN)
    assert render.explanation(EXPLAINED, ASCII).isascii()
    assert len(render.explanation(EXPLAINED, Style(120)).splitlines()) == 8


def test_the_history_at_80_and_120_columns():
    epochs = [
        Failover(1, "server1", "first", "2026-11-22T11:00:00.000Z", None),
        Failover(2, "server2", "switchover", "2026-11-22T12:03:41.000Z", 0.4, "admin@nvidia.com", 2),
    ]
    assert render.failovers(epochs, PLAIN) == (
        "EPOCH  GRANTED              SERVER   GAP    JOBS  CAUSE\n"
        "1      2026-11-22 11:00:00  server1  -      -     first\n"
        "2      2026-11-22 12:03:41  server2  0.4 s  2     switchover, asked by\n"
        "                                                  admin@nvidia.com"
    )
    assert render.failovers(epochs, Style(120)).splitlines()[2].endswith("switchover, asked by admin@nvidia.com")


def test_status_with_a_checkpoint_and_a_warning():
    status = Status("server1", "READONLY", 4, 120, (), 1, 2, 40, 100, 2, 3 * 2**30, ("the store is nearly full",))
    assert render.status(status, PLAIN) == (
        "primary  server1\n"
        "state    ◌ READONLY\n"
        "epoch    4\n"
        "log      slot 120, checkpoint in slot 100, kept from slot 40, version 2\n"
        "jobs     1 running, 2 waiting\n"
        "store    3.0 GiB free\n"
        "warning  the store is nearly full"
    )


def test_prompt_and_toolbar_of_what_must_not_be_overlooked():
    paused = replace(UP, paused=True)
    assert shown(paused) == "fl server2·e4 [failover paused] ▸ "
    assert " ● server2 e4 [failover paused] │" in prompt.toolbar(paused, Style(120))
    waiting = replace(paused, mode="electing")
    assert shown(waiting) == "fl server2·e4 (no primary) [failover paused] ▸ "
    assert prompt.toolbar(waiting, Style(120)).startswith(" ● no primary, last server2 e4 [failover paused] │")
    alone = replace(UP, role="UNLEASED")
    assert shown(alone) == "fl server2·e4 [no failover] ▸ "
    assert "server2 e4 DEGRADED: no failover │" in prompt.toolbar(alone, Style(120))
    assert shown(replace(UP, role="READONLY")) == "fl server2·e4 [ro] ▸ "
    down = replace(UP, mode="down", paused=True)
    assert shown(down) == "fl system down ▸ "
    assert prompt.toolbar(down, PLAIN).startswith(" ● the system is down: an admin has shut it down")
    assert prompt.title(down, PLAIN) == "fedhelm system down"


@pytest.mark.parametrize(
    ("kind", "glyph"),
    [
        ("pause", "●"),
        ("resume", "▲"),
        ("shutdown", "▼"),
        ("alarm", "▼"),
        ("member_added", "▲"),
        ("member_removed", "●"),
    ],
)
def test_events_of_operators_are_one_line(kind, glyph):
    line = prompt.event_line(Event(1, kind, "2026-11-22T12:03:41Z", "what happened", {}), PLAIN)
    assert line[8:] == f" {glyph} what happened"


@pytest.mark.parametrize(
    ("state", "text"), [("FENCED", "comes back as a standby"), ("STANDBY", "○ STANDBY"), ("DOWN", "✗ DOWN")]
)
def test_the_topology_after_a_switchover(state, text):
    leads = Primary("server2", 5, "127.0.0.1", 1, 2, "poc:5")
    servers = [Server("server1", state, None), Server("server2", "ACTIVE", 5)]
    assert render.topology("after", leads, servers, 0, PLAIN) == (
        f"after   server2 primary, epoch 5 · server1 {text} · no job running"
    )
    assert render.topology("after", leads, servers, None, ASCII).isascii()


FORGED = "no\nk7m3tq4w2zpx  other  RUNNING\x1b[8m\r\x1b[1A\u2028\u202eno\x9b2J"
WIDE = Style(width=400, colour=True)


def uncoloured(text):
    """What is shown, without the program's own colours."""
    return re.sub("\x1b\\[[0-9;]*m", "", text.replace("\x1b[8m", "!"))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (render.jobs([Job(FORGED, FORGED, FORGED, "", 1.0, FORGED)], WIDE, details=True), 2),
        (render.job_detail(JobDetail(Job("k", FORGED, "RUNNING", "", 0.0), 1, 5, (), FORGED, "", ""), PLAIN), 8),
        (render.job_line(JobDetail(Job("k", "n", "SUBMITTED", "", 0.0), 0, 5, (), FORGED, "", ""), WIDE), 1),
        (render.events([Event(1, FORGED, FORGED, FORGED)], WIDE), 2),
        (render.sites([Site(FORGED, connected=True, jobs=(FORGED,))], WIDE), 2),
    ],
)
def test_no_text_of_others_begins_a_line_or_gives_the_terminal_an_order(text, lines):
    assert len(text.splitlines()) == lines
    assert not set("!\x1b\r\x9b\u2028\u202e") & set(uncoloured(text))


def test_a_traceback_keeps_its_lines_and_nothing_else():
    detail = JobDetail(
        Job("k", "n", "FINISHED:FAILED", "", 0.0), 1, 5, (), "x", "Traceback\n\tat \x1b[8m\x1b[2Jtrain\r", ""
    )
    assert render.job_detail(detail, PLAIN).splitlines()[-2:] == ["Traceback", "        at \ufffd[8m\ufffd[2Jtrain"]
