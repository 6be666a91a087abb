"""Says what a replay would do, as an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.replay import look_ahead
from agentstream_operator.plan.letters import Letter
from agentstream_operator.queue_api.documents import PreviewAnswer
from agentstream_operator.queue_api.items import message_item, time_of
from agentstream_operator.queue_api.places import stream_of_group
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.streamreplay import StreamReplaySpec

LOOKS_FOR: Final = 20.0
"""Seconds for which entries are looked at; a replay itself looks at all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class PreviewReader:
    """Looks at what replays would select."""

    index: ResourceIndex
    broker: Broker

    async def preview(self, group: ConsumerGroup, spec: StreamReplaySpec) -> PreviewAnswer:
        """Looks at what a replay would select, and changes nothing.

        Raises:
            Refusal: 409: the group has no stream, or another resource has claimed its place.
            AgentStreamError: the server does not answer.
        """
        stream = stream_of_group(self.index, group)
        ahead = await look_ahead(self.broker, spec, group, stream, seconds=LOOKS_FOR)
        seen = ahead.preview
        sample = (found.entry if isinstance(found, Letter) else found for found in seen.sample)
        return PreviewAnswer(
            namespace=group.metadata.namespace,
            group=group.metadata.name,
            source=spec.from_.source,
            scanned=seen.scanned,
            from_=seen.first_scanned,
            to=seen.last_scanned,
            more=seen.more,
            total=ahead.total,
            matched=seen.matched,
            would_move=seen.moved,
            skipped=dict(seen.skipped),
            first=time_of(seen.first),
            last=time_of(seen.last),
            seconds=ahead.seconds,
            # who may replay need not have the right to read
            sample=tuple(message_item(entry, payload=False) for entry in sample),
            warnings=ahead.warnings,
        )
