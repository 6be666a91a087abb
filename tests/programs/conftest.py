"""A stream on which the programs of `examples/programs` are sent numbered messages."""

from __future__ import annotations

import pytest

from agentstream.testing import Sandbox


@pytest.fixture
async def sandbox(agentstream_sandbox: Sandbox) -> Sandbox:
    await agentstream_sandbox.declare_stream("tasks", producers=["planner"])
    return agentstream_sandbox
