"""Ending when the system asks for it."""

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
"""The status of a program that a signal ended, less the number of the signal."""


@contextlib.contextmanager
def on_termination(callback: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Has `callback` called in the running event loop when SIGTERM or SIGINT comes.

    Only the first one: the second does what it would have done without this. Signals for which the
    application has a handler of its own are left alone, and all of them outside the main thread.
    """
    loop = asyncio.get_running_loop()
    with on_signal(lambda number: loop.call_soon_threadsafe(callback, number)):
        yield


@contextlib.contextmanager
def on_signal(callback: Callable[[signal.Signals], object]) -> Iterator[None]:
    """The same without an event loop: `callback` is called in the main thread, wherever that is just then."""
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
    """Whether nobody but Python and `asyncio.run` decided about a signal."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    function = getattr(handler, "func", None)
    return isinstance(function, MethodType) and isinstance(function.__self__, asyncio.Runner)
