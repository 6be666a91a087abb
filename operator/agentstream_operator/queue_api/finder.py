"""Finds a message, and what became of it in each group of its stream."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from agentstream.protocol.entry import Entry, position
from agentstream.protocol.keys import parse_consumer
from agentstream.protocol.replaying import FIRST, LAST, PageEntry, page, parse_page
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.replay import readable
from agentstream_operator.broker.whereabouts import find_fate
from agentstream_operator.plan.fate import Fate, MessageState, is_addressed
from agentstream_operator.plan.letters import Letter
from agentstream_operator.queue_api.documents import MessageAnswer, MessageItem, StateInGroup
from agentstream_operator.queue_api.items import message_item, time_at
from agentstream_operator.queue_api.places import key_of
from agentstream_operator.queue_api.problems import Refusal, invalid
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup, DeliverPolicy

LARGEST_ALONE: Final = 1 << 20
"""Bytes of the largest message whose payload is shown when it is asked for alone."""

_AT_A_TIME: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class MessageFinder:
    """Finds messages; needs only the right to read."""

    index: ResourceIndex
    broker: Broker

    async def message(self, stream: AgentStream, entry_id: str) -> MessageAnswer:
        """Reads a message and what became of it in each group of its stream.

        One that is gone from the stream is still found where a group has it.

        Raises:
            Refusal: 404: nothing is known of it; 409: another resource has claimed the stream's key; 422: it
                is no id.
            AgentStreamError: the server does not answer.
        """
        key = key_of(self.index, stream)
        if position(entry_id) == (0, 0):
            raise invalid("path/entry", "it is no entry id", "an entry id is like 1796040762366-0")
        there = await self._read(key, entry_id)
        item = message_item(there, largest=LARGEST_ALONE) if there is not None else None
        turn = asyncio.Semaphore(_AT_A_TIME)

        async def look(group: ConsumerGroup) -> tuple[StateInGroup, Letter | None]:
            agent = group.agent_name if group.spec.deliver is DeliverPolicy.ADDRESSED else None
            is_for_group = is_addressed(item.to if item is not None else None, agent)
            async with turn:
                fate, letter = await find_fate(
                    self.broker.call,
                    key,
                    group.group_name,
                    entry_id,
                    is_for_group=is_for_group,
                )
            return _state(group, fate), letter

        found = await asyncio.gather(*map(look, self._groups(stream)))
        item = item or _trimmed(entry_id, [letter for _, letter in found if letter is not None])
        states = tuple(state for state, _ in found)
        if there is None and all(state.state in _NOTHING_KNOWN for state in states):
            raise await self._gone(stream, entry_id)
        return MessageAnswer(
            **dict(item),
            namespace=stream.metadata.namespace,
            stream=stream.metadata.name,
            groups=states,
        )

    def _groups(self, stream: AgentStream) -> list[ConsumerGroup]:
        groups = (self.index.groups.get(key) for key in self.index.readers_of(stream.key))
        return sorted(
            (group for group in groups if group is not None and self.index.group_winner(group) is group),
            key=lambda group: group.metadata.name,
        )

    async def _read(self, key: str, entry_id: str) -> Entry | None:
        found = parse_page(await self.broker.call(*page(key, entry_id, entry_id, 1))).entries
        return _entry(key, found[0]) if found else None

    async def _gone(self, stream: AgentStream, entry_id: str) -> Refusal:
        """What is said of a message of which nothing is left."""
        name = f"{stream.metadata.namespace}/{stream.metadata.name}"
        oldest = parse_page(await self.broker.call(*page(stream.stream_key, FIRST, LAST, 1))).entries
        reach = f"its history reaches back to {oldest[0].id}" if oldest else "the stream is empty"
        return Refusal(
            HTTPStatus.NOT_FOUND,
            f"there is no message {entry_id} on AgentStream {name}: {reach}",
            "look for it with GET /queue/messages, by its id or its correlation id",
        )


_NOTHING_KNOWN: Final = frozenset(
    {
        MessageState.MISSING,
        MessageState.ACKNOWLEDGED,
        MessageState.NOT_ADDRESSED,
        MessageState.UNKNOWN,
        # an id that is yet to come
        MessageState.WAITING,
    }
)
"""What every group says of an id that no message ever had."""


def _entry(key: str, found: PageEntry) -> Entry | None:
    read = readable(key, found, dead=False)
    return read if isinstance(read, Entry) else None


def _trimmed(entry_id: str, letters: list[Letter]) -> MessageItem:
    """Describes a message that is gone from the stream: from a dead letter of it, if there is one."""
    if not letters:
        return MessageItem(entry=entry_id, size=0, problem="it is gone from the stream")
    item = message_item(letters[0].entry, largest=LARGEST_ALONE)
    return item.model_copy(update={"entry": entry_id, "at": time_at(position(entry_id)[0] / 1000)})


def _state(group: ConsumerGroup, fate: Fate) -> StateInGroup:
    return StateInGroup(
        group=group.metadata.name,
        state=fate.state,
        consumer=fate.consumer,
        pod=parse_consumer(fate.consumer)[0] or None if fate.consumer is not None else None,
        held_seconds=fate.idle / 1000 if fate.idle is not None else None,
        attempts=fate.attempts,
        due=time_at(fate.due / 1000) if fate.due is not None else None,
        reason=fate.reason,
        error=fate.error,
        letter=fate.letter,
        replay=fate.replay,
    )
