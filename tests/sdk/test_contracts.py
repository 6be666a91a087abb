"""Contracts, from the resource to the payload: who is told of them, and what does not get through."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import msgspec
import pytest
import redis

from agentstream import json_schema_of
from agentstream.agent import Agent
from agentstream.errors import InvalidPayload, ProtocolError, SendFailed, SettingsError, StreamMissing
from agentstream.identity.settings import Settings
from agentstream.payloads.contracts import FREE, Contracts
from agentstream.protocol.keys import StreamKeys, user_name
from agentstream.protocol.routes import Produces, decode_route
from agentstream.sending.outgoing import OutgoingMessage
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.status import ConditionReason, ConditionType, StreamReplayStatus
from support.operator import Operator, operator
from support.resources import KEY, ROUTES, a_group, a_replay, a_stream
from support.servers import Server
from support.waiting import until

CONTRACTS = StreamKeys(KEY).contracts
GENERATION = count(2)


class Plan(msgspec.Struct):
    doc: int


EVENT = {"type": "event", "schema": json_schema_of(Plan)}


def contracted(*contracts: dict[str, Any]) -> AgentStream:
    """A version of the stream; each change has a generation of its own."""
    return a_stream(producers=["planner"], contracts=contracts, meta={"generation": next(GENERATION)})


@pytest.fixture
async def op(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Operator]:
    """An operator to which the stream and its group are declared."""
    monkeypatch.setattr("agentstream.routing.directory._GOOD_FOR", 0.0)
    async with operator(server.url) as running:
        await running.put(contracted(EVENT), a_group(startFrom="Beginning"))
        yield running


def agent(server: Server, op: Operator, name: str) -> Agent:
    """An agent with the rights that the operator gave it."""
    password = op.cluster.secrets["team", name].password
    endpoint = Endpoint(server.url, user_name("agentstream", "team", name), password)
    return Agent.connect(Settings(namespace="team", agent=name, source=endpoint, pod=f"{name}-pod"))


async def send(server: Server, op: Operator, payload: Any, kind: Any = "event", **how: Any) -> None:
    async with agent(server, op, "planner") as planner:
        await planner.send_message(to="coder", type=kind, payload=payload, **how)


@asynccontextmanager
async def handled(coder: Agent) -> AsyncIterator[asyncio.Queue[Any]]:
    """The payloads that the agent's handler of events gets."""
    seen = asyncio.Queue[Any]()

    @coder.on("event")
    async def handle(payload: dict[str, Any]) -> None:
        await seen.put(payload)

    async with coder:
        at_work = asyncio.create_task(coder.run())
        try:
            yield seen
        finally:
            coder.stop()
            await at_work


def records(admin: redis.Redis) -> list[tuple[str, str]]:
    """Reason and error of the dead letters."""
    found = admin.xrange(StreamKeys(KEY).dead_letters("coder"))
    return [(fields["reason"], fields["error"]) for _, fields in found]


async def test_what_keeps_to_the_contract_gets_through(server: Server, op: Operator) -> None:
    async with handled(agent(server, op, "coder")) as seen:
        await send(server, op, Plan(1))
        assert await seen.get() == {"doc": 1}
        await send(server, op, {"doc": 2}, schema_version=1)
        assert await seen.get() == {"doc": 2}


@pytest.mark.parametrize(
    ("payload", "version", "problem"),
    [
        ({"doc": "secret"}, None, r'event@1: the value is not of type "integer" - at `\$\.doc`$'),
        ({}, None, r'event@1: "doc" is a required property - at `\$`$'),
        ({"doc": 1}, 2, r"there is no contract for event@2; there is one for event@1$"),
    ],
)
async def test_what_violates_the_contract_is_not_sent(
    server: Server, op: Operator, payload: dict[str, Any], version: int | None, problem: str
) -> None:
    with pytest.raises(InvalidPayload, match=f"^the payload violates the contract: {problem}") as refused:
        await send(server, op, payload, schema_version=version)
    assert refused.value.reason == "ContractViolated"
    assert (await op.broker.observe(KEY, ())).length == 0


async def test_of_many_messages_those_are_sent_that_keep_to_the_contract(
    server: Server, op: Operator, admin: redis.Redis
) -> None:
    messages = [OutgoingMessage(type="event", payload={"doc": doc}, to="coder") for doc in (1, "2", 3)]
    async with agent(server, op, "planner") as planner:
        with pytest.raises(SendFailed):
            await planner.send_many(messages)
    assert admin.xlen(KEY) == 2


async def test_types_without_a_contract_are_free(server: Server, op: Operator, admin: redis.Redis) -> None:
    await send(server, op, {"anything": ["goes"]}, kind="task_result", schema_version=7)
    assert admin.xlen(KEY) == 1


async def test_what_was_added_by_others_is_checked_before_a_handler_gets_it(
    server: Server, op: Operator, admin: redis.Redis
) -> None:
    body = (
        '{"v":1,"id":"0b0e9d3e-4b55-4f6e-8f1c-2f6f0d6f3a11","from":"planner","to":"coder","type":"event",'
        '"payload":{"doc":[1]},"timestamp":1}'
    )
    admin.xadd(KEY, {"m": body})
    async with handled(agent(server, op, "coder")) as seen:
        await send(server, op, {"doc": 1})
        assert await seen.get() == {"doc": 1}
        await until(lambda: records(admin))
    ((reason, error),) = records(admin)
    assert reason == "ContractViolated"
    assert error.endswith('event@1: the value is not of type "integer" - at `$.doc`')


async def test_agents_that_run_follow_a_change(server: Server, op: Operator, admin: redis.Redis) -> None:
    async with agent(server, op, "planner") as planner, handled(agent(server, op, "coder")) as seen:
        await planner.send_message(to="coder", type="event", payload={"doc": 1})
        assert await seen.get() == {"doc": 1}
        await op.put(contracted({"type": "event", "schema": {"type": "object", "required": ["text"]}}))

        async def refused() -> bool:
            try:
                await planner.send_message(to="coder", type="event", payload={"doc": 2})
            except InvalidPayload:
                return True
            return False

        await until(refused)
        await op.put(contracted())

        async def taken() -> bool:
            return not await refused()

        await until(taken)


async def test_a_replayed_message_that_the_contract_no_longer_allows_is_a_dead_letter_and_counted(
    server: Server, op: Operator, admin: redis.Redis
) -> None:
    async with handled(agent(server, op, "coder")) as seen:
        for doc in (1, 2):
            await send(server, op, {"doc": doc})
            assert await seen.get() == {"doc": doc}

        async def settled() -> bool:
            return (await op.broker.observe(KEY, ("coder",))).groups["coder"].pending == 0

        await until(settled)
        await op.put(
            contracted({"type": "event", "schema": {"type": "object", "properties": {"doc": {"minimum": 2}}}})
        )
        replay = a_replay(meta={"uid": "0b0e9d3e"}, **{"from": {"source": "Stream"}})
        await op.put(replay)
        assert await seen.get() == {"doc": 2}

        def followed() -> bool:
            status = op.cluster.statuses.get(replay.key)
            return isinstance(status, StreamReplayStatus) and (status.handled, status.dead) == (1, 1)

        await until(followed)
    ((reason, error),) = records(admin)
    assert reason == "ContractViolated"
    assert error.endswith("the value is less than the minimum of 2 - at `$.doc`")
    assert admin.xlen(KEY) == 2


def digests(admin: redis.Redis) -> tuple[str, str, str | None]:
    """What the routes of producer and consumer, and the contracts themselves, have for a digest."""
    routes = [decode_route(str(admin.hget(ROUTES, name)).encode()) for name in ("planner", "coder")]
    return routes[0].produces[0].contracts, routes[1].consumes[0].contracts, admin.hget(CONTRACTS, "digest")


async def test_the_routes_say_when_contracts_change(op: Operator, admin: redis.Redis) -> None:
    await until(lambda: len({*digests(admin)}) == 1)
    first = digests(admin)[0]
    await op.put(contracted(EVENT, {"type": "task_request", "version": 2, "schema": {"type": "object"}}))
    await until(lambda: len({first, *digests(admin)}) == 2)
    assert sorted(admin.hgetall(CONTRACTS)) == ["digest", "event@1", "task_request@2"]
    await op.put(contracted())
    await until(lambda: digests(admin) == ("", "", None))
    assert not admin.exists(CONTRACTS)


async def test_contracts_that_were_lost_come_back(op: Operator, admin: redis.Redis) -> None:
    before = admin.hgetall(CONTRACTS)
    assert before
    admin.delete(CONTRACTS)
    await until(lambda: admin.hgetall(CONTRACTS) == before)


async def test_what_is_no_contract_is_said_and_those_before_stay(op: Operator, admin: redis.Redis) -> None:
    before = admin.hgetall(CONTRACTS)
    stream = contracted({"type": "event", "schema": {"type": "object", "required": "doc"}})
    op.declare(stream)
    await until(
        lambda: op.cluster.says(stream.key, ConditionType.READY)[1] == ConditionReason.CONTRACT_INVALID
    )
    assert admin.hgetall(CONTRACTS) == before
    assert len({*digests(admin)}) == 1


async def test_contracts_go_with_their_stream(op: Operator, admin: redis.Redis) -> None:
    await op.delete(a_group())
    stream = a_stream(
        producers=["planner"],
        contracts=[EVENT],
        deletionPolicy="Delete",
        meta={"generation": next(GENERATION)},
    )
    await op.put(stream)
    await op.delete(stream)
    assert not admin.exists(CONTRACTS)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What checks JSON Schemas is not installed."""
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    return monkeypatch


async def test_who_cannot_check_a_contract_neither_sends_nor_consumes(
    server: Server, op: Operator, admin: redis.Redis, unchecked: pytest.MonkeyPatch
) -> None:
    remedy = r"pip install 'agentstream\[contracts\]'"
    with pytest.raises(SettingsError, match=remedy):
        await send(server, op, {"doc": 1})
    assert admin.xlen(KEY) == 0
    async with agent(server, op, "coder") as coder:
        with pytest.raises(SettingsError, match=remedy):
            await anext(coder.stream_consume("tasks"))


async def test_who_cannot_check_a_contract_that_is_new_stops_consuming(
    server: Server, op: Operator, admin: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await op.put(contracted())
    await until(lambda: digests(admin) == ("", "", None))
    async with agent(server, op, "coder") as coder:
        coder.on("event")(_ignore)
        at_work = asyncio.create_task(coder.run())
        await send(server, op, {"doc": "free"})
        await until(lambda: admin.xpending(KEY, "coder")["pending"] == 0)
        # the operator is in the same process, and has looked at this contract before
        monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
        await op.put(contracted(EVENT))
        with pytest.raises(SettingsError, match="contracts"):
            await asyncio.wait_for(at_work, 10)


async def _ignore(payload: dict[str, Any]) -> None: ...


async def contracts(wire: Client, **fields: bytes) -> Contracts:
    await wire.call("FCALL", "as1_create_stream", 1, "{t}", "{t}:meta", "name", "t")
    for field, value in fields.items():
        await wire.call("HSET", "{t}:contracts", field, value)
    return Contracts(wire.call)


async def test_a_stream_without_contracts_asks_the_server_nothing() -> None:
    async def call(*_: Any) -> Any:
        raise AssertionError

    assert await Contracts(call).of(Produces("t", "{t}")) is FREE


async def test_contracts_that_the_route_promises_and_the_server_lacks_are_waited_for(wire: Client) -> None:
    promised = await contracts(wire)
    with pytest.raises(StreamMissing, match="the contracts of t are not on the server"):
        await promised.of(Produces("t", "{t}", contracts="1f"))


async def test_what_is_no_contract_is_said_to_be_none(wire: Client) -> None:
    broken = await contracts(wire, **{"digest": b"1f", "event@1": b'{"required":"doc"}'})
    with pytest.raises(ProtocolError, match="a contract of t is no JSON Schema"):
        await broken.of(Produces("t", "{t}", contracts="1f"))


async def test_contracts_are_fetched_once_and_when_they_are_newer_than_the_route_again(wire: Client) -> None:
    await contracts(wire, **{"digest": b"1f", "event@1": b"{}"})
    calls = []

    async def call(*command: Any) -> Any:
        calls.append(command)
        return await wire.call(*command)

    known = Contracts(call)
    found = await asyncio.gather(*(known.of(Produces("t", "{t}", contracts="1f")) for _ in range(5)))
    assert len(calls) == 1
    assert all(contract is found[0] for contract in found)
    for _ in range(5):
        assert await known.of(Produces("t", "{t}", contracts="0a")) is not found[0]
    assert len(calls) == 2


async def test_a_stream_whose_contracts_are_slow_to_come_holds_no_other_up(wire: Client) -> None:
    await contracts(wire, **{"digest": b"1f", "event@1": b"{}"})
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def call(*command: Any) -> Any:
        if command == ("HGETALL", "{slow}:contracts"):
            asked.set()
            await go_on.wait()
            return [b"digest", b"2e"]
        return await wire.call(*command)

    known = Contracts(call)
    slow = asyncio.create_task(known.of(Produces("slow", "{slow}", contracts="2e")))
    await asked.wait()
    async with asyncio.timeout(5):
        assert await known.of(Produces("t", "{t}", contracts="1f")) is not FREE
    assert not slow.done()
    go_on.set()
    assert await slow is await known.of(Produces("slow", "{slow}", contracts="2e"))


async def test_who_wants_newer_contracts_does_not_get_those_that_were_asked_for_before(wire: Client) -> None:
    await contracts(wire, **{"digest": b"1f", "event@1": b"{}"})
    read, go_on = asyncio.Event(), asyncio.Event()

    async def call(*command: Any) -> Any:
        found = await wire.call(*command)
        if not read.is_set():
            read.set()
            await go_on.wait()
        return found

    known = Contracts(call)
    first = asyncio.create_task(known.of(Produces("t", "{t}", contracts="1f")))
    await read.wait()
    await wire.call("HSET", "{t}:contracts", "digest", "2e", "event@1", '{"required":["doc"]}')
    second = asyncio.create_task(known.of(Produces("t", "{t}", contracts="2e")))
    await asyncio.wait({second}, timeout=5)
    go_on.set()
    assert await first is not await second
    assert await known.of(Produces("t", "{t}", contracts="2e")) is not await first
