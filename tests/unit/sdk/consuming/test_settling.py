"""For how long settling is tried again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from agentstream.consuming.fetch import FetchSignals
from agentstream.consuming.hold import Hold
from agentstream.consuming.leases import Leases
from agentstream.consuming.settling import Settler
from agentstream.errors import ConnectionLost
from agentstream.protocol.commands import DONE, GroupCalls
from agentstream.protocol.routes import Consumes
from agentstream.sending.replies import Replies
from agentstream.telemetry.counters import Counters
from support.holds import a_hold


class Asleep:
    """Renews nothing."""

    def wake(self) -> None: ...

    def first_acquired(self, leases: Leases) -> None: ...


class Ended:
    """Keeps the holds that have ended."""

    def __init__(self) -> None:
        self.holds: list[Hold] = []

    def holds_lost(self, holds: Sequence[Hold]) -> None: ...

    def holds_ended(self, holds: Sequence[Hold]) -> None:
        self.holds += holds


class Away:
    """A server that is away for some calls.

    Args:
        calls: how many.
    """

    def __init__(self, calls: int) -> None:
        self.left = calls

    async def call(self, *_: Any) -> list[int]:
        """Its answer."""
        if self.left:
            self.left -= 1
            raise ConnectionLost("away")
        return [DONE]


@pytest.mark.parametrize("patience", [None, 0.0])
async def test_what_gives_way_is_handed_back_whenever_the_server_is_there_again(
    patience: float | None,
) -> None:
    calls = GroupCalls(Consumes("tasks", "{t}", group="coder"), "pod.1")
    leases, ended = Leases(calls, 0.0, Asleep()), Ended()
    leases.listen(ended)
    counters, signals = Counters().group("tasks", "coder"), cast("FetchSignals", None)
    settler = Settler(Away(2).call, leases, counters, cast("Replies", None), signals)
    entry = a_hold()
    await settler.release(entry, patience=patience)
    assert ended.holds == [entry]
    assert entry.was_held is (patience is None)
