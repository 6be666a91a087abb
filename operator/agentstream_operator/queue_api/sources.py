"""Where the answers come from: the declared resources, and who reads the server."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends
from starlette.requests import Request

from agentstream_operator.queue_api.browser import MessagesWanted
from agentstream_operator.queue_api.documents import (
    ConsumersAnswer,
    ConversationAnswer,
    LagAnswer,
    LetterGroupsAnswer,
    LettersAnswer,
    MessageAnswer,
    MessagesAnswer,
    PreviewAnswer,
)
from agentstream_operator.queue_api.problems import not_found
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.streamreplay import StreamReplaySpec


class Lags(Protocol):
    """Measures streams and groups."""

    async def lag(self, streams: Sequence[AgentStream], groups: Sequence[ConsumerGroup]) -> LagAnswer:
        """Returns the numbers of these, at most a second old; those that are unknown are null."""


class Previews(Protocol):
    """Counts what replays would do."""

    async def preview(self, group: ConsumerGroup, spec: StreamReplaySpec) -> PreviewAnswer:
        """Looks at what a replay would select, and changes nothing."""


class Browses(Protocol):
    """Reads messages and dead letters."""

    async def messages(self, stream: AgentStream, wish: MessagesWanted) -> MessagesAnswer:
        """Returns messages of a stream that match, and what was looked at."""

    async def letters(self, group: ConsumerGroup, limit: int, cursor: str | None) -> LettersAnswer:
        """Returns dead letters, the newest first."""

    async def letter_groups(self, group: ConsumerGroup, cursor: str | None) -> LetterGroupsAnswer:
        """Returns dead letters by what they died of."""


class Finds(Protocol):
    """Finds single messages."""

    async def message(self, stream: AgentStream, entry_id: str) -> MessageAnswer:
        """Returns a message, and what became of it in each group."""


class Converses(Protocol):
    """Finds the messages of conversations."""

    async def conversation(
        self, namespace: str, streams: Sequence[AgentStream], correlation: str, cursor: str | None
    ) -> ConversationAnswer:
        """Returns messages of a conversation, and what was looked at."""


class Consuming(Protocol):
    """Reads the consumers of groups."""

    async def consumers(self, group: ConsumerGroup) -> ConsumersAnswer:
        """Returns the consumers of a group, and what they hold."""


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """What is declared, and what reads the server."""

    index: ResourceIndex
    lags: Lags
    previews: Previews
    browser: Browses
    finder: Finds
    conversations: Converses
    consumers: Consuming

    @property
    def namespaces(self) -> Collection[str]:
        """The namespaces with streams or groups."""
        return {key.namespace for key in (*self.index.streams, *self.index.groups)}

    def streams(self, namespace: str) -> list[AgentStream]:
        """Returns the streams of a namespace."""
        return [stream for key, stream in self.index.streams.items() if key.namespace == namespace]

    def stream(self, namespace: str, name: str) -> AgentStream:
        """Returns a stream.

        Raises:
            Refusal: 404: it does not exist.
        """
        found = self.index.streams.get(ResourceKey("AgentStream", namespace, name))
        if found is None:
            raise not_found(f"AgentStream {namespace}/{name}", _SEE)
        return found

    def group(self, namespace: str, name: str) -> ConsumerGroup:
        """Returns a group.

        Raises:
            Refusal: 404: it does not exist.
        """
        found = self.index.groups.get(ResourceKey("ConsumerGroup", namespace, name))
        if found is None:
            raise not_found(f"ConsumerGroup {namespace}/{name}", _SEE)
        return found


_SEE = "GET /queue/lag lists the streams and groups that there are"


def sources_of(request: Request) -> Sources:
    """Returns where answers come from."""
    found: Sources = request.app.state.sources
    return found


SourcesOf = Annotated[Sources, Depends(sources_of)]
