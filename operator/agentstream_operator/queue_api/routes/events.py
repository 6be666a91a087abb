"""Live views: what changes, as server-sent events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from starlette.requests import Request

from agentstream_operator.queue_api.access import NUMBERS, SEE_REPLAYS, Rights, RightsOf, declared
from agentstream_operator.queue_api.events import LiveEvent, LiveViews, Look
from agentstream_operator.queue_api.limits import VIEW
from agentstream_operator.queue_api.ports import Replays
from agentstream_operator.queue_api.routes.lag import lag_of
from agentstream_operator.queue_api.routes.replays import ReplaysOf, replays_of
from agentstream_operator.queue_api.sources import Sources, SourcesOf

routes = APIRouter(tags=["live"])
_VIEW = "^(lag|replays)$"


@routes.get(
    "/events",
    summary="A live view",
    dependencies=[VIEW],
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    openapi_extra=declared(NUMBERS, SEE_REPLAYS),
)
async def get_events(
    request: Request,
    rights: RightsOf,
    sources: SourcesOf,
    replays: ReplaysOf,
    view: Annotated[str, Query(pattern=_VIEW, description="`lag` or `replays`.")],
) -> StreamingResponse:
    """Sends what changes, once a second, for half a minute; then the client connects again.

    Events are called `lag` and `replays`, and have the documents of these calls as data; an event `problem`
    says that something does not answer.
    """
    look = await _look(view, rights, sources, replays)
    views: LiveViews = request.app.state.live
    return StreamingResponse(views.frames(look), media_type="text/event-stream")


async def _look(view: str, rights: Rights, sources: Sources, replays: Replays) -> Look:
    """Returns what looks for a view; what may not be seen is refused at once."""
    return await (_lag(rights, sources) if view == "lag" else _replays(rights, sources, replays))


async def _lag(rights: Rights, sources: Sources) -> Look:
    shown: object = None

    async def look() -> Sequence[LiveEvent]:
        nonlocal shown
        found = await lag_of(rights, sources)
        if (numbers := found.model_copy(update={"at": None})) == shown:
            return ()
        shown = numbers
        return (LiveEvent("lag", found),)

    await rights.among(NUMBERS, sources.namespaces)
    return look


async def _replays(rights: Rights, sources: Sources, replays: Replays) -> Look:
    shown: object = None

    async def look() -> Sequence[LiveEvent]:
        nonlocal shown
        found = await replays_of(rights, sources, replays)
        if found == shown:
            return ()
        shown = found
        return (LiveEvent("replays", found),)

    await look()
    shown = None
    return look
