"""Calls back on SIGTERM and SIGINT, and recognizes errors that their handlers raise."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType, MethodType
from typing import Any

_ASKING = (signal.SIGTERM, signal.SIGINT)
# Restore the handlers that were replaced in this process.
_restores: set[Callable[[], None]] = set()
SIGNAL_EXIT = 128
"""Exit status of a program that a signal ended, minus the number of the signal."""


@contextlib.contextmanager
def on_termination(callback: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Calls `callback` in the running event loop when the first SIGTERM or SIGINT comes.

    A second signal has its usual effect, and so has the first one in a process that is forked off. Signals
    for which the application has a handler of its own are left alone, as are all of them outside the main
    thread.
    """
    loop = asyncio.get_running_loop()
    with on_signal(lambda number: loop.call_soon_threadsafe(callback, number)):
        yield


@contextlib.contextmanager
def on_signal(callback: Callable[[signal.Signals], object]) -> Iterator[None]:
    """The same without an event loop: calls `callback` in the main thread, between any two instructions."""
    replaced: dict[signal.Signals, Any] = {}
    process = os.getpid()

    def restore() -> None:
        _restores.discard(restore)
        for number, handler in replaced.items():
            signal.signal(number, handler)
        replaced.clear()

    def asked(number: int, _frame: FrameType | None) -> None:
        restore()
        if os.getpid() == process:
            callback(signal.Signals(number))
        else:
            # it came between the fork and what follows it
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        for number in _ASKING:
            handler = signal.getsignal(number)
            if _is_default(handler):
                replaced[number] = signal.signal(number, asked)
        _restores.add(restore)
    try:
        yield
    finally:
        restore()


def is_of_signal(error: BaseException) -> bool:
    """Whether a handler of SIGTERM or SIGINT raised an error into the code that it interrupted.

    Python's own handler of SIGINT leaves no trace: while it is in place, every KeyboardInterrupt in the main
    thread counts as raised by it.
    """
    handlers = [signal.getsignal(number) for number in _ASKING]
    if isinstance(error, KeyboardInterrupt) and signal.default_int_handler in handlers:
        return threading.current_thread() is threading.main_thread()
    codes = [code for code in map(_code_of, handlers) if code is not None]
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def _code_of(handler: Any) -> object:
    """The code of a Python function, method or partial, or of an object that can be called."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not hasattr(handler, "__code__"):
        handler = getattr(type(handler), "__call__", None) if callable(handler) else None  # noqa: B004
    return getattr(handler, "__code__", None)


def _restore_in_child() -> None:
    """Has signals act in a process that is forked off as if its parent had no handlers of ours."""
    for restore in tuple(_restores):
        restore()


# other platforms have no forks
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore_in_child)


def _is_default(handler: Any) -> bool:
    """Whether the handler is Python's own, or that of `asyncio.run`."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    function = getattr(handler, "func", None)
    return isinstance(function, MethodType) and isinstance(function.__self__, asyncio.Runner)
