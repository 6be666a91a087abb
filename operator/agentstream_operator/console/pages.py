"""Renders pages: from templates, with every text of others escaped and bounded."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from agentstream.printable import printable
from agentstream_operator.queue_api.figures import UNKNOWN, count, rate, share, span
from agentstream_operator.queue_api.troubles import is_wrong, state

_LONGEST_LINE: Final = 2_000
_MOST_LINES: Final = 5_000


class ShownPage(NamedTuple):
    """What a page shows: the name of its template, its title, and what the template needs.

    Attributes:
        live: whether it is shown anew each second while somebody looks.
        status: HTTP status.
    """

    template: str
    title: str
    content: dict[str, Any]
    live: bool = False
    status: int = 200


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("agentstream_operator.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "rate": rate,
        "span": span,
        "share": share,
        "state": state,
        "wrong": is_wrong,
        "time": _time,
        "text": _text,
        "pretty": pretty,
        "inline": _inline,
        "commands": _commands,
    }
    environment.globals |= {"version": version("agentstream-operator")}
    return environment


def render(page: ShownPage, user: str | None, path: str) -> str:
    """Renders a whole page; `user` is who looks, `path` where it is."""
    return (
        _environment()
        .get_template(page.template)
        .render(**page.content, title=page.title, user=user, path=path, live=page.live, only_main=False)
    )


def render_main(page: ShownPage) -> str:
    """Renders the part of a page that changes."""
    return (
        _environment()
        .get_template(page.template)
        .render(**page.content, title=page.title, user=None, path="", live=True, only_main=True)
    )


def pretty(value: object) -> str:
    """Formats data as indented JSON of printable lines, of which the first are shown."""
    lines = json.dumps(value, indent=2, ensure_ascii=False).split("\n")
    shown = [printable(line, _LONGEST_LINE) for line in lines[:_MOST_LINES]]
    return "\n".join(shown) + (
        f"\n… {len(lines) - _MOST_LINES:,} more lines" if len(lines) > _MOST_LINES else ""
    )


def _inline(value: object, longest: int = 160) -> str:
    """Data as JSON in one line, of which the beginning is shown."""
    return printable(json.dumps(value, ensure_ascii=False), longest)


def _commands(text: str) -> Markup:
    """A text of ours, with what is between backticks as code."""
    parts = enumerate(text.split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in parts)


def _time(at: datetime | None) -> Markup | str:
    """A time in UTC, which the browser shows in its own zone where it runs scripts."""
    if at is None:
        return UNKNOWN
    utc = at.astimezone(UTC)
    return Markup('<time datetime="{}">{} UTC</time>').format(
        utc.isoformat(timespec="milliseconds"), f"{utc:%Y-%m-%d %H:%M:%S}"
    )


def _text(value: object, longest: int = 500) -> str:
    """A text of others, as one line."""
    return printable(value, longest)
