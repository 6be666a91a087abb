"""A worker without an event loop: its handlers block, and run in a pool of threads."""

import hashlib
import logging
import time

import msgspec

from agentstream.sync import Agent

agent = Agent.from_env()
log = logging.getLogger(__name__)


class Document(msgspec.Struct):
    """A document to take the digest of."""

    n: int
    text: str = ""
    takes: float = 0.0
    """Seconds that reading it takes."""


class Digest(msgspec.Struct):
    """The digest of document `n`."""

    n: int
    sha256: str


@agent.on("task_request")
def digest(document: Document) -> Digest:
    """Returns the digest; it goes to whoever asked."""
    time.sleep(document.takes)
    result = Digest(document.n, hashlib.sha256(document.text.encode()).hexdigest())
    log.info("handled %d", document.n)
    return result


@agent.on("event")
def note(document: Document) -> None:
    """Handles documents that nobody waits for."""
    log.info("began %d", document.n)
    digest(document)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with agent:
        log.info("ready")
        # SIGTERM ends `run`: calls that run are finished, and what waits goes to other processes
        agent.run(concurrency=8)
