"""The work queue, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise

import pytest

from agentstream_operator.reconcile.queue import Priority, WorkQueue
from support.clock import run_virtually

Work = Callable[[str], Awaitable[float | None]]


@contextlib.asynccontextmanager
async def running(queue: WorkQueue[str], work: Work) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run(work))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def queue_of(workers: int = 1, jitter: float = 1.0) -> WorkQueue[str]:
    return WorkQueue(workers=workers, base=1.0, cap=10.0, jitter=lambda: jitter)


def times_of(failures: int, jitter: float = 1.0) -> list[float]:
    """When a key that fails so often is worked on."""

    async def main() -> list[float]:
        queue, times = queue_of(jitter=jitter), []

        async def work(_key: str) -> None:
            times.append(asyncio.get_running_loop().time())
            if len(times) <= failures:
                raise ValueError

        async with running(queue, work):
            queue.add("a", Priority.CHANGE)
            await asyncio.sleep(1000)
            assert queue.failures("a") == 0
        return times

    return run_virtually(main())


def test_a_key_that_waits_is_worked_on_once() -> None:
    async def main() -> None:
        queue, worked = queue_of(), []

        async def work(key: str) -> None:
            worked.append(key)

        for _ in range(3):
            queue.add("a", Priority.EVENT)
        assert len(queue) == 1
        async with running(queue, work):
            await queue.idle()
        assert worked == ["a"]

    run_virtually(main())


def test_a_key_that_is_added_while_it_is_worked_on_runs_once_more_and_never_twice_at_a_time() -> None:
    async def main() -> None:
        queue, active, worked = queue_of(workers=8), 0, 0

        async def work(key: str) -> None:
            nonlocal active, worked
            active, worked = active + 1, worked + 1
            assert active == 1
            if worked == 1:
                queue.add(key, Priority.RESYNC)
                queue.add(key, Priority.CHANGE)
            await asyncio.sleep(1)
            active -= 1

        async with running(queue, work):
            queue.add("a", Priority.CHANGE)
            await queue.idle()
        assert worked == 2

    run_virtually(main())


def test_a_persons_change_goes_before_events_and_these_before_a_resync() -> None:
    async def main() -> None:
        queue, worked = queue_of(), []

        async def work(key: str) -> None:
            worked.append(key)

        queue.add("resync 1", Priority.RESYNC)
        queue.add("raised", Priority.RESYNC)
        queue.add("event", Priority.EVENT)
        queue.add("change", Priority.CHANGE)
        queue.add("raised", Priority.EVENT)
        queue.add("event", Priority.RESYNC)
        async with running(queue, work):
            await queue.idle()
        assert worked == ["change", "event", "raised", "resync 1"]

    run_virtually(main())


def test_a_change_overtakes_thousands_that_wait() -> None:
    async def main() -> None:
        queue, worked = queue_of(workers=4), []

        async def work(key: str) -> None:
            worked.append(key)
            await asyncio.sleep(0.01)
            if len(worked) == 100:
                queue.add("change", Priority.CHANGE)

        for i in range(10_000):
            queue.add(f"resync {i}", Priority.RESYNC)
        async with running(queue, work):
            await queue.idle()
        assert worked.index("change") < 110

    run_virtually(main())


def test_delays_of_a_key_that_fails_double_up_to_the_cap() -> None:
    times = times_of(6)
    assert [b - a for a, b in pairwise(times)] == pytest.approx([1, 2, 4, 8, 10, 10])


def test_jitter_spreads_a_delay_over_its_second_half() -> None:
    times = times_of(2, jitter=0.0)
    assert [b - a for a, b in pairwise(times)] == pytest.approx([0.5, 1])


def test_a_resync_leaves_a_key_that_failed_to_its_delay_and_a_change_does_not() -> None:
    async def main() -> None:
        queue, times = queue_of(), []

        async def work(_key: str) -> None:
            times.append(asyncio.get_running_loop().time())
            raise ValueError

        async with running(queue, work):
            queue.add("a", Priority.CHANGE)
            await asyncio.sleep(0.5)
            queue.add("a", Priority.RESYNC)
            await asyncio.sleep(0.1)
            assert len(times) == 1
            queue.add("a", Priority.CHANGE)
            await asyncio.sleep(0.1)
            assert len(times) == 2

    run_virtually(main())


def test_a_delayed_key_comes_at_the_earlier_of_two_times() -> None:
    async def main() -> None:
        queue, times = queue_of(), []

        async def work(_key: str) -> None:
            times.append(asyncio.get_running_loop().time())

        async with running(queue, work):
            queue.add_later("a", 5, Priority.EVENT)
            queue.add_later("a", 9, Priority.EVENT)
            queue.add_later("a", 3, Priority.EVENT)
            await asyncio.sleep(100)
        assert times == pytest.approx([3])

    run_virtually(main())


def test_work_says_when_to_look_again() -> None:
    async def main() -> None:
        queue, times = queue_of(), []

        async def work(_key: str) -> float | None:
            times.append(asyncio.get_running_loop().time())
            return 7 if len(times) == 1 else None

        async with running(queue, work):
            queue.add("a", Priority.CHANGE)
            await asyncio.sleep(100)
        assert times == pytest.approx([0, 7])

    run_virtually(main())


def test_a_forgotten_key_does_not_come_back() -> None:
    async def main() -> None:
        queue, worked = queue_of(), []

        async def work(key: str) -> None:
            worked.append(key)
            raise ValueError

        async with running(queue, work):
            queue.add("a", Priority.CHANGE)
            await queue.idle()
            assert queue.failures("a") == 1
            queue.forget("a")
            await asyncio.sleep(100)
        assert worked == ["a"]
        assert queue.failures("a") == 0

    run_virtually(main())


def test_many_keys_are_worked_on_at_a_time() -> None:
    async def main() -> None:
        queue = queue_of(workers=50)

        async def work(_key: str) -> None:
            await asyncio.sleep(1)

        for i in range(100):
            queue.add(str(i), Priority.EVENT)
        async with running(queue, work):
            await queue.idle()
            assert asyncio.get_running_loop().time() == pytest.approx(2)

    run_virtually(main())


def test_stopping_leaves_no_timer() -> None:
    async def main() -> None:
        queue, worked = queue_of(), []

        async def work(key: str) -> None:
            worked.append(key)

        async with running(queue, work):
            queue.add_later("a", 1, Priority.EVENT)
            await asyncio.sleep(0)
        await asyncio.sleep(10)
        assert worked == []
        assert len(queue) == 0

    run_virtually(main())
