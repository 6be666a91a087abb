"""Every way in which a handler can end, and what becomes of its message: the model of `test_endings`."""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from agentstream.errors import Reject, Retry

HANDLED = "handled"
"""What becomes of a message that is not a dead letter."""

LEAKED = "CancelledError: something that the handler waits for was cancelled"


class Ending(NamedTuple):
    """One way to end.

    Attributes:
        end: ends so; where it is a coroutine function, only asynchronous handlers can.
        why: what the error of the dead letter says, or HANDLED.
        attempts: how often the message is handled, where the group allows two attempts.
        reason: of the dead letter.
        escapes: whether it passes on where the block belongs to the program.
        logged: whether it is logged as a failure.
    """

    end: Callable[[], Any]
    why: str
    attempts: int = 2
    reason: str = "MaxDeliveries"
    escapes: bool = False
    logged: bool = True

    @property
    def waits(self) -> bool:
        """Whether only an asynchronous handler can end so."""
        return asyncio.iscoroutinefunction(self.end)


class Own(BaseException):
    """What no library catches."""


class Unprintable(Exception):  # noqa: N818
    """An error that cannot be printed, and whose name is all that is known of it."""

    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = __str__


class Unpicklable(Exception):  # noqa: N818
    """An error that no other process could get."""

    def __reduce__(self) -> Any:
        raise TypeError("not for other processes")


class Unset(Retry):
    """A class of one's own that forgets the attributes of its base."""

    def __init__(self) -> None:
        self.args = ("unset",)


def raising(error: BaseException) -> Callable[[], Any]:
    def end() -> None:
        raise error

    return end


def parse() -> None:
    argparse.ArgumentParser(exit_on_error=True).parse_args(["--doc", "7"])


def recurse() -> None:
    recurse()


def cancelled_future() -> None:
    future = concurrent.futures.Future[None]()
    future.cancel()
    future.result()


async def await_a_helper_that_is_cancelled() -> None:
    helper = asyncio.create_task(asyncio.sleep(60))
    asyncio.get_running_loop().call_soon(helper.cancel)
    await helper


async def await_a_future_that_is_cancelled() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def await_a_thread_that_leaves() -> None:
    await asyncio.to_thread(raising(GeneratorExit()))


async def fail_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_fails(KeyError("a")))
        group.create_task(_fails(ValueError("b")))


async def wait_too_long() -> None:
    async with asyncio.timeout(0.001):
        await asyncio.Event().wait()


async def cancel_itself_and_wait() -> None:
    _cancel_itself()
    await asyncio.Event().wait()


async def cancel_itself_and_return() -> None:
    _cancel_itself()


async def cancel_itself_twice_and_fail() -> None:
    _cancel_itself()
    _cancel_itself()
    raise LookupError("both")


async def cancel_itself_later() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)


async def swallow_a_cancellation_of_its_own() -> None:
    _cancel_itself()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return


async def _fails(error: Exception) -> None:
    raise error


def _cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


GROUP = ExceptionGroup("two", [ValueError("a"), ExceptionGroup("deep", [KeyError("b")])])
BASE_GROUP = BaseExceptionGroup("base", [Own("a"), asyncio.CancelledError()])

ENDINGS: dict[str, Ending] = {
    "returns": Ending(lambda: None, HANDLED, attempts=1),
    "an exception": Ending(raising(ValueError("no")), "ValueError: no"),
    "an exception without words": Ending(raising(ValueError()), "ValueError"),
    "an exception that cannot be printed": Ending(
        raising(Unprintable()), "Unprintable: (it cannot be printed)"
    ),
    "an exception that cannot be pickled": Ending(raising(Unpicklable("x")), "Unpicklable: x"),
    "a text that is not Unicode": Ending(raising(ValueError("\ud800")), "ValueError: \\ud800"),
    "a base exception": Ending(raising(Own("mine")), "Own: mine", escapes=True),
    "a group": Ending(raising(GROUP), "ExceptionGroup: two (2 sub-exceptions): ValueError: a; KeyError: 'b'"),
    "a base group": Ending(
        raising(BASE_GROUP),
        "BaseExceptionGroup: base (2 sub-exceptions): Own: a; CancelledError",
        escapes=True,
    ),
    "a cancellation that it makes up": Ending(raising(asyncio.CancelledError()), LEAKED),
    "a future of a pool that was cancelled": Ending(cancelled_future, "CancelledError"),
    "sys.exit()": Ending(sys.exit, "SystemExit", escapes=True),
    "sys.exit with a text": Ending(lambda: sys.exit("usage"), "SystemExit: usage", escapes=True),
    "argparse": Ending(parse, "SystemExit: 2", escapes=True),
    "KeyboardInterrupt": Ending(raising(KeyboardInterrupt()), "KeyboardInterrupt", escapes=True),
    "GeneratorExit": Ending(raising(GeneratorExit("mine")), "GeneratorExit: mine", escapes=True),
    "StopIteration": Ending(raising(StopIteration(1)), "StopIteration"),
    "StopAsyncIteration": Ending(raising(StopAsyncIteration()), ""),
    "recursion": Ending(recurse, "RecursionError: maximum recursion"),
    "no memory": Ending(raising(MemoryError()), "MemoryError"),
    "Retry": Ending(raising(Retry("later", after=0)), "later", logged=False),
    "Retry of one's own": Ending(raising(Unset()), "", logged=False),
    "Reject": Ending(raising(Reject("never")), "", attempts=1, reason="never", logged=False),
    "Reject for what cannot be printed": Ending(
        raising(Reject(Unprintable())),  # type: ignore[arg-type]
        "",
        attempts=1,
        reason="(it cannot be printed)",
        logged=False,
    ),
    "a helper that is cancelled": Ending(await_a_helper_that_is_cancelled, LEAKED),
    "a future that is cancelled": Ending(await_a_future_that_is_cancelled, LEAKED),
    "a group of tasks": Ending(fail_in_a_group, "ExceptionGroup: unhandled errors in a TaskGroup (2 sub-ex"),
    "a thread that leaves": Ending(await_a_thread_that_leaves, "GeneratorExit", escapes=True),
    "a time-out": Ending(wait_too_long, "TimeoutError"),
}
"""By what the handler does or raises."""

OF_ITSELF: dict[str, Ending] = {
    "cancels itself and waits": Ending(cancel_itself_and_wait, "CancelledError: "),
    "cancels itself and returns": Ending(cancel_itself_and_return, HANDLED, attempts=1),
    "cancels itself twice and fails": Ending(cancel_itself_twice_and_fail, "LookupError: both"),
    "cancels itself later": Ending(cancel_itself_later, HANDLED, attempts=1),
    "swallows its cancellation": Ending(swallow_a_cancellation_of_its_own, HANDLED, attempts=1),
}
"""What only the handlers of `run` survive: elsewhere it is the program's own task that is cancelled."""


async def end(ending: Ending) -> None:
    """Ends the calling asynchronous handler so."""
    ended = ending.end()
    if isinstance(ended, Awaitable):
        await ended
