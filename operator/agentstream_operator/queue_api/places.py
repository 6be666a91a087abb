"""Finds the place that a resource has on the server: two may claim one, and then only the older has it."""

from __future__ import annotations

from agentstream_operator.queue_api.problems import no_stream
from agentstream_operator.reconcile.state.index import ResourceIndex, stream_of
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup


def key_of(index: ResourceIndex, stream: AgentStream) -> str:
    """Returns the key of a stream.

    Raises:
        Refusal: 409: another resource has claimed it.
    """
    if index.winner(stream) is not stream:
        raise no_stream(f"AgentStream {stream.metadata.namespace}/{stream.metadata.name}")
    return stream.stream_key


def stream_of_group(index: ResourceIndex, group: ConsumerGroup) -> AgentStream:
    """Returns the stream of a group.

    Raises:
        Refusal: 409: there is none, or another resource has its place or the group's.
    """
    stream = index.streams.get(stream_of(group))
    claimed = stream is not None and index.winner(stream) is stream
    if stream is None or not claimed or index.group_winner(group) is not group:
        raise no_stream(f"ConsumerGroup {group.metadata.namespace}/{group.metadata.name}")
    return stream
