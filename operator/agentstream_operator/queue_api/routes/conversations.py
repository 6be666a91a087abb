"""Conversations: the messages with one correlation id, over all streams of a namespace."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from agentstream_operator.queue_api.access import MESSAGES, Namespace, RightsOf, declared
from agentstream_operator.queue_api.documents import ConversationAnswer
from agentstream_operator.queue_api.limits import SEARCH
from agentstream_operator.queue_api.sources import SourcesOf

routes = APIRouter(prefix="/queue/conversations", tags=["messages"])


@routes.get(
    "/{namespace}/{correlation:path}",
    summary="A conversation",
    dependencies=[SEARCH],
    openapi_extra=declared(MESSAGES),
)
async def get_conversation(
    *,
    sources: SourcesOf,
    rights: RightsOf,
    namespace: Namespace,
    correlation: Annotated[str, Path(min_length=1, max_length=512, description="The correlation id.")],
    cursor: Annotated[
        str | None, Query(max_length=128, description="Goes on from an earlier answer.")
    ] = None,
) -> ConversationAnswer:
    """Returns the messages that refer to an id, and the one that has it, from all streams that one may read.

    Looks for a second at most, at one stream after the other, each from its newest message on, and says at
    how many entries; `cursor` goes on from there.
    """
    streams = {stream.metadata.name: stream for stream in sources.streams(namespace)}
    readable = await rights.among_names(MESSAGES, namespace, streams)
    return await sources.conversations.conversation(
        namespace, [streams[name] for name in readable], correlation, cursor
    )
