"""A WSGI application under `gunicorn prefork:app --preload --workers 2`, whose worker processes also consume.

`--preload` imports this module once, before gunicorn forks. So the agent is made in the parent and entered in
each worker: what it opens then, connections and threads, belongs to that worker alone. `gunicorn.conf.py` has
the two hooks.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import msgspec

from agentstream import Settings
from agentstream.sync import Agent

agent = Agent.connect(Settings.from_env())
log = logging.getLogger(__name__)
entered = ExitStack()


class Document(msgspec.Struct):
    """A document to index; `takes` is how many seconds that takes."""

    n: int
    takes: float = 0.0


@agent.on("event")
def index(document: Document) -> None:
    """Handles a document in a thread of a worker process."""
    log.info("began %d", document.n)
    time.sleep(document.takes)
    log.info("handled %d", document.n)


def start() -> None:
    """Enters the agent in a worker process, and runs its handlers beside the web application."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    entered.enter_context(agent)
    entered.enter_context(agent.running(concurrency=8))
    log.info("ready")


def stop() -> None:
    """Finishes what handlers have, and leaves the agent."""
    entered.close()


def app(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    """Accepts a document: once it has answered, some worker will index it."""
    document = msgspec.json.decode(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])), type=Document)
    sent = agent.send_message(to="prefork", type="event", payload=document)
    start_response("202 Accepted", [("Content-Type", "application/json")])
    return [json.dumps({"id": sent.id}).encode()]
