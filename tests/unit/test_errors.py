"""The tree of errors: what its page says is what the classes are."""

from __future__ import annotations

import re

import grpc
import pytest

import fedhelm.errors as module
from fedhelm.errors import ExitStatus, FedhelmError, error_class

LINE = re.compile(r"^    (?P<lead>[│├└─ ]*)(?P<name>[A-Z]\w+) +(?P<code>[A-Z_]+) +(?P<status>\d+)\b")


def subclasses(cls):
    return {cls, *(below for sub in cls.__subclasses__() for below in subclasses(sub))}


TREE = sorted((cls for cls in subclasses(FedhelmError) if cls.__module__ == module.__name__), key=lambda c: c.__name__)


def documented():
    """(name, parent's name, code, exit status) of each line of the module's tree."""
    above, found = {}, []
    for text in module.__doc__.splitlines():
        match = LINE.match(text)
        if match is None:
            continue
        depth = len(match["lead"]) // 4
        above[depth] = match["name"]
        found.append((match["name"], above.get(depth - 1), match["code"], int(match["status"])))
    return found


def test_the_documented_tree_is_the_real_one():
    real = {
        (cls.__name__, cls.__base__.__name__ if cls is not FedhelmError else None, cls.code, int(cls.exit_status))
        for cls in TREE
    }
    page = documented()
    assert len(page) == len(set(page))
    assert set(page) == real


def test_every_class_is_public_and_nothing_else_is():
    assert set(module.__all__) == {cls.__name__ for cls in TREE} | {"ExitStatus", "error_class"}


def test_every_code_is_one_classs_and_every_class_has_its_own():
    codes = [cls.code for cls in TREE]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[A-Z][A-Z_]*", code) for code in codes)
    assert all("code" in vars(cls) for cls in TREE)


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_each_class_can_travel_and_end_a_command(cls):
    assert error_class(cls.code) is cls
    assert cls.exit_status in ExitStatus
    assert cls.exit_status is not ExitStatus.OK
    assert (cls.exit_status is ExitStatus.INTERRUPTED) == (cls is module.Interrupted)
    assert grpc.StatusCode[cls.grpc_status] is not grpc.StatusCode.OK
    error = cls("what happened", hint="what to do")
    assert (str(error), error.message, error.hint, error.args) == (
        "what happened",
        "what happened",
        "what to do",
        ("what happened",),
    )
    assert cls("alone").hint is None
    assert cls.__doc__


def test_a_code_of_a_later_version_is_still_an_error():
    assert error_class("FROM_THE_FUTURE") is FedhelmError


def test_the_exit_statuses_are_what_scripts_rely_on():
    assert {one.name: one.value for one in ExitStatus} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "UNREACHABLE": 3,
        "NOT_AUTHORISED": 4,
        "TIMEOUT": 5,
        "INTERRUPTED": 130,
    }
