from __future__ import annotations

import json
import signal
import sys

import pytest

import fedhelm.cli
from fedhelm.errors import ExitStatus, KitError, NoPrimary, UsageError
from fedhelm.output import CommandParser, add_output_option, emit, emit_error, format_of, guarded, table


def test_data_is_one_json_object(capsys):
    assert emit([{"name": "a"}], "json", "for people") == ExitStatus.OK
    out, err = capsys.readouterr()
    assert json.loads(out) == {"schema_version": 1, "status": "ok", "data": [{"name": "a"}], "error": None}
    assert out.count("\n") == 1
    assert err == ""


@pytest.mark.parametrize(("human", "shown"), [("line", "line\n"), (lambda: "made\n", "made\n"), (None, ""), ("", "")])
def test_people_get_text(capsys, human, shown):
    assert emit({}, "table", human) == ExitStatus.OK
    assert capsys.readouterr() == (shown, "")


def test_an_error_keeps_code_hint_and_exit_status(capsys):
    error = NoPrimary("nobody leads", hint="wait")
    assert emit_error(error, "json") == 3
    body = json.loads(capsys.readouterr().out)
    assert body == {
        "schema_version": 1,
        "status": "error",
        "data": None,
        "error": {"code": "NO_PRIMARY", "message": "nobody leads", "hint": "wait"},
    }
    assert emit_error(error) == 3
    assert capsys.readouterr() == ("", "error[NO_PRIMARY]: nobody leads (hint: wait)\n")
    assert emit_error(KitError("x is missing")) == 4
    assert capsys.readouterr().err == "error[BAD_KIT]: x is missing\n"


@pytest.mark.parametrize(
    ("argv", "fmt"),
    [
        ([], "table"),
        (["-o", "json"], "json"),
        (["x", "-ojson", "y"], "json"),
        (["--output=json"], "json"),
        (["--output", "json", "--wrong"], "json"),
        (["-o", "xml"], "table"),
        (["-o"], "table"),
        (["-o", "json", "-o", "table"], "table"),
    ],
)
def test_the_format_is_found_in_arguments_that_do_not_parse(argv, fmt):
    assert format_of(argv) == fmt


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (UsageError("no"), "USAGE", 2),
        (KeyboardInterrupt(), "INTERRUPTED", 130),
        (ZeroDivisionError("division\nby zero"), "INTERNAL", 1),
    ],
)
def test_whatever_breaks_a_script_gets_json(capsys, monkeypatch, error, code, status):
    monkeypatch.delenv("FEDHELM_DEBUG", raising=False)
    assert guarded(lambda: raise_(error), "json") == status
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code


def test_a_debugger_gets_the_traceback(monkeypatch):
    monkeypatch.setenv("FEDHELM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: raise_(ZeroDivisionError()), "json")


def test_a_usage_error_is_raised_and_not_printed(capsys):
    parser = CommandParser(prog="fedhelm x")
    add_output_option(parser)
    assert parser.parse_args(["-o", "json"]).output == "json"
    with pytest.raises(UsageError, match="invalid choice") as caught:
        parser.parse_args(["-o", "xml"])
    assert caught.value.hint == "fedhelm x -h"
    assert capsys.readouterr() == ("", "")


def test_a_table_is_aligned():
    assert table(("name", "n"), [("a", 1), ("long", None)]) == "NAME  N\na     1\nlong  -"
    assert table(("name",), []) == "NAME"


@pytest.mark.parametrize(("words", "shown"), [(["-o", "json"], "out"), ([], "err")])
def test_ctrl_c_before_a_command_is_loaded_is_told_like_any_other(capsys, monkeypatch, words, shown):
    monkeypatch.setattr(sys, "argv", ["fedhelm", "console", "kit", *words])
    monkeypatch.setattr(fedhelm.cli, "_commands", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as left:
        fedhelm.cli.run()
    assert left.value.code == 130
    text = capsys.readouterr()
    if shown == "err":
        assert text == ("", "error[INTERRUPTED]: interrupted\n")
    else:
        assert text.err == ""
        assert json.loads(text.out)["error"]["code"] == "INTERRUPTED"


def test_an_unknown_command_is_one_object(capsys):
    assert fedhelm.cli.main(["consol", "-o", "json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["hint"]) == ("UNKNOWN_COMMAND", "did you mean console?")


def test_what_others_wrote_moves_no_cursor_and_names_no_window(capsys):
    emit(None, human="\x1b[1mjob\x1b[0m boom \x1b]0;mine\x07\x1b[2J\rover \u202e\x9b2J\ttab\nline\r\n")
    from fedhelm.errors import BadInput

    emit_error(BadInput("no \x1b[8A"))
    shown = capsys.readouterr()
    assert shown.out == "\x1b[1mjob\x1b[0m boom \ufffd]0;mine\ufffd\ufffd[2J\ufffdover \ufffd\ufffd2J\ttab\nline\r\n"
    assert "\x1b" not in shown.err
