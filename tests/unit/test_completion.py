"""Completion: by the type of the argument, filtered by the command, fuzzy also over hyphens."""

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from fedhelm.admin.models import Server
from fedhelm_console.commands import REGISTRY
from fedhelm_console.completion import rank, suggest
from fedhelm_console.view import View
from tests.fakes.admin_session import JOBS, FakeSession

VIEW = View("up", "server1", 1, (Server("server1", "ACTIVE", 1), Server("server2", "STANDBY", None)), jobs=tuple(JOBS))


@pytest.fixture
def complete(tmp_path):
    for name in ("hello-numpy", "hello-pt-tb", "my job", ".hidden"):
        (tmp_path / name / "app").mkdir(parents=True)
    (tmp_path / "hello-numpy" / "job.yaml").write_text("name: x")
    (tmp_path / "a-file").write_text("")

    def run(text):
        return suggest(text, REGISTRY, VIEW, lambda: [tmp_path])

    return run


def words(found):
    return [one.text for one in found]


def test_commands(complete):
    assert words(complete("sub")) == ["submit_job"]
    assert words(complete("list_")) == ["list_jobs", "list_sp"]
    assert "list_jobs" in words(complete("lj"))
    assert len(complete("")) == len(list(REGISTRY))
    assert complete("sub")[0].offset == -3
    assert complete("sub")[0].meta


def test_jobs_are_filtered_by_the_command(complete):
    assert words(complete("show_job ")) == [*(job.job_id for job in JOBS), "@last", "@running", "@failed"]
    assert words(complete("abort_job ")) == ["k7m3tq4w2zpx", "@last", "@running"]
    assert words(complete("download_job k")) == ["k7m3aaaaaaaa", "k6aaaaaaaaaa"]
    assert complete("abort_job k7")[0].meta == "hello-pt-tb RUNNING 14.2 s"
    assert complete("abort_job k7")[0].offset == -2


def test_several_jobs(complete):
    assert "k7m3tq4w2zpx" in words(complete("abort_job k7m3tq4w2zpx k7"))


def test_one_argument_is_enough(complete):
    assert complete("show_job k7m3 ") == []


def test_servers_and_choices(complete):
    assert words(complete("promote_sp ")) == ["server1", "server2"]
    assert words(complete("check_status ")) == ["server", "client"]
    assert words(complete("list_jobs --status RU")) == ["RUNNING"]
    assert words(complete("list_jobs -o ")) == ["table", "json"]
    assert words(complete("help wa")) == ["wait"]
    assert words(complete("?wa")) == ["wait"]


def test_options(complete):
    assert words(complete("list_jobs --re")) == ["--reverse"]
    assert "--yes" in words(complete("abort_job k7m3 --"))
    assert words(complete("abort_job --reason ")) == []
    # After an option with its value the argument is still to come.
    assert "k7m3tq4w2zpx" in words(complete("abort_job --reason x k7"))


def test_paths(complete):
    assert words(complete("submit_job hel")) == ["hello-numpy/", "hello-pt-tb/"]
    assert complete("submit_job hel")[0].meta == "job"
    assert words(complete("submit_job my")) == ['"my job/"']
    assert words(complete('submit_job "my jo')) == ['"my job/"']
    assert words(complete("submit_job hello-numpy/")) == ["hello-numpy/app/"]
    assert words(complete("submit_job .h")) == [".hidden/"]
    assert words(complete("submit_job /nowhere/x")) == []


def test_files(complete):
    before = words(complete("revoke_certificates "))
    assert "hello-numpy/" in before
    assert words(complete("revoke_certificates hello-numpy/j")) == ["hello-numpy/job.yaml"]
    assert words(complete("submit_job hello-numpy/j")) == []


def test_an_unknown_command_completes_to_nothing(complete):
    assert complete("nonsense ") == []


def test_rank_orders_beginnings_then_parts_then_letters():
    assert [rank(typed, "hello-pt-tb") for typed in ("hello", "pt-t", "hptb", "x")] == [0, 1, 2, None]


def test_the_menu_gets_them_from_a_document(tmp_path):
    from fedhelm_console.repl import ConsoleCompleter

    class Refresher:
        view = VIEW

    class Console:
        registry = REGISTRY
        transfer = FakeSession(tmp_path).kit.transfer

    completer = ConsoleCompleter(Console(), Refresher())
    found = list(completer.get_completions(Document("abort_job k7m3"), CompleteEvent()))
    assert [(one.text, one.start_position, one.display_meta_text) for one in found] == [
        ("k7m3tq4w2zpx", -4, "hello-pt-tb RUNNING 14.2 s")
    ]
