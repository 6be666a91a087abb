"""Keeps background tasks running: what ends is begun again, so that no fault of one stops the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

_log = logging.getLogger(__name__)

_FIRST, _LONGEST = 1.0, 30.0


async def supervised(name: str, run: Callable[[], Awaitable[None]]) -> NoReturn:
    """Runs a task that never ends by itself; begins it again, after 1 to 30 s, if it does."""
    loop, delay = asyncio.get_running_loop(), _FIRST
    while True:
        began, failure = loop.time(), None
        try:
            await run()
        except Exception as error:  # noqa: BLE001 - the other tasks go on
            failure = error
        if loop.time() - began > _LONGEST:
            delay = _FIRST
        _log.error("the task to %s ended; it begins again in %g s", name, delay, exc_info=failure)
        await asyncio.sleep(delay)
        delay = min(2 * delay, _LONGEST)
