"""Messages of a stream, and what became of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from agentstream_operator.plan.fate import MessageState
from agentstream_operator.queue_api.documents.common import Answer, Count, Looked, Seconds

Signature = Literal["Unsigned", "Unchecked", "Valid", "UnknownKey", "Invalid"]


class MessageItem(Answer):
    """A message on a stream. Fields of the envelope are null where it cannot be read."""

    entry: str
    """Entry id."""

    at: datetime | None = None
    """When it was added, by the clock of the server; null if its id holds no time."""

    size: Count
    """Bytes of the entry."""

    id: str | None = None
    """UUID of the message, the same at every attempt."""

    from_: Annotated[str | None, Field(alias="from")] = None
    """The agent that sent it."""

    to: str | None = None
    """The agent that is to handle it, or `broadcast`."""

    type: str | None = None
    """`task_request`, `task_result` or `event`."""

    correlation_id: str | None = None
    """Id of the message that it answers or belongs to."""

    reply_to: str | None = None
    """Where an answer is expected."""

    expires_at: datetime | None = None
    """When it becomes a dead letter instead of being handled."""

    key: str | None = None
    """Its ordering key."""

    schema_version: int | None = None
    """Version of the payload's schema."""

    payload: dict[str, Any] | None = None
    """The data; null if it cannot be read, or if it is too large for a page of messages."""

    signature: Signature = "Unchecked"
    """State of its signature; Unchecked: this server has no keys to check it with."""

    problem: str | None = None
    """Why the envelope cannot be read, or the payload is left out."""


class MessagesAnswer(Looked):
    """Messages of a stream, the newest first unless another order was asked for."""

    namespace: str
    """The namespace."""

    stream: str
    """Name of the AgentStream."""

    messages: tuple[MessageItem, ...]
    """The messages that match."""


class StateInGroup(Answer):
    """What became of a message in one group."""

    group: str
    """Name of the ConsumerGroup."""

    state: MessageState
    """Waiting: no consumer has it yet; Held: a consumer has it; Retrying: due for another attempt;
    Delayed: waits for its next attempt; Dead: a dead letter; Acknowledged: the group is done with it, or
    began after it, or its dead letter was removed; NotAddressed: for another agent; Missing: gone from the
    stream before the group got it; Unknown: the group is not there, or the search was not finished."""

    consumer: str | None = None
    """The consumer that holds it."""

    pod: str | None = None
    """The pod of that consumer."""

    held_seconds: Seconds | None = None
    """Time since its lease was renewed last."""

    attempts: Count | None = None
    """Attempts so far."""

    due: datetime | None = None
    """When its next attempt is due."""

    reason: str | None = None
    """Why it is to be tried again, or is a dead letter."""

    error: str | None = None
    """The error of the latest attempt."""

    letter: str | None = None
    """Entry id of its dead letter."""

    replay: str | None = None
    """The StreamReplay by which the group has it again."""


class MessageAnswer(MessageItem):
    """A message, and what became of it in each group."""

    namespace: str
    """The namespace."""

    stream: str
    """Name of the AgentStream."""

    groups: tuple[StateInGroup, ...]
    """What became of it, by group."""


class ConversationItem(MessageItem):
    """A message of a conversation."""

    stream: str
    """Name of the AgentStream that it is on."""


class SearchedStream(Looked):
    """How far a stream was searched."""

    stream: str
    """Name of the AgentStream."""

    problem: str | None = None
    """Why it could not be searched."""


class ConversationAnswer(Answer):
    """The messages of a conversation, over all streams of a namespace that one may read, the oldest first."""

    namespace: str
    """The namespace."""

    correlation_id: str
    """The correlation id; the message with this very id belongs to it, too."""

    messages: tuple[ConversationItem, ...]
    """The messages."""

    streams: tuple[SearchedStream, ...]
    """What was looked at, by stream."""

    more: bool
    """Whether there are more entries to look at."""

    cursor: str | None = None
    """Goes on from here, as the parameter `cursor` of the same call; null at the end."""
