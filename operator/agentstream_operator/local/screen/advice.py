"""Says which commands help next, while `agentstream dev` runs and when it ends."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentstream_operator.local.screen.summary import Summary
from agentstream_operator.reconcile.report.view import View
from agentstream_operator.resources.meta import ResourceKey

FOLDER = ".agentstream"
"""Directory in which the command line looks for a running `agentstream dev`."""

QUIET = 10.0
"""Seconds between two lines about the dead letters of a group, at least."""


def where(data: Path, current: Path) -> str | None:
    """Returns where commands find the run that keeps its data there; None where they do not look."""
    if data.name != FOLDER:
        return None
    folder = data.absolute().parent
    return "in this folder" if folder == current else f"in {folder}"


def after_ready(view: View, place: str) -> str:
    """Returns the line that says what to do now."""
    commands = ["agentstream lag", "agentstream top"]
    if view.streams:
        commands.append(f"agentstream tail {shlex.quote(view.streams[0].resource.name)}")
    if view.groups:
        commands.append(dlq(view.groups[0].resource))
    return f"next, in another terminal {place}: {' · '.join(commands)} · agentstream --help"


def dlq(group: ResourceKey) -> str:
    """Returns the command that shows a group's dead letters."""
    return f"agentstream dlq {shlex.quote(group.name)}"


@dataclass(slots=True)
class DeadLetterNotices:
    """Says how to look at new dead letters, at most once in `QUIET` seconds for each group."""

    _told: dict[ResourceKey, int] = field(init=False, default_factory=dict)
    _next: dict[ResourceKey, float] = field(init=False, default_factory=dict)

    def lines(self, view: View, now: float) -> Sequence[str]:
        """Returns the lines that are due; `now` in seconds on a monotonic clock."""
        lines = []
        for group in view.groups:
            new = group.account.dead - self._told.get(group.resource, 0)
            if new <= 0 or now < self._next.get(group.resource, now):
                continue
            self._told[group.resource] = group.account.dead
            self._next[group.resource] = now + QUIET
            letters = "dead letter" if new == 1 else "dead letters"
            lines.append(f"{group.resource}: {new:,} new {letters}: {dlq(group.resource)}")
        return lines


def after_the_end(summary: Summary) -> str | None:
    """Returns the line about dead letters that goes below the summary, if there are any."""
    dead = [group for group in summary.groups if group.numbers.dead_lettered]
    if not dead:
        return None
    named = ", ".join(f"{group.numbers.dead_lettered:,} of {group.name}" for group in dead)
    command = dlq(ResourceKey("ConsumerGroup", dead[0].namespace, dead[0].name))
    return f"dead letters: {named}; they are kept: `{command}` shows them while `agentstream dev` runs"
