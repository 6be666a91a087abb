"""Runs a server of a cluster until it is asked to stop, and stops it in order."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

_log = logging.getLogger(__name__)


def stop_signals() -> asyncio.Event:
    """Returns an event that SIGTERM and SIGINT set, from now on."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


async def serve_until(
    stop: asyncio.Event,
    servers: Sequence[Callable[[], AbstractAsyncContextManager[Any]]],
    watches: Sequence[Awaitable[object]],
    closers: Sequence[Callable[[], Awaitable[object]]],
    *,
    ending: Callable[[], object] = lambda: None,
) -> None:
    """Serves until `stop` is set, or until a watch fails.

    Args:
        stop: see `stop_signals`.
        servers: each opens what serves while it is entered.
        watches: what runs beside, and ends only by failing.
        closers: are called at the end, the last one first.
        ending: is called before the servers stop, which wait for their answers.

    Raises:
        ListenError: a port cannot be listened on.
    """
    async with AsyncExitStack() as stack:
        for close in closers:
            stack.push_async_callback(close)
        watching = asyncio.gather(*watches)
        stack.push_async_callback(_cancel, watching)
        for opened in servers:
            await stack.enter_async_context(opened())
        stack.callback(ending)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((stopped, watching), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if watching.done():
            watching.result()
        _log.info("stopping")


async def _cancel(watching: asyncio.Future[Any]) -> None:
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
