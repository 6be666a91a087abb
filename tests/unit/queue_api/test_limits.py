"""How much at a time: searches and live views have turns, which come back however a call ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from agentstream_operator.queue_api.app import application
from agentstream_operator.queue_api.documents import ConsumersAnswer
from agentstream_operator.queue_api.events import LiveViews
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.consumergroup import ConsumerGroup
from support.asking import Reply, ask
from support.queue_api import Granted, MemoryReplays, NothingThere, TokensAreNames, nothing_there
from support.resources import a_group, a_stream
from support.waiting import until

SEARCH, VIEW = "/queue/consumers/team/coder", "/events?view=lag"
OWN, ALL = {SEARCH: 4, VIEW: 10}, {SEARCH: 16, VIEW: 50}
WHAT = {SEARCH: "searches", VIEW: "live views"}


class Held(NothingThere):
    """Searches for as long as it is told to."""

    def __init__(self) -> None:
        self.running, self.go, self.fails = 0, asyncio.Event(), False

    async def consumers(self, group: ConsumerGroup) -> ConsumersAnswer:
        self.running += 1
        await self.go.wait()
        if self.fails:
            raise RuntimeError("an error nobody thought of")
        return await super().consumers(group)


class Site:
    """The application, with searches and views that go on until they are told to end."""

    def __init__(self) -> None:
        index = ResourceIndex()
        index.put(a_stream())
        index.put(a_group())
        self.held, self.live = Held(), LiveViews(every=0.01)
        sources = nothing_there(index, consumers=self.held)
        self.app: Any = application(sources, MemoryReplays(), TokensAreNames(), Granted(), self.live)
        self.tasks: list[asyncio.Task[Reply]] = []
        self.opened = 0

    async def ask(self, target: str, name: str) -> Reply:
        return await ask(self.app, "GET", target, headers={"authorization": f"Bearer {name}"})

    async def begin(self, target: str, names: Sequence[str]) -> None:
        """Begins calls, and returns when all of them run."""
        self.tasks += [asyncio.create_task(self.ask(target, name)) for name in names]
        turns = self.app.app.state.searches if target == SEARCH else self.app.app.state.views
        await until(lambda: turns._running.total() == len(self.tasks))

    async def end(self) -> list[int]:
        """Lets the calls end. Returns their statuses."""
        self.held.go.set()
        self.live.close()
        replies = await asyncio.gather(*self.tasks)
        self.tasks = []
        return [reply.status for reply in replies]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    found = Site()
    yield found
    for task in found.tasks:
        task.cancel()
    await asyncio.gather(*found.tasks, return_exceptions=True)


@pytest.mark.parametrize("target", [SEARCH, VIEW])
async def test_one_more_of_a_caller_is_refused_and_others_are_not(site: Site, target: str) -> None:
    await site.begin(target, ["jane"] * OWN[target])
    refused = await site.ask(target, "jane")
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    assert refused.json["detail"] == f"{OWN[target]} {WHAT[target]} of yours are under way"
    await site.begin(target, ["john"])
    assert await site.end() == [200] * (OWN[target] + 1)
    assert (await site.ask(target, "jane")).status == 200


@pytest.mark.parametrize("target", [SEARCH, VIEW])
async def test_one_more_than_all_is_refused_whoever_asks(site: Site, target: str) -> None:
    await site.begin(target, [f"caller-{number}" for number in range(ALL[target])])
    refused = await site.ask(target, "jane")
    assert (refused.status, refused.json["detail"]) == (429, f"{ALL[target]} {WHAT[target]} are under way")
    assert set(await site.end()) == {200}
    assert (await site.ask(target, "jane")).status == 200


async def test_turns_come_back_after_errors(site: Site) -> None:
    site.held.fails = True
    await site.begin(SEARCH, ["jane"] * 4)
    site.held.go.set()
    replies = await asyncio.gather(*site.tasks)
    assert {(reply.status, reply.headers["content-type"]) for reply in replies} == {
        (500, "application/problem+json")
    }
    assert "nobody thought of" not in replies[0].json["detail"]
    site.tasks = []
    site.held.fails = False
    assert (await site.ask(SEARCH, "jane")).status == 200


@pytest.mark.parametrize("target", [SEARCH, VIEW])
async def test_turns_come_back_when_clients_hang_up(site: Site, target: str) -> None:
    await site.begin(target, ["jane"] * OWN[target])
    for task in site.tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*site.tasks, return_exceptions=True)
    site.tasks = []
    await site.begin(target, ["jane"])
    assert await site.end() == [200]
