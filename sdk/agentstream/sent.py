"""The result of sending a message."""

from __future__ import annotations

import msgspec


class SentMessage(msgspec.Struct, frozen=True):
    """A message that is on its stream, or that was shed because its stream was full.

    Attributes:
        id: id of the message.
        stream: name of the AgentStream.
        entry: id of the entry on the stream; empty for a message that was shed.
    """

    id: str
    stream: str
    entry: str

    @property
    def shed(self) -> bool:
        """Whether the stream was full and `on_full="shed"` dropped the message."""
        return not self.entry
