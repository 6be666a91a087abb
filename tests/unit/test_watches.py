"""How events come from the watches' own thread into the operator's event loop, and how that thread ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from agentstream_operator import watches
from agentstream_operator.cluster.kinds import AGENTSTREAMS, ApiKind
from agentstream_operator.controller import OnEvent
from agentstream_operator.watches import watching
from support.waiting import until

Told = tuple[ApiKind, str | None, dict[str, Any]]


class Kopf:
    """What runs in the watches' thread.

    Attributes:
        thread: which one that was.
        namespaces: where it was to watch.
        ends: happens in it, given where events go; watching ends with it.
    """

    def __init__(self, ends: Callable[[OnEvent], None] | None = None) -> None:
        self.thread: threading.Thread | None = None
        self.namespaces: Sequence[str] | None = ()
        self.ends = ends
        self.tell: OnEvent | None = None
        self.stopped = False

    async def watch(self, tell: OnEvent, namespaces: Sequence[str] | None, stop: threading.Event) -> None:
        self.thread, self.namespaces, self.tell = threading.current_thread(), namespaces, tell
        if self.ends is not None:
            self.ends(tell)
            return
        await asyncio.to_thread(stop.wait)
        logging.getLogger("kopf._cogs.clients.api").error("Connector is closed")
        self.stopped = True


@pytest.fixture
def kopf(monkeypatch: pytest.MonkeyPatch) -> Kopf:
    """Watches that only the test ends."""
    found = Kopf()
    monkeypatch.setattr(watches, "watch", found.watch)
    return found


async def test_what_goes_wrong_with_kopf_is_said_but_for_what_its_end_brings(
    kopf: Kopf, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(lambda *_: None, None):
        await until(lambda: kopf.tell)
        logging.getLogger("kopf").error("one")
    assert kopf.stopped
    logging.getLogger("kopf").error("another")
    assert [record.message for record in caplog.records if record.name.startswith("kopf")] == [
        "one",
        "another",
    ]


def an_event(number: int) -> Told:
    return AGENTSTREAMS, "MODIFIED", {"number": number}


async def test_events_come_in_order_in_the_event_loop(kopf: Kopf) -> None:
    told: list[int] = []
    threads: set[threading.Thread] = set()

    def tell(kind: ApiKind, change: str | None, found: dict[str, Any]) -> None:
        assert (kind, change) == (AGENTSTREAMS, "MODIFIED")
        told.append(found["number"])
        threads.add(threading.current_thread())

    async with watching(tell, ["team"]) as ended:
        await until(lambda: kopf.tell)
        assert kopf.tell is not None
        for number in range(1000):
            kopf.tell(*an_event(number))
        await until(lambda: len(told) == 1000)
        assert not ended.done()
    assert told == list(range(1000))
    assert threads == {threading.current_thread()}
    assert kopf.namespaces == ["team"]
    assert kopf.thread not in threads


async def test_many_events_at_a_time_wake_the_event_loop_once(
    kopf: Kopf, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Told] = []
    async with watching(lambda *event: told.append(event), None):
        await until(lambda: kopf.tell)
        loop, wakes = asyncio.get_running_loop(), 0
        call = loop.call_soon_threadsafe

        def count(*given: Any, **more: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return call(*given, **more)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        assert kopf.tell is not None
        # nothing else runs in the meantime
        for number in range(10):
            kopf.tell(*an_event(number))
        assert (wakes, told) == (1, [])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        monkeypatch.undo()
    assert len(told) == 10


async def test_an_event_that_nobody_understands_does_not_take_others_with_it(
    kopf: Kopf, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []

    def tell(kind: ApiKind, change: str | None, found: dict[str, Any]) -> None:
        told.append(found["number"] + 0)

    async with watching(tell, None):
        await until(lambda: kopf.tell)
        assert kopf.tell is not None
        with caplog.at_level(logging.ERROR):
            for event in (an_event(1), (AGENTSTREAMS, "MODIFIED", {}), an_event(3)):
                kopf.tell(*event)
            await until(lambda: 3 in told)
    assert told == [1, 3]
    assert "KeyError: 'number'" in caplog.text


async def test_the_thread_ends_when_nobody_watches_any_more(kopf: Kopf) -> None:
    async with watching(lambda *_: None, None):
        await until(lambda: kopf.thread)
    assert kopf.stopped
    assert kopf.thread is not None
    assert not kopf.thread.is_alive()


async def test_the_thread_ends_with_who_watches(kopf: Kopf) -> None:
    async def watch() -> None:
        async with watching(lambda *_: None, None):
            await until(lambda: kopf.thread)
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await watch()
    assert kopf.stopped


async def test_a_thread_that_hangs_is_not_waited_for_for_ever(
    kopf: Kopf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "_STOP_WITHIN", 0.05)
    go = threading.Event()
    kopf.ends = lambda _: go.wait() and None
    async with watching(lambda *_: None, None):
        await until(lambda: kopf.thread)
    assert kopf.thread is not None
    assert kopf.thread.is_alive()
    go.set()
    await asyncio.to_thread(kopf.thread.join)


async def test_watches_that_fail_say_why(kopf: Kopf) -> None:
    def fail(tell: OnEvent) -> None:
        raise PermissionError("you may not watch")

    kopf.ends = fail
    async with watching(lambda *_: None, None) as ended:
        with pytest.raises(PermissionError, match="you may not watch"):
            await ended


async def test_watches_that_end_by_themselves_are_noticed(kopf: Kopf) -> None:
    told: list[Told] = []
    kopf.ends = lambda tell: tell(*an_event(7))
    async with watching(lambda *event: told.append(event), None) as ended:
        await ended
    assert told == [an_event(7)]


async def test_nobody_needs_to_hear_that_watching_has_ended(kopf: Kopf) -> None:
    kopf.ends = lambda _: None
    async with watching(lambda *_: None, None) as ended:
        ended.cancel()
        await until(lambda: kopf.thread is not None and not kopf.thread.is_alive())


def test_a_thread_that_outlives_the_event_loop_tells_nobody(
    kopf: Kopf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "_STOP_WITHIN", 0.05)
    go = threading.Event()
    told: list[Told] = []

    def late(tell: OnEvent) -> None:
        go.wait()
        tell(*an_event(1))

    async def main() -> None:
        kopf.ends = late
        async with watching(lambda *event: told.append(event), None):
            await until(lambda: kopf.thread)

    asyncio.run(main())
    go.set()
    assert kopf.thread is not None
    kopf.thread.join(10)
    assert not kopf.thread.is_alive()
    assert told == []
