"""Synchronous agents, used from threads as their users would."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from agentstream.sync import Agent
from support.topology import Topology


@pytest.fixture
async def topology(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, which `coder` consumes."""
    await topology.group("tasks", "coder", max_deliveries=2)
    return topology


@pytest.fixture
def planner(topology: Topology) -> Agent:
    return Agent.connect(topology.settings("planner"))


@pytest.fixture
def coder(topology: Topology) -> Agent:
    return Agent.connect(topology.settings("coder"))


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("agentstream ")]
    assert not left, f"threads left: {left}"
