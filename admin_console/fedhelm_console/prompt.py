"""Prompt, toolbar, title and event lines as text. Pure: a view in, fragments out."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedhelm.admin.models import Event, SignedIn
    from fedhelm_console.news import Item
    from fedhelm_console.render import Style
    from fedhelm_console.view import View

__all__ = ["Fragment", "event_line", "news_line", "prompt", "resumed", "signed_in", "title", "toolbar"]

Fragment = tuple[str, str]
"""(style class, text), as prompt_toolkit takes it."""

_GLYPHS = {"▲": "^", "▼": "v", "●": "*"}
_COLOURS = {"up": "ansigreen", "electing": "ansiyellow", "down": "ansired", "none": "ansired"}
_DEGRADED = "DEGRADED: no failover"
_GOOD = ("active", "failover", "promote", "member_up", "member_added", "resume")
_PLAIN = ("grant", "pause", "member_removed", "revoke")
_KEYS = "F1 help  F3 events"


def _name(view: View) -> str:
    if view.mode == "down":
        return "system down"
    waiting = "(no primary)" if view.paused else "(electing…)"
    if view.mode == "none" or view.server is None:
        return "no primary" if view.mode == "none" else waiting
    tail = f" {waiting}" if view.mode == "electing" else ""
    return f"{view.server}·e{view.epoch}{tail}"


def _marks(view: View) -> list[str]:
    """What an operator must not overlook, beside who leads."""
    marks = ["[failover paused]"] if view.paused and view.mode != "down" else []
    if view.mode == "up" and view.role == "UNLEASED":
        marks.append("[no failover]")
    if view.mode == "up" and view.role == "READONLY":
        marks.append("[ro]")
    return marks


def prompt(view: View, style: Style) -> list[Fragment]:
    """Return ``fl server1·e1 ▸``: green, yellow while nobody leads, red when nobody answers; marks are yellow."""
    colour = _COLOURS[view.mode] if style.colour else ""
    marks = "".join(f" {mark}" for mark in _marks(view))
    warning = [(_COLOURS["electing"] if style.colour else "", marks)] if marks else []
    return [("", "fl "), (colour, style.plain(_name(view))), *warning, ("", style.plain(" ▸ "))]


def title(view: View, style: Style) -> str:
    """Return the terminal's title: primary and epoch stand there while a command hides the toolbar."""
    return style.plain(f"fedhelm {_name(view)}")


def toolbar(view: View, style: Style) -> str:
    """Return the bottom line; a narrow terminal loses keys, job detail, standbys, jobs, sites, in this order."""
    waiting = "no primary" if view.paused else "electing"
    head = (
        style.plain("● ")
        + {
            "up": f"{view.server} e{view.epoch}",
            "electing": f"{waiting}, last {view.server} e{view.epoch}" if view.server else waiting,
            "down": "the system is down: an admin has shut it down",
            "none": "no primary",
        }[view.mode]
    )
    if view.mode == "up" and not view.servers:
        head += " (no overseer)"
    if view.mode == "up" and view.role == "UNLEASED":
        head += f" {_DEGRADED}"
    if view.paused and view.mode != "down":
        head += " [failover paused]"
    parts: dict[str, str] = {"head": head}
    if view.mode not in ("none", "down"):
        names = " ".join(server.name for server in view.standbys)
        if view.servers or view.mode != "up":
            parts["standbys"] = f"standby {names}" if names else "no standby"
        parts["sites"] = f"{'' if view.sees_all_sites else 'your '}sites {view.sites_up}/{view.sites}"
        parts["jobs"] = style.plain("jobs ") + (
            f"{view.running}> {view.waiting}..." if style.ascii else f"{view.running}▶ {view.waiting}…"
        )
        if busy := [job for job in view.jobs if job.status == "RUNNING"]:
            parts["detail"] = " ".join(f"{job.name} {job.job_id[:6]}" for job in busy[:2])
    parts["keys"] = _KEYS
    joint = style.plain(" │ ")
    for drop in ("", "keys", "detail", "standbys", "jobs", "sites"):
        parts.pop(drop, None)
        text = " " + joint.join(parts.values())
        if len(text) <= style.width:
            return text
    return f" {head}"[: style.width]


def event_line(event: Event, style: Style) -> str:
    """Return one event as it was published: local time, a glyph for up or down, what happened."""
    glyph, colour = ("▲", "32") if event.kind in _GOOD else ("●", "33") if event.kind in _PLAIN else ("▼", "31")
    text = event.text if style.ascii else event.text.replace(" -> ", " → ")
    return style.paint(f"{_clock(event.time)} {_GLYPHS[glyph] if style.ascii else glyph} {_clean(text, style)}", colour)


def news_line(item: Item, style: Style, more: str = "") -> str:
    """Return an item of news: ``12:03:41 ▲ failover server1 → server2  epoch 4  gap 0.2 s  (cause)``.

    Args:
        item: the news.
        style: of the terminal; the note goes to a second line where it does not fit.
        more: stands before the note.
    """
    glyph, colour = {"good": ("▲", "32"), "bad": ("▼", "31"), "plain": ("●", "33")}[item.mood]
    text = _clean("  ".join(part for part in (item.text, more) if part), style)
    head = f"{_clock(item.time)} {_GLYPHS[glyph] if style.ascii else glyph} "
    if item.note:
        fits = len(head) + len(text) + 2 + len(item.note) <= style.width
        text += ("  " if fits else "\n" + " " * len(head)) + _clean(item.note, style)
    return style.paint(head + text, colour)


def resumed(jobs: int) -> str:
    """Return how many jobs go on under the new primary; nothing where there are none."""
    return f"{jobs} job{'' if jobs == 1 else 's'} resumed" if jobs else ""


def signed_in(found: SignedIn, standbys: int, view: View, style: Style) -> str:
    """Return who is signed in where, and how the federation stands, broken between its parts where it is too long.

    The sites are counted as the toolbar counts them: those that whoever is signed in may see.
    """
    standing = f"{standbys} standby{'' if standbys == 1 else 's'}" if standbys else "no standby"
    jobs = f"{found.jobs_running} job{'' if found.jobs_running == 1 else 's'} running"
    sites = f"{view.sites_up}/{view.sites} {'' if view.sees_all_sites else 'of your '}sites up"
    parts = [
        f"Signed in as {found.principal} ({found.role})",
        f"project {found.project}",
        f"{found.server} primary, epoch {found.epoch}, {standing}, {sites}",
        jobs,
    ]
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]} · {part}"
        if len(longer) <= style.width:
            lines[-1] = longer
        else:
            lines.append(part)
    return _clean("\n".join(lines), style, keep="\n")


def _clock(iso: str) -> str:
    try:
        return datetime.fromisoformat(iso).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return "--:--:--"


def _clean(text: str, style: Style, keep: str = "") -> str:
    """Return text that cannot take hold of the terminal; names and reasons come from elsewhere."""
    return style.plain("".join(char if char.isprintable() or char in keep else " " for char in text))
