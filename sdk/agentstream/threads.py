"""Starts threads and waits for them, also where gevent has made greenlets of the standard library's."""

from __future__ import annotations

import concurrent.futures
import importlib
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def are_greenlets() -> bool:
    """Whether gevent has patched the standard library's threads."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


class Thread:
    """A thread of the operating system, which does not keep the interpreter from ending.

    Args:
        run: what it does.
        name: its name.
    """

    def __init__(self, run: Callable[[], object], name: str) -> None:
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._run = run
        self._name = name
        self._beside_greenlets = are_greenlets()

    @property
    def is_outdated(self) -> bool:
        """Whether gevent has patched the standard library meanwhile: no thread that it starts would run."""
        return are_greenlets() != self._beside_greenlets

    def start(self) -> None:
        """Starts it."""
        if self._beside_greenlets:
            _greenlets().start(self._run, self._ended)
        else:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def join(self) -> None:
        """Waits for its end."""
        wait(self._ended)

    def _work(self) -> None:
        try:
            self._run()
        finally:
            self._ended.set_result(None)


def wait(future: concurrent.futures.Future[_Result]) -> _Result:
    """Returns a future's result; other greenlets of the thread go on meanwhile."""
    if are_greenlets() and not future.done():
        _greenlets().wait(future)
    return future.result()


def executor(most: int, name: str) -> concurrent.futures.Executor:
    """Makes an executor for code of others: so many threads at most, which are started when needed.

    Beside greenlets, it has as many greenlets as calls, in the thread that started this one.
    """
    greenlets = _greenlets().executor() if are_greenlets() else None
    return greenlets or concurrent.futures.ThreadPoolExecutor(most, name)


def _greenlets() -> Any:
    """Imports what needs gevent."""
    return importlib.import_module("agentstream.greenlets")
