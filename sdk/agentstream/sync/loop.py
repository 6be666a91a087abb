"""Runs an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec, TypeVar

from agentstream.errors import AgentStreamError
from agentstream.threads import Thread, wait

_P = ParamSpec("_P")
_Result = TypeVar("_Result")


class Ended(AgentStreamError):  # noqa: N818 - as all errors of the SDK
    """The agent was not entered, has ended, or belongs to another process."""


class LoopThread:
    """Runs coroutines in an event loop for threads that wait for their results."""

    def __init__(self, name: str, what: str = "agent") -> None:
        # `what` runs in the loop, by the error messages
        self._name = name
        self._what = what
        self._process: int | None = None
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        self._end = asyncio.Event()
        self._ended = False

    @property
    def is_here(self) -> bool:
        """Whether this process started the thread, or none did; False after a fork."""
        return self._process in (None, os.getpid())

    @property
    def has_ended(self) -> bool:
        """Whether the loop has ended, or belongs to another process."""
        return self._ended or not self.is_here

    def start(self) -> None:
        """Starts the thread. Raises Ended if it was started before, or if this is another process."""
        self._check_process()
        if self._thread is not None:
            raise Ended(f"the {self._what} is entered once: make another one")
        self._process = os.getpid()
        ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = Thread(partial(self._run, ready), self._name)
        self._thread.start()
        wait(ready)

    def run(
        self, work: Callable[_P, Coroutine[Any, Any, _Result]], *args: _P.args, **kwargs: _P.kwargs
    ) -> _Result:
        """Runs a coroutine function, and returns its result. An interrupted wait cancels the coroutine."""
        future = self._submit(partial(work, *args, **kwargs))
        try:
            return _result(future)
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[_P, _Result], *args: _P.args, **kwargs: _P.kwargs) -> _Result:
        """Calls a function in the loop's thread, and returns what it returns."""

        async def called() -> _Result:
            return function(*args, **kwargs)

        return self.run(called)

    def complete(
        self, work: Callable[_P, Coroutine[Any, Any, _Result]], *args: _P.args, **kwargs: _P.kwargs
    ) -> _Result:
        """Runs a coroutine function to its end, even if the wait is interrupted; see `run`."""
        return _result(self._submit(partial(work, *args, **kwargs)))

    def begin(
        self, work: Callable[_P, Coroutine[Any, Any, object]], *args: _P.args, **kwargs: _P.kwargs
    ) -> None:
        """Starts a coroutine function without waiting for it, unless the loop has ended."""
        with contextlib.suppress(Ended):
            self._submit(partial(work, *args, **kwargs))

    def soon(self, call: Callable[[], object]) -> None:
        """Schedules a call in the loop, if the loop still runs. Safe in a signal handler."""
        if self._loop is not None and self.is_here:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call)

    def end(self) -> None:
        """Ends the thread; threads that wait get `Ended`."""
        if self._thread is None or not self.is_here:
            return
        with self._lock:
            self._ended = True
        self.soon(self._end.set)
        self._thread.join()

    def _submit(self, work: Callable[[], Coroutine[Any, Any, _Result]]) -> concurrent.futures.Future[_Result]:
        self._check_process()
        if self._thread is not None and self._thread.is_outdated:
            raise Ended(
                f"gevent has patched the standard library since the {self._what} was entered: enter it after"
                " that, under gunicorn in the hook post_worker_init"
            )
        future: concurrent.futures.Future[_Result] = concurrent.futures.Future()
        # the loop begins everything that is submitted before its end, and so completes or cancels it
        with self._lock:
            if self._loop is None or self._ended:
                what = self._what
                raise Ended(
                    f"the {what} has ended" if self._loop else f"enter the {what} first: with {what}: …"
                )
            # the loop's thread makes the coroutine: a signal here could leave one that is never awaited
            try:
                self._loop.call_soon_threadsafe(_begin, work, future)
            except RuntimeError:
                raise Ended("the agent has ended") from None
            self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def _check_process(self) -> None:
        if not self.is_here:
            raise Ended(
                f"this {self._what} belongs to the process that this one was forked off;"
                " make one after the fork"
            )

    def _run(self, ready: concurrent.futures.Future[None]) -> None:
        try:
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                ready.set_result(None)
                try:
                    runner.run(self._end.wait())
                finally:
                    with self._lock:
                        self._ended = True
                    # begin what was submitted before, so that the runner cancels it
                    runner.run(asyncio.sleep(0))
        finally:
            # only an exception such as SystemExit, which breaks the loop, leaves any
            for future in tuple(self._waiting):
                future.cancel()


def _begin(
    work: Callable[[], Coroutine[Any, Any, _Result]], future: concurrent.futures.Future[_Result]
) -> None:
    """Runs a coroutine function in the running loop, and sets the result of a thread's future."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(_awaited(work))

    def on_cancel(waited: concurrent.futures.Future[_Result]) -> None:
        if waited.cancelled():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)

    def on_done(completed: asyncio.Task[_Result]) -> None:
        error = None if completed.cancelled() else completed.exception()
        if completed.cancelled():
            future.cancel()
        if future.set_running_or_notify_cancel():
            if error is None:
                future.set_result(completed.result())
            else:
                future.set_exception(error)

    task.add_done_callback(on_done)
    future.add_done_callback(on_cancel)


async def _awaited(work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
    return await work()


def _result(future: concurrent.futures.Future[_Result]) -> _Result:
    try:
        return wait(future)
    except concurrent.futures.CancelledError:
        raise Ended("the agent has ended") from None
