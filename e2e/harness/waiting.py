"""Waiting for a condition with a deadline, in place of sleeping."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import TypeVar

from harness.shell import CommandFailed

T = TypeVar("T")

_PAUSE = 0.2


def until(condition: Callable[[], T], timeout: float = 60.0, *, despite_errors: bool = False) -> T:
    """Returns the first true value of `condition`.

    Args:
        condition: what is asked again and again.
        timeout: for how many seconds.
        despite_errors: whether a command that fails is no more than a false value.

    Raises:
        TimeoutError: it was not true in time; says what it was last.
        CommandFailed: the condition's command failed.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: object
        try:
            last = value = condition()
            if value:
                return value
        except (CommandFailed, OSError) as error:
            if not despite_errors:
                raise
            last = error
        if time.monotonic() > deadline:
            asked = inspect.getsource(condition).strip()
            raise TimeoutError(f"after {timeout:g} s still {last!r}: {asked}")
        time.sleep(_PAUSE)
