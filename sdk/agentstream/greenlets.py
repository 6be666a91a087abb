"""Threads of the operating system beside gevent's greenlets, which wait for them.

A greenlet has no event loop of its own, and one that is busy stops all others of its thread: what has an
event loop needs a thread. Locks between greenlets of several threads are not to be relied on: code of
others stays with the greenlets of the thread where it belongs.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import gevent
from gevent import monkey
from gevent.hub import Waiter

_P = ParamSpec("_P")
_Result = TypeVar("_Result")

_homes: dict[Any, Any] = {}
"""The hub of the thread that started a thread, by the hub of the latter."""


def start(work: Callable[[], object], ended: concurrent.futures.Future[None]) -> None:
    """Starts a thread of the operating system; completes `ended` when nothing of it is left."""
    # made here: two threads that make their first hubs at once wait for each other's imports
    monkey.get_original("_thread", "start_new_thread")(_work, (work, ended, gevent.get_hub()))


def _work(work: Callable[[], object], ended: concurrent.futures.Future[None], home: Any) -> None:
    hub = gevent.get_hub()
    _homes[hub] = home
    try:
        work()
    finally:
        del _homes[hub]
        hub.destroy(destroy_loop=True)
        ended.set_result(None)


def wait(future: concurrent.futures.Future[Any]) -> None:
    """Waits until a future is done; other greenlets of the thread go on."""
    hub = gevent.get_hub()
    watcher, waiter = hub.loop.async_(), Waiter(hub)
    # a wait that was interrupted closes the watcher before the future is done
    lock, is_open = monkey.get_original("_thread", "allocate_lock")(), True

    def done(_: object) -> None:
        with lock:
            if is_open:
                # the only call of a watcher that other threads may make
                watcher.send()

    watcher.start(waiter.switch, None)
    try:
        future.add_done_callback(done)
        waiter.get()
    finally:
        with lock:
            is_open = False
        watcher.stop()
        watcher.close()


def executor() -> concurrent.futures.Executor | None:
    """Makes an executor of greenlets of the thread that started this one; None if no such thread did."""
    home = _homes.get(gevent.get_hub())
    return None if home is None else _Greenlets(home)


class _Greenlets(concurrent.futures.Executor):
    """Greenlets of another thread.

    Args:
        hub: that thread's.
    """

    def __init__(self, hub: Any) -> None:
        self._hub = hub

    def submit(
        self, function: Callable[_P, _Result], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> concurrent.futures.Future[_Result]:
        """Runs a function in a greenlet."""
        future: concurrent.futures.Future[_Result] = concurrent.futures.Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    result = function(*args, **kwargs)
                except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
                    future.set_exception(error)
                else:
                    future.set_result(result)

        self._hub.loop.run_callback_threadsafe(gevent.spawn, work)
        return future
