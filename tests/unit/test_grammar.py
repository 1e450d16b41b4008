"""Lines: words, options in any order, types, and errors that say how it is meant."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhelm.errors import UnknownCommand, UsageError
from fedhelm_console.commands import REGISTRY
from fedhelm_console.grammar import parse, split


def texts(line):
    return [word.text for word in split(line)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a b  c", ["a", "b", "c"]),
        ("'a b' c", ["a b", "c"]),
        ('"a \\" b"', ['a " b']),
        ("a\\ b", ["a b"]),
        ("x''", ["x"]),
        ("''", [""]),
        ('it"\'"s', ["it's"]),
        ("  ", []),
    ],
)
def test_words(line, words):
    assert texts(line) == words


def test_an_open_quote_is_marked():
    assert split("submit 'my jo")[-1].open
    assert split("submit my\\")[-1].open
    assert not split("submit 'my job'")[-1].open


@given(st.text())
def test_any_line_is_either_understood_or_a_usage_error(line):
    with contextlib.suppress(UsageError):
        parse(line, REGISTRY)


@given(st.lists(st.text()), st.sampled_from(["submit_job", "list_jobs", "abort_job"]))
def test_quoted_words_come_through_as_they_are(words, name):
    line = " ".join([name, *("'" + word.replace("'", "'\\''") + "'" for word in words)])
    assert texts(line) == [name, *words]


def test_options_stand_in_any_order_and_inside_wins():
    for line in ("ls k7m3 -r -m 5 -o json", "ls -m5 -r -ojson k7m3", "list_jobs --limit=5 --output=json k7m3 -r"):
        call = parse(line, REGISTRY)
        assert call.command.name == "list_jobs"
        assert call.positional == ("k7m3",)
        assert call.options == {"limit": 5, "reverse": True}
        assert call.output == "json"


def test_common_options():
    call = parse("abort_job a b --yes --timeout 2.5 --reason 'wrong data'", REGISTRY)
    assert call.yes
    assert call.timeout == 2.5
    assert call.positional == ("a", "b")
    assert call.options == {"reason": "wrong data"}


def test_after_two_dashes_nothing_is_an_option():
    assert parse("submit_job -- -folder", REGISTRY).positional == ("-folder",)
    assert parse("submit_job '-folder'", REGISTRY).positional == ("-folder",)


@pytest.mark.parametrize("line", ["", "   ", "# a comment"])
def test_nothing(line):
    assert parse(line, REGISTRY) is None


@pytest.mark.parametrize("line", ["? submit_job", "?submit_job", "help submit_job"])
def test_help_has_three_spellings(line):
    call = parse(line, REGISTRY)
    assert call.command.name == "help"
    assert call.positional == ("submit_job",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("submit_job", "DIR is missing"),
        ("submit_job ''", "DIR is empty"),
        ("abort_job", "JOB is missing"),
        ("show_job a b", "'b' is one argument too many"),
        ("list_jobs --nope", "no option --nope"),
        ("list_jobs -m", "-m needs a value"),
        ("list_jobs -m x", "N is a whole number"),
        ("list_jobs -r=1", "-r takes no value"),
        ("list_jobs --status ODD", "STATUS is one of"),
        ("list_jobs -o xml", "-o is one of table, json"),
        ("wait @last --timeout soon", "--timeout is a number of seconds"),
        ("wait @last --timeout nan", "--timeout is a number of seconds"),
        ("list_jobs --yes=1", "--yes takes no value"),
        ("check_status nobody", "server|client is one of server, client"),
        ("submit_job 'x", "a quote is not closed"),
    ],
)
def test_usage_errors(line, message):
    with pytest.raises(UsageError) as caught:
        parse(line, REGISTRY)
    assert message in caught.value.message


def test_an_unknown_command_proposes_and_never_runs():
    with pytest.raises(UnknownCommand) as caught:
        parse("lst_jobs", REGISTRY)
    assert caught.value.hint == "did you mean list_jobs?"
    with pytest.raises(UnknownCommand) as caught:
        parse("xyzzy", REGISTRY)
    assert caught.value.hint == "help lists the commands"
