"""The application: all calls under /queue, live views under /events, and their description."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from agentstream_operator.queue_api import description
from agentstream_operator.queue_api.events import LiveViews
from agentstream_operator.queue_api.gate import Gate
from agentstream_operator.queue_api.limits import Turns
from agentstream_operator.queue_api.ports import AccessCheck, Authenticator, Replays
from agentstream_operator.queue_api.problems import add_handlers
from agentstream_operator.queue_api.routes import consumers as consumer_routes
from agentstream_operator.queue_api.routes import conversations as conversation_routes
from agentstream_operator.queue_api.routes import events as event_routes
from agentstream_operator.queue_api.routes import lag as lag_routes
from agentstream_operator.queue_api.routes import letters as letter_routes
from agentstream_operator.queue_api.routes import messages as message_routes
from agentstream_operator.queue_api.routes import replays as replay_routes
from agentstream_operator.queue_api.sources import Sources


def application(
    sources: Sources,
    replays: Replays,
    authenticator: Authenticator,
    access: AccessCheck,
    live: LiveViews,
    *,
    count: Callable[[int], object] = lambda _: None,
) -> Gate:
    """Builds the application; `count` is called with the HTTP status of every answer.

    Close `live` before the server stops, which waits for its answers.
    """
    app = FastAPI(
        openapi_url=None, redirect_slashes=False, generate_unique_id_function=lambda route: route.name
    )
    app.state.sources, app.state.replays, app.state.access = sources, replays, access
    app.state.live = live
    app.state.searches, app.state.views = Turns(4, 16, "searches"), Turns(10, 50, "live views")
    add_handlers(app)
    for module in (
        lag_routes,
        consumer_routes,
        letter_routes,
        message_routes,
        conversation_routes,
        event_routes,
    ):
        app.include_router(module.routes)
    for routes in (replay_routes.start, replay_routes.routes):
        app.include_router(routes)
    described = JSONResponse(description.describe(app))

    async def describe() -> Response:
        return described

    app.add_api_route("/openapi.json", describe, include_in_schema=False)
    return Gate(app, authenticator, count)
