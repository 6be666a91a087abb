"""Looks for a message in a group: where it is worked on, and among its dead letters, for a bounded time."""

from __future__ import annotations

import time
from typing import Final

from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.whereabouts import Whereabouts, parse_whereabouts, whereabouts
from agentstream_operator.broker.scan import Call, Scan, Span
from agentstream_operator.plan.fate import Fate, fate_of, is_settled
from agentstream_operator.plan.letters import Letter, read_letter

LOOKS_FOR: Final = 1.0
"""Seconds for which retries are looked through; as many thousands as the server reads in this time."""

_TIMES: Final = 3


async def find_fate(
    call: Call, key: str, group: str, entry_id: str, *, is_for_group: bool = True
) -> tuple[Fate, Letter | None]:
    """Finds out what became of a message in a group. Returns also its dead letter, if it was looked for.

    Args:
        call: sends a command.
        key: of the stream.
        group: name of the group.
        entry_id: of the message on the stream.
        is_for_group: whether the message is addressed to the group's agent.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    where = await _find(call, key, group, entry_id)
    letter, are_all = None, True
    for _ in range(_TIMES):
        if not is_settled(where, entry_id):
            break
        # after the group was asked: what it buries meanwhile is among them
        letter, are_all = await _find_letter(call, StreamKeys(key).dead_letters(group), entry_id)
        if letter is not None:
            break
        before, where = where, await _find(call, key, group, entry_id)
        if where.replayed == before.replayed:
            break
        # a letter that was replayed meanwhile may have died again
        are_all = False
    return fate_of(entry_id, where, letter, is_for_group=is_for_group, are_all_letters=are_all), letter


async def _find_letter(call: Call, dlq: str, entry_id: str) -> tuple[Letter | None, bool]:
    """Looks for the dead letter of a message. Returns also whether all letters were looked at."""
    scan = Scan(call, dlq, Span())
    async for entry in scan.entries():
        found = read_letter(dlq, entry.id, entry.withheld or entry.fields)
        if found.origin == entry_id:
            return found, True
    return None, not scan.looked.more


async def _find(call: Call, key: str, group: str, entry_id: str) -> Whereabouts:
    """Asks until the message is found, all retries were looked at, or the time is up."""
    until = time.monotonic() + LOOKS_FOR
    found = first = parse_whereabouts(await call(*whereabouts(key, group, entry_id)))
    for _ in range(_TIMES):
        while _goes_on(found) and time.monotonic() < until:
            command = whereabouts(key, group, entry_id, found.rank, found.before)
            found = parse_whereabouts(await call(*command))
        if _is_found(found) or not found.is_complete or found.moves == first.moves:
            return found
        # a retry that moved meanwhile may have passed from where nobody had looked to where all had
        found = first = parse_whereabouts(await call(*whereabouts(key, group, entry_id)))
    return found


def _is_found(found: Whereabouts) -> bool:
    return found.holder is not None or found.retry is not None


def _goes_on(found: Whereabouts) -> bool:
    return not _is_found(found) and not found.is_complete
