"""Commands: every one of the contract is there, explains itself, and its examples are understood."""

import pytest

from fedhelm import errors
from fedhelm_console.commands import REGISTRY
from fedhelm_console.commands.local import help_of
from fedhelm_console.grammar import parse

NAMES = [
    "submit_job",
    "list_jobs",
    "show_job",
    "wait",
    "abort_job",
    "delete_job",
    "download_job",
    "check_status",
    "list_sp",
    "get_active_sp",
    "explain",
    "history",
    "events",
    "promote_sp",
    "pause_failover",
    "resume_failover",
    "restart",
    "remove_sp",
    "shutdown_system",
    "revoke_certificates",
    "help",
    "clear",
    "bye",
]


def test_the_commands_of_this_version():
    assert [command.name for command in REGISTRY] == NAMES


def test_aliases():
    pairs = {"submit": "submit_job", "ls": "list_jobs", "dl": "download_job", "status": "check_status", "?": "help"}
    assert {alias: REGISTRY.get(alias).name for alias in pairs} == pairs
    assert REGISTRY.get("quit") is REGISTRY.get("exit") is REGISTRY.get("bye")


@pytest.mark.parametrize("command", list(REGISTRY), ids=lambda command: command.name)
def test_examples_are_understood_and_help_shows_them(command):
    text = help_of(command)
    assert len(set(command.examples)) == 2
    for example in command.examples:
        assert parse(example, REGISTRY).command is command
        assert example in text
    assert f"usage: {command.usage}" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("command", list(REGISTRY), ids=lambda command: command.name)
def test_named_errors_exist(command):
    for code in command.errors:
        assert errors.error_class(code).code == code


def test_confirmation_grades():
    assert {command.name: command.grade for command in REGISTRY if command.grade} == {
        "abort_job": 1,
        "delete_job": 2,
        "promote_sp": 2,
        "pause_failover": 2,
        "resume_failover": 2,
        "restart": 1,
        "remove_sp": 2,
        "shutdown_system": 3,
        "revoke_certificates": 1,
    }


def test_usage_lines():
    usages = {command.name: command.usage for command in REGISTRY}
    assert usages["list_jobs"] == "list_jobs [PREFIX] [-d] [-n NAME] [-u] [-r] [-m N] [--status STATUS] [--all]"
    assert usages["abort_job"] == "abort_job JOB... [--reason TEXT]"
    assert usages["download_job"] == "download_job JOB [DIR]"
