"""Reads messages and dead letters, a bounded part at a time, and says what was looked at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from agentstream.protocol.entry import Entry
from agentstream.protocol.keys import StreamKeys
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.replay import readable
from agentstream_operator.broker.scan import InvalidEntryId, Scan, Scanned, Span
from agentstream_operator.plan.letters import Letter, LetterGroup, LetterGroups, message_id, read_letter
from agentstream_operator.plan.selection import Selection
from agentstream_operator.queue_api.documents import (
    LetterGroupItem,
    LetterGroupsAnswer,
    LetterItem,
    LettersAnswer,
    MessageItem,
    MessagesAnswer,
)
from agentstream_operator.queue_api.items import message_item, time_of
from agentstream_operator.queue_api.places import key_of, stream_of_group
from agentstream_operator.queue_api.problems import invalid
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup

_SPACE = re.compile("([:,]) ")

LARGEST_PAGE: Final = 4 << 20
"""Bytes of messages in one answer; the rest is on the next page."""


class MessagesWanted(NamedTuple):
    """What messages are asked for: those in a span that match, at most `limit`."""

    span: Span
    limit: int
    selection: Selection = Selection()
    now: float = 0.0
    id_: str | None = None
    text: str | None = None

    def wants(self, entry: Entry) -> bool:
        """Whether an entry matches; `id_` is how the UUID begins, and `text` what its JSON has somewhere."""
        if self.text is not None:
            body, text = (entry.body or b"").lower(), self.text.lower()
            # what is shown has spaces that most senders leave out
            if text.encode() not in body and _SPACE.sub(r"\1", text).encode() not in body:
                return False
        if self.id_ is not None and not (message_id(entry.body) or "").startswith(self.id_):
            return False
        return self.selection.verdict(entry, self.now) is not None


@dataclass(frozen=True, slots=True, eq=False)
class Browser:
    """Reads streams and dead letters; needs only the right to read."""

    index: ResourceIndex
    broker: Broker

    async def messages(self, stream: AgentStream, wish: MessagesWanted) -> MessagesAnswer:
        """Reads messages of a stream that match.

        Raises:
            Refusal: 409: another resource has claimed the stream's key; 422: an id or the cursor is none.
            AgentStreamError: the server does not answer.
        """
        key = key_of(self.index, stream)
        found: list[MessageItem] = []
        scan, left = self._scan(key, wish.span), LARGEST_PAGE
        async for page_entry in scan.entries():
            entry = readable(key, page_entry, dead=False)
            if isinstance(entry, Letter) or not wish.wants(entry):
                continue
            found.append(message_item(entry))
            left -= len(entry.body or b"")
            if len(found) >= wish.limit or left <= 0:
                break
        return MessagesAnswer(
            namespace=stream.metadata.namespace,
            stream=stream.metadata.name,
            messages=tuple(found),
            **_looked(scan.looked),
        )

    async def letters(self, group: ConsumerGroup, limit: int, cursor: str | None) -> LettersAnswer:
        """Reads dead letters of a group, the newest first.

        Raises:
            Refusal: 409: the group has no stream, or another resource has its place; 422: no cursor.
            AgentStreamError: the server does not answer.
        """
        key = self._letters_of(group)
        found: list[LetterItem] = []
        scan, left = self._scan(key, Span(cursor=cursor)), LARGEST_PAGE
        async for entry in scan.entries():
            letter = read_letter(key, entry.id, entry.withheld or entry.fields)
            found.append(letter_item(letter))
            left -= len(letter.entry.body or b"")
            if len(found) >= limit or left <= 0:
                break
        return LettersAnswer(
            namespace=group.metadata.namespace,
            group=group.metadata.name,
            total=await self._count(key),
            letters=tuple(found),
            **_looked(scan.looked),
        )

    async def letter_groups(self, group: ConsumerGroup, cursor: str | None) -> LetterGroupsAnswer:
        """Groups dead letters of a group by what they died of, as far as the time goes.

        Raises:
            Refusal, AgentStreamError: as `letters`.
        """
        key = self._letters_of(group)
        groups, scan = LetterGroups(), self._scan(key, Span(cursor=cursor))
        async for entry in scan.entries():
            groups.add(read_letter(key, entry.id, entry.withheld or entry.fields))
        return LetterGroupsAnswer(
            namespace=group.metadata.namespace,
            group=group.metadata.name,
            total=await self._count(key),
            groups=tuple(map(group_item, groups.largest_first())),
            **_looked(scan.looked),
        )

    def _letters_of(self, group: ConsumerGroup) -> str:
        return StreamKeys(stream_of_group(self.index, group).stream_key).dead_letters(group.group_name)

    def _scan(self, key: str, span: Span) -> Scan:
        try:
            return Scan(self.broker.call, key, span)
        except InvalidEntryId as error:
            name, _, detail = str(error).partition(" ")
            raise invalid(f"query/{name}", detail, "take it from an answer as it is") from error

    async def _count(self, key: str) -> int:
        return int(await self.broker.call("XLEN", key))


def letter_item(letter: Letter) -> LetterItem:
    """Describes a dead letter."""
    return LetterItem(
        letter=letter.id,
        origin=letter.origin,
        at=time_of(letter.id),
        attempts=letter.attempts,
        reason=letter.reason,
        error=letter.error,
        message=message_item(letter.entry),
    )


def group_item(group: LetterGroup) -> LetterGroupItem:
    """Describes letters that died of the same."""
    return LetterGroupItem(
        reason=group.reason,
        error=group.error,
        count=group.count,
        first=time_of(group.first),
        last=time_of(group.last),
        sample=group.message,
        letter=group.last,
    )


def _looked(looked: Scanned) -> dict[str, object]:
    return {
        "scanned": looked.scanned,
        "from_": looked.first,
        "to": looked.last,
        "more": looked.more,
        "cursor": looked.cursor,
    }
