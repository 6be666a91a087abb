"""Connections with an agent's own user."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.access import AgentUse, set_user
from support.servers import Server

PASSWORD = "correct horse battery staple"
HASHES = (hashlib.sha256(PASSWORD.encode()).hexdigest(),)


@asynccontextmanager
async def as_agent(server: Server, broker: Broker, use: AgentUse) -> AsyncIterator[Client]:
    """Sets the agent's user as the operator would, and connects with it."""
    action = set_user(use, "test", HASHES)
    await broker.apply(action)
    wire = Client(lambda: Endpoint(server.url, action.name, PASSWORD), name="agent")
    try:
        yield wire
    finally:
        await wire.close()
