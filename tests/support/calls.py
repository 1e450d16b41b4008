"""Calls as the chain hands them to a handler, for tests that call handlers directly."""

from __future__ import annotations

from fedhelm.security.authorization import default_policy
from fedhelm.security.passage import Passage
from fedhelm.wire.chain import Call


def called(principal, name="Admin.ShowJob", *, context=None, policy=None):
    """A call of ``Service.Method`` by this principal that has passed gate one."""
    passage = Passage(name, principal, policy or default_policy())
    passage.enter()
    return Call(principal, name.partition(".")[2], context, passage)
