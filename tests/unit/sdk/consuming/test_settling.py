"""For how long settling is tried again."""

from __future__ import annotations

from typing import Any, cast

import pytest

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
    settled: list[Hold] = []
    settler = Settler(
        Away(2).call,
        calls,
        Leases(calls, 0.0, Asleep(), settled.extend),
        settled.extend,
        lambda _: None,
        counters=Counters().group("tasks", "coder"),
        replies=cast("Replies", None),
    )
    entry = a_hold()
    await settler.release(entry, patience=patience)
    assert settled == [entry]
    assert entry.was_held is (patience is None)
