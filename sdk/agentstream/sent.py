"""What sending returns."""

from __future__ import annotations

import msgspec


class SentMessage(msgspec.Struct, frozen=True):
    """A message that the server has.

    Attributes:
        id: the message's.
        stream: name of the AgentStream that it is on.
        entry: its id on the stream.
    """

    id: str
    stream: str
    entry: str
