"""The numbers that the HTTP API answers are those of the server, or unknown."""

from __future__ import annotations

import pytest

from agentstream.protocol.commands import GroupCalls
from agentstream.protocol.routes import Consumes
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.actions import CreateGroup, CreateStream
from agentstream_operator.queue_api.documents import GroupNumbers, LagAnswer
from agentstream_operator.queue_api.lag import LagReader
from agentstream_operator.reconcile.state.index import ResourceIndex
from support.entries import Pending
from support.resources import KEY, a_group, a_stream
from support.servers import Server
from support.waiting import until

STREAM, GROUP = a_stream(), a_group()


def numbers(group: GroupNumbers) -> tuple[object, ...]:
    return group.undelivered, group.pending, group.retrying, group.delayed, group.dead, group.backlog


async def test_numbers_are_exact_unknown_while_the_server_is_away_and_exact_again(
    private_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentstream_operator.queue_api.lag.FRESH", 0.0)
    index = ResourceIndex()
    index.put(STREAM)
    index.put(GROUP)
    broker = await Broker.connect(private_server.url, installation="test")
    lags = LagReader(index, broker)

    async def look() -> LagAnswer:
        return await lags.lag((STREAM,), (GROUP,))

    await broker.apply(CreateStream(KEY, {"name": "tasks"}))
    await broker.apply(CreateGroup(KEY, "coder", "0"))
    calls = GroupCalls(Consumes("tasks", KEY, "coder"), "coder-0-1-0")
    with private_server.admin() as admin:
        for number in range(10):
            admin.xadd(KEY, {"m": str(number)})
        ((_, entries),) = admin.xreadgroup("coder", "coder-0-1-0", {KEY: ">"}, count=6)
        held = [Pending(entry, calls.main) for entry, _ in entries]
    await broker.call(*calls.settle(calls.main, "acked", held[:1]))
    await broker.call(*calls.dead_letter(held[1], 5, "MaxDeliveries", "ValueError"))
    await broker.call(*calls.retry(held[2], 3_600_000, 1, "Failed", "ValueError"))
    (group,) = (found := await look()).groups
    assert (found.streams[0].length, found.server.reachable, group.known) == (10, True, True)
    # 10 added: 4 not delivered, 3 held, 1 delayed, 1 dead, 1 done
    assert numbers(group) == (4, 3, 0, 1, 1, 7)
    private_server.kill()

    async def unknown() -> bool:
        found = await look()
        return not found.groups[0].known

    await until(unknown, 30)
    (away,) = (found := await look()).groups
    assert (numbers(away), found.streams[0].known, found.streams[0].length) == ((None,) * 6, False, None)
    assert found.server.reachable is False
    private_server.start()

    async def known() -> bool:
        return (await look()).groups[0].known

    await until(known, 30)
    assert numbers((await look()).groups[0]) == numbers(group)
    await lags.close()
    await broker.close()
