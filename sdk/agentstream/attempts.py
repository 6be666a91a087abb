"""Trying again what failed, for whoever knows that it may be repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from agentstream.backoff import Pause
from agentstream.errors import AgentStreamError, NoRoute
from agentstream.wire import WireClosed

T = TypeVar("T")


async def repeated(
    attempt: Callable[[], Awaitable[T]],
    timeout: float,  # noqa: ASYNC109 - the deadline decides what is repeated
) -> T:
    """Repeats what may be repeated until it succeeds.

    Raises:
        NoRoute, WireClosed: at once: trying again is of no use.
        AgentStreamError: that of the last attempt before the deadline.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    pause = Pause(0.02, 1.0)
    while True:
        try:
            return await attempt()
        except (NoRoute, WireClosed):
            raise
        except AgentStreamError:
            delay = pause.next()
            if loop.time() + delay >= deadline:
                raise
        await asyncio.sleep(delay)
