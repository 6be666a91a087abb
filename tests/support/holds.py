"""Holds of entries, without a server."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agentstream.consuming.hold import DELIVERED, Hold, HoldState
from agentstream.protocol.entry import Source, parse_entry

MAIN = Source("{t}", retry=False)
RETRIES = Source("{t}:retry:g", retry=True)


def a_hold(
    entry_id: str = "1-0",
    fields: Sequence[bytes] = (),
    counter: int = 1,
    *,
    source: Source = MAIN,
    state: HoldState = DELIVERED,
) -> Hold:
    """A hold whose lease does not run out."""
    return Hold(parse_entry(source, entry_id, list(fields)), counter, state, math.inf)


def settle(hold: Hold, *, is_finished: bool = True) -> None:
    """Settles it, as after an acknowledgement."""
    hold.start_settling()
    hold.settle(was_held=True, is_finished=is_finished)
