"""Every call of the HTTP API against its own description, over real connections and on a real server.

https://schemathesis.readthedocs.io
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.core.result import Ok
from schemathesis.engine.events import EngineEvent, FatalError, NonFatalError, ScenarioFinished

from agentstream.protocol.keys import StreamKeys
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.actions import CreateGroup, CreateStream
from agentstream_operator.queue_api.app import application
from agentstream_operator.queue_api.events import LiveViews
from agentstream_operator.queue_api.examples import NAMES
from agentstream_operator.queue_api.lag import LagReader
from agentstream_operator.queue_api.loopback import LoopbackAuthenticator, OwnerMayAll
from agentstream_operator.queue_api.reading import sources_of_server
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.serve.http import HttpServer
from support.asking import ask
from support.examples import examples
from support.queue_api import JANE, Granted, MemoryReplays, TokensAreNames, nothing_there
from support.resources import a_group, a_replay, a_stream
from support.servers import Server, builds

TOKEN = "jane"
PLACE = NAMES["namespace"]
KEY = a_stream(namespace=PLACE).stream_key
KEYS = StreamKeys(KEY)
MESSAGES, LETTERS = 40, 10


def description() -> dict[str, object]:
    app = application(
        nothing_there(ResourceIndex()), MemoryReplays(), TokensAreNames(), Granted(), LiveViews()
    )
    found: dict[str, object] = asyncio.run(ask(app, "GET", "/openapi.json", headers=JANE)).json
    return found


def declared() -> ResourceIndex:
    index = ResourceIndex()
    for resource in (
        a_stream(namespace=PLACE),
        a_group(namespace=PLACE),
        a_group("boss", PLACE),
        a_group("lost", PLACE, stream="nowhere"),
    ):
        index.put(resource)
    return index


def fill(admin: redis.Redis) -> None:
    born = NAMES["entry"].partition("-")[0]
    for number in range(MESSAGES):
        message = {"v": 1, "id": f"00000000-0000-4000-8000-{number:012}", "from": "planner", "to": "coder"}
        message |= {"type": "task_request", "payload": {"number": number}, "timestamp": 0}
        message["correlation_id"] = NAMES["correlation"]
        body = json.dumps(message)
        entry = f"{born}-{number}"
        admin.xadd(KEY, {"m": body}, id=entry)
        if number < LETTERS:
            said: dict[Any, Any] = {
                "reason": "MaxDeliveries",
                "error": f"ValueError: {number}",
                "attempts": "5",
            }
            admin.xadd(KEYS.dead_letters("coder"), {"m": body, "origin": entry, **said})
    admin.xadd(KEY, {"m": "\xff\x1b[31m{", "\x00": "x"})
    admin.xadd(KEYS.dead_letters("coder"), {"no": "letter"})
    admin.xreadgroup("coder", "coder-0/1", {KEY: ">"}, count=3)


async def serve(url: str, listener: socket.socket, ready: Callable[[], object], end: asyncio.Event) -> None:
    broker = await Broker.connect(url, installation="test")
    await broker.apply(CreateStream(KEY, {"name": "tasks"}))
    for name in ("coder", "boss"):
        await broker.apply(CreateGroup(KEY, name, "0"))
    replays = MemoryReplays(
        {replay.key: replay for replay in (a_replay(NAMES["name"], PLACE), a_replay("old"))}
    )
    lags, live = LagReader(declared(), broker), LiveViews(lifetime=0.0)
    port = listener.getsockname()[1]
    app = application(
        sources_of_server(lags), replays, LoopbackAuthenticator(TOKEN, "jane", port), OwnerMayAll(), live
    )
    async with HttpServer(app, graceful_shutdown=1).serving(listener):
        ready()
        await end.wait()
    await lags.close()
    await broker.close()


@contextmanager
def served(server: Server) -> Iterator[str]:
    """Serves the application in a thread; its clients here have no event loop."""
    listener, ready, loop = (
        socket.create_server(("127.0.0.1", 0)),
        threading.Event(),
        asyncio.new_event_loop(),
    )
    end = asyncio.Event()
    thread = threading.Thread(
        target=loop.run_until_complete, args=(serve(server.url, listener, ready.set, end),)
    )
    thread.start()
    assert ready.wait(20)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    loop.call_soon_threadsafe(end.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the application, on a server with messages, dead letters and replays."""
    own = Server(builds()[0], tmp_path_factory.mktemp("contract"))
    own.start()
    with own.admin() as admin, served(own) as url:
        fill(admin)
        yield url
    own.kill()


def mistakes(found: EngineEvent, answered: set[str]) -> Iterator[str]:
    """Tells what an event of a run found, and adds the calls that it got an answer from."""
    if isinstance(found, NonFatalError | FatalError):
        yield repr(getattr(found, "value", found))
    if not isinstance(found, ScenarioFinished):
        return
    for id_, checks in found.recorder.checks.items():
        made, reply = found.recorder.cases[id_].value, found.recorder.interactions[id_].response
        if reply is not None and reply.status_code < 300:
            answered.add(made.operation.label)
        for check in checks:
            if check.failure_info is not None:
                yield f"{found.phase} {check.failure_info.failure}\n{check.failure_info.code_sample}"


def test_every_call_is_what_its_description_says(api: str) -> None:
    tried = examples(5)
    config = SchemathesisConfig.from_dict(
        {
            "seed": 7,
            "continue-on-failure": True,
            "headers": {"Authorization": f"Bearer {TOKEN}"},
            "generation": {
                "mode": "all",
                "max-examples": tried,
                "deterministic": True,
                "no-shrink": True,
                # fields of queries that nobody knows are ignored, as everywhere
                "allow-extra-parameters": False,
            },
            "phases": {"stateful": {"generation": {"max-examples": tried}}},
            "operations": [
                # half a minute for lists of up to a thousand ids
                {"include-name": "POST /queue/replay", "phases": {"coverage": {"enabled": False}}},
                {
                    "include-name": ["POST /queue/replay", "PATCH /queue/replays/{namespace}/{name}"],
                    # rules about several fields, and 1.0 for 1
                    "checks": {"positive_data_acceptance": {"expected-statuses": [200, 202, 404, 409, 422]}},
                },
            ],
        }
    )
    schema = schemathesis.openapi.from_dict(description(), config=config)
    schema.config.update(base_url=api)
    answered: set[str] = set()
    events = schemathesis.engine.from_schema(schema).execute()
    wrong = [mistake for event in events for mistake in mistakes(event, answered)]
    assert not wrong, "\n\n".join(wrong)
    # not only what is refused
    assert answered == {each.ok().label for each in schema.get_all_operations() if isinstance(each, Ok)}
