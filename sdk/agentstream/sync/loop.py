"""The event loop of one synchronous agent, in a thread of its own."""

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

_P = ParamSpec("_P")
_Result = TypeVar("_Result")


class Ended(AgentStreamError):  # noqa: N818 - as all errors of the SDK
    """The agent has ended, or not begun: there is nobody to do it."""


class LoopThread:
    """Runs the coroutines of one agent for threads that wait for them.

    Args:
        name: of the thread.
        what: what it runs, in a word.
    """

    def __init__(self, name: str, what: str = "agent") -> None:
        self._name = name
        self._what = what
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        self._end = asyncio.Event()
        self._ended = False

    @property
    def is_here(self) -> bool:
        """Whether this is the process that it was made in."""
        return os.getpid() == self._process

    @property
    def has_ended(self) -> bool:
        """Whether nothing can be run any more."""
        return self._ended or not self.is_here

    def start(self) -> None:
        """Starts the thread.

        Raises:
            Ended: this is another process, or it was started before.
        """
        self._check_process()
        if self._thread is not None:
            raise Ended(f"the {self._what} is entered once: make another one")
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name=self._name, daemon=True)
        self._thread.start()
        ready.wait()

    def run(
        self, work: Callable[_P, Coroutine[Any, Any, _Result]], *args: _P.args, **kwargs: _P.kwargs
    ) -> _Result:
        """What a coroutine function returns. It is cancelled if a signal's handler interrupts the wait.

        Raises:
            Ended: the agent has ended, was not entered, or belongs to another process.
        """
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
        """The same for what is carried out to its end, even if the wait is interrupted."""
        return _result(self._submit(partial(work, *args, **kwargs)))

    def begin(
        self, work: Callable[_P, Coroutine[Any, Any, object]], *args: _P.args, **kwargs: _P.kwargs
    ) -> None:
        """Has it carried out, unless the agent has ended."""
        with contextlib.suppress(Ended):
            self._submit(partial(work, *args, **kwargs))

    def soon(self, call: Callable[[], object]) -> None:
        """Has something called in the loop, if there still is one. A signal's handler may use it."""
        if self._loop is not None and self.is_here:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call)

    def end(self) -> None:
        """Ends the thread: whoever waits gets `Ended`."""
        if self._thread is None or not self.is_here:
            return
        with self._lock:
            self._ended = True
        self.soon(self._end.set)
        self._thread.join()

    def _submit(self, work: Callable[[], Coroutine[Any, Any, _Result]]) -> concurrent.futures.Future[_Result]:
        self._check_process()
        future: concurrent.futures.Future[_Result] = concurrent.futures.Future()
        # what is submitted before the end is begun by the loop, and so answered or cancelled
        with self._lock:
            if self._loop is None or self._ended:
                what = self._what
                raise Ended(
                    f"the {what} has ended" if self._loop else f"enter the {what} first: with {what}: …"
                )
            # the coroutine is made there: here, a signal could come before it is on its way
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

    def _run(self, ready: threading.Event) -> None:
        try:
            with asyncio.Runner() as runner:
                self._loop = runner.get_loop()
                ready.set()
                try:
                    runner.run(self._until_ended())
                finally:
                    with self._lock:
                        self._ended = True
                    # lets what was submitted before begin, so that it is cancelled with all else
                    runner.run(asyncio.sleep(0))
        finally:
            # there are some only where a loop was broken by what no task may raise, such as SystemExit
            for future in tuple(self._waiting):
                future.cancel()

    async def _until_ended(self) -> None:
        await self._end.wait()


def _begin(
    work: Callable[[], Coroutine[Any, Any, _Result]], future: concurrent.futures.Future[_Result]
) -> None:
    """Carries work out in the running loop, and tells the thread that waits for it."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(_awaited(work))

    def told(waited: concurrent.futures.Future[_Result]) -> None:
        if waited.cancelled():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)

    def done(carried_out: asyncio.Task[_Result]) -> None:
        error = None if carried_out.cancelled() else carried_out.exception()
        if carried_out.cancelled():
            future.cancel()
        if future.set_running_or_notify_cancel():
            if error is None:
                future.set_result(carried_out.result())
            else:
                future.set_exception(error)

    task.add_done_callback(done)
    future.add_done_callback(told)


async def _awaited(work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
    return await work()


def _result(future: concurrent.futures.Future[_Result]) -> _Result:
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise Ended("the agent has ended") from None
