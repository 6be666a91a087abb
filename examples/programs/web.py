"""A web service that also consumes: `uvicorn web:app --workers 2`, or any other ASGI server.

Each worker process has an agent of its own. Uvicorn handles the signals; when it ends the lifespan, the agent
drains as at SIGTERM: what its handlers have is finished, what waits goes to the other processes.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import msgspec
from fastapi import FastAPI
from pydantic import BaseModel

from agentstream import Agent, Settings

agent = Agent.connect(Settings.from_env())
log = logging.getLogger(__name__)


class Document(msgspec.Struct):
    """A document to index; `takes` is how many seconds that takes."""

    n: int
    takes: float = 0.0


class NewDocument(BaseModel):
    """The body of POST /documents."""

    n: int
    takes: float = 0.0


@agent.on("event")
async def index(document: Document) -> None:
    """Handles a document in one of the worker processes."""
    log.info("began %d", document.n)
    await asyncio.sleep(document.takes)
    log.info("handled %d", document.n)


@contextlib.asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Consumes while the application serves."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    async with agent, agent.running(concurrency=8):
        log.info("ready")
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/documents", status_code=202)
async def add(document: NewDocument) -> dict[str, str]:
    """Accepts a document: once this returns, some worker will index it."""
    sent = await agent.send_message(to="web", type="event", payload=document)
    return {"id": sent.id}
