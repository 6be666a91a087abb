"""Finds the messages of a conversation, over all streams of a namespace that one may read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentstream.errors import ServerRefused
from agentstream.printable import printable
from agentstream.protocol.entry import Entry, position
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.replay import readable
from agentstream_operator.broker.scan import InvalidEntryId, Scan, Span, Work
from agentstream_operator.plan.selection import belongs
from agentstream_operator.queue_api.documents import ConversationAnswer, ConversationItem, SearchedStream
from agentstream_operator.queue_api.items import message_item
from agentstream_operator.queue_api.problems import invalid
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.agentstream import AgentStream

_WORK: Final = Work(seconds=1.0)
_LARGEST: Final = 4 << 20
_MOST: Final = 500
_MARK: Final = "@"
"""Between the name of a stream and an entry id in a cursor."""


@dataclass(frozen=True, slots=True, eq=False)
class ConversationReader:
    """Searches streams one after the other, each from its newest message on."""

    index: ResourceIndex
    broker: Broker

    async def conversation(
        self, namespace: str, streams: Sequence[AgentStream], correlation: str, cursor: str | None
    ) -> ConversationAnswer:
        """Finds messages of a conversation, as far as the time goes.

        Args:
            namespace: of the streams.
            streams: those that the caller may read.
            correlation: the id that the messages refer to; the message that has it as its own is one, too.
            cursor: where an earlier answer ended.

        Raises:
            Refusal: 422: the cursor is none.
            AgentStreamError: the server does not answer.
        """
        name, _, at = (cursor or "").partition(_MARK)
        found: list[ConversationItem] = []
        searched: list[SearchedStream] = []
        left, following, clock = _WORK, None, asyncio.get_running_loop().time
        for stream in sorted(streams, key=lambda each: each.metadata.name):
            here = stream.metadata.name
            if here < name or self.index.winner(stream) is not stream:
                continue
            if left.seconds <= 0 or left.entries <= 0 or len(found) >= _MOST:
                following = f"{here}{_MARK}"
                break
            began = clock()
            scan = self._scan(stream, at if here == name else "", left)
            problem = await _collect(stream, scan, correlation, found)
            looked = scan.looked
            searched.append(
                SearchedStream(
                    stream=here,
                    problem=problem,
                    scanned=looked.scanned,
                    from_=looked.first,
                    to=looked.last,
                    more=looked.more and problem is None,
                    cursor=None,
                )
            )
            if looked.more and problem is None:
                following = f"{here}{_MARK}{looked.cursor or ''}"
                break
            left = left._replace(
                entries=left.entries - looked.scanned, seconds=left.seconds - (clock() - began)
            )
        return ConversationAnswer(
            namespace=namespace,
            correlation_id=correlation,
            messages=tuple(sorted(found, key=lambda each: position(each.entry))),
            streams=tuple(searched),
            more=following is not None,
            cursor=following,
        )

    def _scan(self, stream: AgentStream, at: str, work: Work) -> Scan:
        try:
            return Scan(self.broker.call, stream.stream_key, Span(cursor=at or None), work)
        except InvalidEntryId as error:
            raise invalid("query/cursor", str(error), "take it from an answer as it is") from error


async def _collect(
    stream: AgentStream, scan: Scan, correlation: str, found: list[ConversationItem]
) -> str | None:
    """Adds what belongs to a conversation. Returns why the stream could not be searched, if it could not."""
    left = _LARGEST
    try:
        async for each in scan.entries():
            entry = readable(stream.stream_key, each, dead=False)
            if not isinstance(entry, Entry) or not belongs(entry, correlation):
                continue
            found.append(ConversationItem(**dict(message_item(entry)), stream=stream.metadata.name))
            left -= entry.size
            if left <= 0 or len(found) >= _MOST:
                break
    except ServerRefused as error:
        # such as a key of another type: the other streams have nothing to do with it
        return printable(error, 300)
    return None
