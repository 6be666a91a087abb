"""Messages of a stream, by time, by id and by what their envelopes say."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query

from agentstream.protocol.replaying import FIRST, LAST
from agentstream_operator.broker.scan import Span
from agentstream_operator.plan.selection import Selection
from agentstream_operator.queue_api.access import (
    ENTRY,
    LETTERS,
    MESSAGES,
    NAME,
    Cursor,
    Namespace,
    StreamName,
    declared,
    of_namespace,
    of_stream,
)
from agentstream_operator.queue_api.browser import MessagesWanted
from agentstream_operator.queue_api.documents import MessageAnswer, MessagesAnswer
from agentstream_operator.queue_api.limits import SEARCH
from agentstream_operator.queue_api.sources import SourcesOf
from agentstream_operator.resources.streamreplay import ReplaySelect

routes = APIRouter(prefix="/queue/messages", tags=["messages"])
EntryId = Annotated[
    str | None,
    Query(
        max_length=41,
        description="An entry id, or its first part: a time in ms since 1970.",
        json_schema_extra={"pattern": ENTRY},
    ),
]


@routes.get(
    "/{namespace}/{stream}",
    summary="Messages of a stream",
    dependencies=[of_stream(MESSAGES), SEARCH],
    openapi_extra=declared(MESSAGES),
)
async def get_messages(
    *,
    sources: SourcesOf,
    namespace: Namespace,
    stream: StreamName,
    since: EntryId = None,
    until: EntryId = None,
    order: Annotated[
        Literal["forward", "backward"], Query(description="Oldest or newest first.")
    ] = "backward",
    type_: Annotated[
        Literal["task_request", "task_result", "event"] | None,
        Query(alias="type", description="Of this type."),
    ] = None,
    from_: Annotated[str | None, Query(alias="from", pattern=NAME, description="Sent by this agent.")] = None,
    correlation: Annotated[
        str | None, Query(min_length=1, max_length=512, description="Of this correlation id.")
    ] = None,
    id_: Annotated[
        str | None,
        Query(alias="id", pattern="^[0-9a-f-]{4,36}$", description="Whose UUID begins so."),
    ] = None,
    text: Annotated[
        str | None,
        Query(
            alias="q",
            min_length=1,
            max_length=200,
            description="Whose JSON, as it is on the stream, has this in it; the case of letters is ignored.",
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="How many at most.")] = 50,
    cursor: Cursor = None,
) -> MessagesAnswer:
    """Returns messages of a stream that match, the newest first.

    Looks for half a second at most, and says at how many entries; `cursor` goes on from there.
    """
    select = ReplaySelect(
        types=(type_,) if type_ is not None else None,
        senders=(from_,) if from_ is not None else None,
        correlation=correlation,
    )
    span = Span(FIRST if since is None else since, LAST if until is None else until, order, cursor)
    wish = MessagesWanted(span, limit, Selection(select, delivers_expired=True), time.time(), id_, text)
    return await sources.browser.messages(sources.stream(namespace, stream), wish)


@routes.get(
    "/{namespace}/{stream}/{entry}",
    summary="A message",
    dependencies=[of_stream(MESSAGES), of_namespace(LETTERS), SEARCH],
    openapi_extra=declared(MESSAGES, LETTERS),
)
async def get_message(
    *,
    sources: SourcesOf,
    namespace: Namespace,
    stream: StreamName,
    entry: Annotated[
        str,
        Path(
            max_length=41,
            description="Entry id on the stream, such as 1796040762366-0.",
            json_schema_extra={"pattern": ENTRY},
        ),
    ],
) -> MessageAnswer:
    """Returns a message, and what became of it in each group.

    Says who holds it and since when, when it is tried again, and why it is a dead letter.
    """
    return await sources.finder.message(sources.stream(namespace, stream), entry)
