"""The consumers of a group."""

from __future__ import annotations

from agentstream_operator.queue_api.documents.common import Answer, Count, Seconds


class HeldItem(Answer):
    """A message that a consumer holds."""

    entry: str
    """Entry id, on the stream or the group's retry stream."""

    retry: bool
    """Whether it is on the group's retry stream."""

    idle_seconds: Seconds
    """Time since its lease was renewed last."""

    deliveries: Count
    """How often the server gave it to a consumer."""


class ConsumerItem(Answer):
    """A consumer of a group."""

    name: str
    """Its name on the server."""

    pod: str
    """The pod or process that it runs in."""

    pending: Count
    """Messages that it holds."""

    idle_seconds: Seconds | None = None
    """Time since its last command; null if unknown."""

    holds: tuple[HeldItem, ...]
    """What it holds, the longest held first; at most a hundred of them."""


class ConsumersAnswer(Answer):
    """The consumers of a group."""

    namespace: str
    """The namespace."""

    group: str
    """Name of the ConsumerGroup."""

    more: bool
    """Whether there are more than are listed."""

    consumers: tuple[ConsumerItem, ...]
    """The consumers, those that hold most first."""
