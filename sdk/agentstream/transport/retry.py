"""Retries: delays that grow, repeating until a deadline, and logging failures once."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from agentstream.errors import AgentStreamError
from agentstream.transport.error_replies import passes

T = TypeVar("T")
_log = logging.getLogger("agentstream")


def unit() -> float:
    """A random number from 0 to 1, for jitter."""
    return random.random()  # noqa: S311 - guards no secret


class Backoff:
    """Delays that double from `first` to `longest` seconds, each shortened by up to half at random."""

    def __init__(self, first: float, longest: float, random_unit: Callable[[], float] = unit) -> None:
        self._first = first
        self._longest = longest
        self._random_unit = random_unit
        self._next = first

    def reset(self) -> None:
        """Starts again with the first delay, after a success."""
        self._next = self._first

    def next(self) -> float:
        """The delay in seconds before the next try."""
        delay, self._next = self._next, min(self._next * 2, self._longest)
        return delay * (0.5 + self._random_unit() / 2)


class FailureLog:
    """Logs when repeated attempts begin to fail, and when they succeed again.

    Args:
        what: the action, as it follows "cannot" in the log.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._known = ""

    def failed(self, error: Exception) -> None:
        """Logs a failure, unless the last one was of the same kind."""
        kind = f"{type(error).__name__} {str(error).partition(' ')[0]}"
        if kind != self._known:
            self._known = kind
            _log.warning("cannot %s, trying again: %s", self._what, error)

    def recovered(self) -> None:
        """Logs the first success after failures."""
        if self._known:
            self._known = ""
            _log.warning("can %s again", self._what)


async def retry_until(attempt: Callable[[], Awaitable[T]], timeout: float) -> T:
    """Repeats an attempt until it succeeds, or `timeout` seconds are over.

    Raises:
        AgentStreamError: the error of the last attempt before the deadline; at once if it does not pass.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    backoff = Backoff(0.02, 1.0)
    while True:
        try:
            return await attempt()
        except AgentStreamError as error:
            delay = backoff.next()
            if not passes(error) or loop.time() + delay >= deadline:
                raise
        await asyncio.sleep(delay)
