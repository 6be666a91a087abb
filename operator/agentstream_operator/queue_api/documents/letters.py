"""Dead letters of a group, one by one and by what they died of."""

from __future__ import annotations

from datetime import datetime

from agentstream_operator.queue_api.documents.common import Answer, Count, Looked
from agentstream_operator.queue_api.documents.messages import MessageItem


class LetterItem(Answer):
    """A dead letter."""

    letter: str
    """Entry id among the dead letters."""

    origin: str | None = None
    """Entry id of the message on its stream; it may be gone there. Null if the letter cannot be read."""

    at: datetime | None = None
    """When it became a dead letter, by the clock of the server."""

    attempts: Count | None = None
    """Attempts before."""

    reason: str | None = None
    """Why it is a dead letter."""

    error: str | None = None
    """The error of the latest attempt."""

    message: MessageItem
    """The message; its `entry` is that of the letter."""


class LettersAnswer(Looked):
    """Dead letters of a group, the newest first."""

    namespace: str
    """The namespace."""

    group: str
    """Name of the ConsumerGroup."""

    total: Count | None = None
    """Dead letters of the group; null if unknown."""

    letters: tuple[LetterItem, ...]
    """The dead letters that match."""


class LetterGroupItem(Answer):
    """Dead letters with one reason and the same error, but for numbers, ids and the like in it."""

    reason: str
    """Why they are dead letters."""

    error: str
    """Their error; what differs between them is replaced, as by `<n>` for numbers."""

    count: Count
    """Number of these letters among those that were looked at."""

    first: datetime | None = None
    """When the first of them became one."""

    last: datetime | None = None
    """When the last of them did."""

    sample: str | None = None
    """UUID of the message of the latest one; null if it cannot be read."""

    letter: str
    """Entry id of the latest one."""


class LetterGroupsAnswer(Looked):
    """Dead letters of a group by what they died of, the most frequent first."""

    namespace: str
    """The namespace."""

    group: str
    """Name of the ConsumerGroup."""

    total: Count | None = None
    """Dead letters of the group; null if unknown."""

    groups: tuple[LetterGroupItem, ...]
    """The groups of letters."""
