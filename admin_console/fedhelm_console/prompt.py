"""Prompt, toolbar, title and event lines as text. Pure: a view in, fragments out."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedhelm.admin.models import Event
    from fedhelm_console.render import Style
    from fedhelm_console.view import View

__all__ = ["Fragment", "event_line", "prompt", "title", "toolbar"]

Fragment = tuple[str, str]
"""(style class, text), as prompt_toolkit takes it."""

_COLOURS = {"up": "ansigreen", "electing": "ansiyellow", "none": "ansired"}
_KEYS = "F1 help"


def _name(view: View) -> str:
    if view.mode == "none" or view.server is None:
        return "no primary" if view.mode == "none" else "(electing…)"
    tail = " (electing…)" if view.mode == "electing" else ""
    return f"{view.server}·e{view.epoch}{tail}"


def prompt(view: View, style: Style) -> list[Fragment]:
    """Return ``fl server1·e1 ▸``: green, yellow while nobody leads, red when nobody answers."""
    colour = _COLOURS[view.mode] if style.colour else ""
    return [("", "fl "), (colour, style.plain(_name(view))), ("", style.plain(" ▸ "))]


def title(view: View, style: Style) -> str:
    """Return the terminal's title: primary and epoch stand there while a command hides the toolbar."""
    return style.plain(f"fedhelm {_name(view)}")


def toolbar(view: View, style: Style) -> str:
    """Return the bottom line; a narrow terminal loses keys, job detail, standbys, jobs, sites, in this order."""
    head = (
        style.plain("● ")
        + {
            "up": f"{view.server} e{view.epoch}",
            "electing": f"electing, last {view.server} e{view.epoch}" if view.server else "electing",
            "none": "no primary",
        }[view.mode]
    )
    if view.mode == "up" and not view.servers:
        head += " (no overseer)"
    parts: dict[str, str] = {"head": head}
    if view.mode != "none":
        names = " ".join(server.name for server in view.standbys)
        parts["standbys"] = f"standby {names}" if names else "no standby"
        parts["sites"] = f"sites {view.sites_up}/{view.sites}"
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
    """Return one event as it stands above the prompt: local time, a glyph for up or down, what happened."""
    try:
        clock = datetime.fromisoformat(event.time).astimezone().strftime("%H:%M:%S")
    except ValueError:
        clock = "--:--:--"
    glyph, colour = ("▲", "32") if event.kind in ("active", "failover", "promote", "member_up") else ("▼", "31")
    if event.kind == "grant":
        glyph, colour = "●", "33"
    plain = {"▲": "^", "▼": "v", "●": "*"}
    text = style.plain(event.text) if style.ascii else event.text.replace(" -> ", " → ")
    text = "".join(char if char.isprintable() else " " for char in text)
    return style.paint(f"{clock} {plain[glyph] if style.ascii else glyph} {text}", colour)
