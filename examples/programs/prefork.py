"""A WSGI application under `gunicorn prefork:app --preload --workers 2`, whose worker processes also consume.

`--preload` imports this module once, before gunicorn forks. So the agent is made in the parent and entered in
each worker: what it opens then, connections and threads, belongs to that worker alone. `gunicorn.conf.py` has
the two hooks.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable
from threading import Thread
from typing import Any

import msgspec

from agentstream import Settings
from agentstream.sync import Agent

agent = Agent.connect(Settings.from_env())
log = logging.getLogger(__name__)


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
    """Enters the agent in a worker process, and consumes in a thread of it."""
    global _running  # noqa: PLW0603 - one for each process, as the agent is
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    agent.__enter__()
    _running = Thread(target=agent.run, kwargs={"concurrency": 8})
    _running.start()
    log.info("ready")


def stop() -> None:
    """Finishes what handlers have, and leaves the agent."""
    if _running is not None:
        agent.stop()
        _running.join()
        agent.__exit__(None, None, None)


def app(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    """Accepts a document: once it has answered, some worker will index it."""
    document = msgspec.json.decode(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])), type=Document)
    sent = agent.send_message(to="prefork", type="event", payload=document)
    start_response("202 Accepted", [("Content-Type", "application/json")])
    return [json.dumps({"id": sent.id}).encode()]


_running: Thread | None = None
