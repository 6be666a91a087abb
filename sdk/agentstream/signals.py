"""Calls back on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, MethodType
from typing import Any

_ASKING = (signal.SIGTERM, signal.SIGINT)
SIGNAL_EXIT = 128
"""Exit status of a program that a signal ended, minus the number of the signal."""


@contextlib.contextmanager
def on_termination(callback: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Calls `callback` in the running event loop when the first SIGTERM or SIGINT comes.

    A second signal has its usual effect. Signals for which the application has a handler of its own are left
    alone, as are all of them outside the main thread.
    """
    loop = asyncio.get_running_loop()
    with on_signal(lambda number: loop.call_soon_threadsafe(callback, number)):
        yield


@contextlib.contextmanager
def on_signal(callback: Callable[[signal.Signals], object]) -> Iterator[None]:
    """The same without an event loop: calls `callback` in the main thread, between any two instructions."""
    replaced: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        replaced.clear()

    def asked(number: int, _frame: FrameType | None) -> None:
        restore()
        callback(signal.Signals(number))

    if threading.current_thread() is threading.main_thread():
        for number in _ASKING:
            handler = signal.getsignal(number)
            if _is_default(handler):
                replaced[number] = signal.signal(number, asked)
    try:
        yield
    finally:
        restore()


def _is_default(handler: Any) -> bool:
    """Whether the handler is Python's own, or that of `asyncio.run`."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    function = getattr(handler, "func", None)
    return isinstance(function, MethodType) and isinstance(function.__self__, asyncio.Runner)
