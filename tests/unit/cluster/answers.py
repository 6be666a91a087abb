"""An API server on the loopback interface that answers as the test says: for what a real one seldom does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from agentstream_operator.cluster.api import Api
from support.servers import free_port

Json = dict[str, Any]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        method: GET, POST, PATCH or DELETE.
        path: with its query.
        headers: by name, however it is written.
        body: what was sent; None if nothing was.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


class Answering:
    """A server that gives answers one after the other, and the last one from then on.

    Args:
        answers: in this order.

    Attributes:
        api: connected to it.
        asked: what it was asked.
        hanging: how many requests wait for an answer that does not come.
    """

    def __init__(self, api: Api, *answers: Answer) -> None:
        self.api = api
        self.asked: list[Asked] = []
        self.answers = list(answers)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        self.asked.append(Asked(request.method, request.raw_path, request.headers, body))
        give = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return await give(request)


def says(code: int, body: Any = None) -> Answer:
    """An answer with this code, and JSON or a text."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if isinstance(body, str):
            return web.Response(status=code, text=body)
        return web.json_response(body if body is not None else {}, status=code)

    return answer


def refuses(code: int, message: str, *causes: str, reason: str = "") -> Answer:
    """An answer that the API server gives to what it refuses."""
    details = {"causes": [{"reason": cause} for cause in causes]} if causes else None
    found = {"kind": "Status", "status": "Failure", "message": message, "code": code, "details": details}
    return says(code, {**found, "reason": reason} if reason else found)


async def never(request: web.Request) -> web.StreamResponse:
    """No answer, until whoever asks has gone."""
    await asyncio.Event().wait()
    return web.Response()


async def breaks_off(request: web.Request) -> web.StreamResponse:
    """An answer that ends in the middle."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"metadata":')
    assert request.transport is not None
    request.transport.abort()
    return response


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Api]:
    """A client of the API server at an address."""
    configuration = Configuration(host=url)
    configuration.client_session_kwargs = {"trust_env": False}
    configuration.api_key["BearerToken"] = "Bearer token"
    client = ApiClient(configuration)
    try:
        yield Api(client)
    finally:
        await client.close()


@asynccontextmanager
async def answering(*answers: Answer) -> AsyncIterator[Answering]:
    """A server with these answers, and a client of it."""
    port = free_port()
    async with connected(f"http://127.0.0.1:{port}") as api:
        server = Answering(api, *answers)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server.answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            yield server
        finally:
            await runner.cleanup()
