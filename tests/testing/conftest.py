"""Sandboxes on each server that this machine can start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from agentstream.testing import Sandbox
from support.servers import Build, builds


@pytest.fixture(params=builds(), ids=lambda build: build.name)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    """`planner` produces to `tasks`, which `coder` consumes."""
    build: Build = request.param
    async with Sandbox(binary=build.binary) as running:
        await running.declare_stream("tasks", producers=["planner"])
        await running.declare_group("tasks", agent="coder", lease=1.0, max_deliveries=3)
        yield running
