"""Frames of live views: names, ids, signs of life, slow readers, and the end; in virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence

import pytest

from agentstream_operator.queue_api.documents import ReplaysAnswer
from agentstream_operator.queue_api.events import LiveEvent, LiveViews
from agentstream_operator.queue_api.ports import Unavailable
from agentstream_operator.queue_api.problems import not_found
from support.clock import run_virtually

RETRY, ALIVE = b"retry: 2000\n\n", b": nothing new\n\n"
NEWS = LiveEvent("replays", ReplaysAnswer(replays=()))


class Looks:
    """Looks whose results are given: events, nothing, or an error; nothing after the last."""

    def __init__(self, *results: Sequence[LiveEvent] | Exception) -> None:
        self.results = list(results)
        self.times: list[float] = []

    async def __call__(self) -> Iterable[LiveEvent]:
        self.times.append(asyncio.get_running_loop().time())
        found = self.results.pop(0) if self.results else ()
        if isinstance(found, Exception):
            raise found
        return found


def frames(live: LiveViews, look: Looks, *, reads_for: float = 0.0) -> list[tuple[float, bytes]]:
    """All frames of a view and when they came; its reader needs some seconds for each."""

    async def read() -> list[tuple[float, bytes]]:
        clock, found = asyncio.get_running_loop().time, []
        async for frame in live.frames(look):
            found.append((clock(), frame))
            await asyncio.sleep(reads_for)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return found

    return run_virtually(read())


def test_an_event_has_its_name_its_id_and_its_data_on_a_line() -> None:
    assert NEWS.encode() == b'event: replays\ndata: {"replays":[]}\n\n'
    assert NEWS._replace(id="7-0").encode().startswith(b"id: 7-0\nevent: replays\ndata: ")


def test_a_view_looks_once_a_second_and_ends_after_its_lifetime() -> None:
    look = Looks([NEWS])
    found = frames(LiveViews(lifetime=10.0), look)
    assert [frame for _, frame in found] == [RETRY, NEWS.encode()]
    assert look.times == pytest.approx(range(10))


def test_silence_is_broken_before_a_proxy_ends_it() -> None:
    found = frames(LiveViews(lifetime=40.0), Looks([NEWS]))
    assert [frame for _, frame in found] == [RETRY, NEWS.encode(), ALIVE, ALIVE]
    assert [at for at, _ in found] == pytest.approx([0, 0, 15, 30])


def test_what_may_pass_is_a_problem_and_looked_at_again() -> None:
    found = frames(LiveViews(lifetime=3.0), Looks(Unavailable("away"), [NEWS]))
    (_, _), (_, problem), (_, after) = found
    assert problem.startswith(b"event: problem\ndata: ")
    assert json.loads(problem.partition(b"data: ")[2])["status"] == 503
    assert after == NEWS.encode()


def test_what_does_not_pass_is_the_end() -> None:
    look = Looks(not_found("ConsumerGroup a/b", "look"), [NEWS])
    found = frames(LiveViews(lifetime=9.0), look)
    assert (len(found), look.times) == (2, [0.0])


def test_a_slow_reader_is_not_looked_for_and_nothing_piles_up() -> None:
    look = Looks(*([NEWS] for _ in range(100)))
    found = frames(LiveViews(lifetime=60.0), look, reads_for=10.0)
    # it waits for the reader: at most one look for what was read
    assert len(look.times) == len(found) - 1 <= 7


def test_a_server_that_stops_ends_all_views_at_once() -> None:
    async def read(live: LiveViews) -> float:
        async def one() -> None:
            async for _ in live.frames(Looks()):
                pass

        views = [asyncio.create_task(one()) for _ in range(3)]
        await asyncio.sleep(2.5)
        live.close()
        await asyncio.gather(*views)
        await one()
        return asyncio.get_running_loop().time()

    assert run_virtually(read(LiveViews())) == pytest.approx(2.5)
