"""Reads the consumers of a group, and what each of them holds."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from agentstream.printable import printable
from agentstream.protocol.keys import StreamKeys, parse_consumer
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.observed import ConsumerSeen, HeldSeen
from agentstream_operator.queue_api.documents import ConsumerItem, ConsumersAnswer, HeldItem
from agentstream_operator.queue_api.places import stream_of_group
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.consumergroup import ConsumerGroup

LISTED: Final = 100
"""How many consumers are listed, and how many messages of each."""

_LONGEST_NAME: Final = 300


@dataclass(frozen=True, slots=True, eq=False)
class ConsumersReader:
    """Reads consumers; needs only the right to read."""

    index: ResourceIndex
    broker: Broker

    async def consumers(self, group: ConsumerGroup) -> ConsumersAnswer:
        """Reads the consumers of a group, those that hold most first.

        Raises:
            Refusal: 409: the group has no stream, or another resource has its place.
            AgentStreamError: the server does not answer.
        """
        stream = stream_of_group(self.index, group)
        key, name = stream.stream_key, group.group_name
        keys = (key, StreamKeys(key).retry(name))
        seen = await asyncio.gather(*(self.broker.consumers(each, name) for each in keys))
        by_name: defaultdict[str, list[ConsumerSeen]] = defaultdict(list)
        for consumer in (*seen[0], *seen[1]):
            by_name[consumer.name].append(consumer)
        most = sorted(by_name, key=lambda each: (-_pending(by_name[each]), each))
        items = await asyncio.gather(*(self._item(keys, name, by_name[each]) for each in most[:LISTED]))
        return ConsumersAnswer(
            namespace=group.metadata.namespace,
            group=group.metadata.name,
            more=len(most) > LISTED,
            consumers=tuple(items),
        )

    async def _item(self, keys: tuple[str, str], group: str, seen: list[ConsumerSeen]) -> ConsumerItem:
        name = seen[0].name
        held: list[HeldItem] = []
        if _pending(seen):
            found = await asyncio.gather(*(self.broker.held(key, group, name, LISTED) for key in keys))
            held = [_held(each, retry=retry) for retry, part in enumerate(found) for each in part]
        return ConsumerItem(
            name=printable(name, _LONGEST_NAME),
            pod=printable(parse_consumer(name)[0], _LONGEST_NAME),
            pending=_pending(seen),
            idle_seconds=min(each.idle for each in seen) / 1000,
            holds=tuple(sorted(held, key=lambda each: -each.idle_seconds)[:LISTED]),
        )


def _pending(seen: list[ConsumerSeen]) -> int:
    return sum(each.pending for each in seen)


def _held(seen: HeldSeen, *, retry: int) -> HeldItem:
    return HeldItem(
        entry=seen.entry, retry=bool(retry), idle_seconds=seen.idle / 1000, deliveries=seen.deliveries
    )
