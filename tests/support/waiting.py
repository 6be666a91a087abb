"""Waiting for a condition with a deadline, in place of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")


@overload
async def until(condition: Callable[[], Awaitable[T]], timeout: float = ...) -> T: ...


@overload
async def until(condition: Callable[[], T], timeout: float = ...) -> T: ...


async def until(condition: Callable[[], T | Awaitable[T]], timeout: float = 10.0) -> T:
    """Returns the first true value of `condition`, which may be a coroutine function.

    Raises:
        TimeoutError: it was not true within `timeout` seconds; says what it was last.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        result = await value if inspect.isawaitable(value) else value
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"still {result!r} after {timeout} s: {inspect.getsource(condition).strip()}")
        await asyncio.sleep(0.005)
