"""errors.md: one section for each code."""

from __future__ import annotations

from docs.pages.markdown import GENERATED, anchor, code, notes, table
from fedhelm import errors
from fedhelm.errors import ExitStatus, FedhelmError

__all__ = ["error_classes", "page"]

_INTRO = """\
# Errors

Every error that Fedhelm raises on purpose has a code. For people it is one line on standard error:

```
error[JOB_NOT_FOUND]: no job matches 'zzzz' (hint: list_jobs)
```

With `-o json` it is the `error` of the one object on standard output, `{"code", "message", "hint"}`. The code is
stable; the message is for people and may change. The exit status of the command follows from the code.
"""

_EXIT = {
    ExitStatus.OK: "done",
    ExitStatus.FAILED: "the command failed, or the job that it waited for did",
    ExitStatus.USAGE: "wrong usage, wrong input, ambiguous, not confirmed or refused: nothing was done",
    ExitStatus.UNREACHABLE: "nobody answers, or nobody leads",
    ExitStatus.NOT_AUTHORISED: "not authorised, or something is wrong with certificate or kit",
    ExitStatus.TIMEOUT: "the time allowed is over",
    ExitStatus.INTERRUPTED: "Ctrl-C",
}


def error_classes() -> list[type[FedhelmError]]:
    """Return the classes of the tree, parents first."""
    own = {getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)}

    def below(cls: type[FedhelmError]) -> list[type[FedhelmError]]:
        children = [one for one in cls.__subclasses__() if one in own]
        return [cls, *(found for one in children for found in below(one))]

    return below(FedhelmError)


def _section(cls: type[FedhelmError], note: dict[str, str]) -> str:
    parent = cls.__mro__[1]
    kind = f" It is a kind of [{parent.code}](#{anchor(parent.code)})." if issubclass(parent, FedhelmError) else ""
    return (
        f"## {cls.code}\n\n"
        f"{note['when']}\n\n"
        f"**What to do.** {note['do']}\n\n"
        f"Exit status {int(cls.exit_status)}. On the wire: gRPC status `{cls.grpc_status}`. "
        f"In Python: `fedhelm.errors.{cls.__name__}`.{kind}\n"
    )


def page() -> str:
    """Return the page."""
    classes = error_classes()
    advice = notes("errors", (cls.code for cls in classes))
    statuses = table(
        ("exit status", "means", "codes"),
        (
            (
                int(status),
                _EXIT[status],
                ", ".join(f"[{cls.code}](#{anchor(cls.code)})" for cls in classes if cls.exit_status is status),
            )
            for status in ExitStatus
        ),
    )
    sections = [_section(cls, advice[cls.code]) for cls in classes]
    first = f"{_INTRO}\n{statuses}\n{code('fedhelm.errors')} has the tree.\n"
    return GENERATED + "\n".join([first, *sections])
