"""The pytest plugin: a sandbox for each test that asks for one.

It works with pytest-asyncio in both of its modes, and with the plugin of anyio on asyncio. Which of them runs
a test decides in whose event loop the sandbox is opened and closed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from agentstream.testing.sandbox import Sandbox


_HAS_ASYNCIO = importlib.util.find_spec("pytest_asyncio") is not None


@pytest.fixture
def agentstream_sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """A `Sandbox` of the test's own."""
    if "anyio_backend" in request.fixturenames:
        sandbox: Sandbox = request.getfixturevalue("_agentstream_sandbox_by_anyio")
    elif _HAS_ASYNCIO:
        sandbox = request.getfixturevalue("_agentstream_sandbox_by_asyncio")
    else:
        raise pytest.UsageError("agentstream_sandbox needs pytest-asyncio, or a test that anyio runs")
    return sandbox


async def _open() -> AsyncIterator[Sandbox]:
    from agentstream.testing.sandbox import Sandbox  # noqa: PLC0415 - most tests need none

    async with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
async def _agentstream_sandbox_by_anyio() -> AsyncIterator[Sandbox]:
    async for sandbox in _open():
        yield sandbox


if _HAS_ASYNCIO:
    import pytest_asyncio

    @pytest_asyncio.fixture
    async def _agentstream_sandbox_by_asyncio() -> AsyncIterator[Sandbox]:
        async for sandbox in _open():
            yield sandbox
