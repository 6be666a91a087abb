"""What handlers return reaches whoever sent the message, or it is said that it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.protocol.routes import Consumes
from agentstream.testing import Faults
from support.topology import Topology, following
from support.waiting import until


@pytest.fixture
async def group(topology: Topology) -> Consumes:
    """`coder` consumes it."""
    return await topology.group("tasks", "coder")


@pytest.fixture
async def planner(topology: Topology) -> AsyncIterator[Agent]:
    async with topology.agent("planner") as agent:
        yield agent


def answering(agent: Agent) -> list[int]:
    """Has the agent return an answer to each task. Returns the numbers of the attempts, as they come."""
    attempts = []

    @agent.on("task_request")
    async def double(task: dict, delivery: Delivery) -> dict:
        attempts.append(delivery.attempt)
        return {"n": 2 * task["n"]}

    return attempts


async def stopped(agent: Agent, at_work: asyncio.Task[None]) -> None:
    agent.stop()
    await at_work


async def test_an_answer_that_nothing_leads_to_is_a_dead_letter_once_all_attempts_are_used_up(
    topology: Topology, group: Consumes, planner: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    await planner.send_message(to="coder", type="task_request", payload={"n": 1})
    async with topology.agent("coder") as coder:
        attempts = answering(coder)
        at_work = asyncio.create_task(coder.run())
        started = asyncio.get_running_loop().time()
        await until(lambda: topology.dead_letters(group))
        # each of them would wait for ten for a route to be declared
        assert asyncio.get_running_loop().time() - started < 8
        await stopped(coder, at_work)
    assert attempts == [1, 2, 3, 4, 5]
    (record,) = await topology.dead_letters(group)
    assert record["reason"] == b"NoRoute"
    why = (
        "the handler returned an answer, but coder produces to no stream: name it in spec.producers of an"
        " AgentStream; return None, declare a stream that leads to planner, or have planner ask with"
        " Agent.request"
    )
    assert record["error"].decode() == why
    warned = [record.getMessage() for record in caplog.records if record.name == "agentstream"]
    assert len(warned) == 5
    assert all(message.endswith(why) for message in warned)


async def test_an_answer_arrives_once_a_stream_that_leads_there_is_declared(
    topology: Topology, group: Consumes, planner: Agent
) -> None:
    async with topology.agent("coder") as coder:
        attempts = answering(coder)
        at_work = asyncio.create_task(coder.run())
        await planner.send_message(to="coder", type="task_request", payload={"n": 1})
        await until(lambda: attempts)
        await topology.stream("results", "coder")
        await topology.group("results", "planner")
        async with planner.stream_consume("results") as results, await following(results) as result:
            assert (result.message.type, result.payload) == ("task_result", {"n": 2})
        await until(lambda: topology.settled(group, 1))
        await stopped(coder, at_work)
    assert attempts[-1] < group.max_deliveries
    assert await topology.dead_letters(group) == []


async def test_an_answer_that_several_streams_lead_to_is_a_dead_letter_at_once(
    topology: Topology, group: Consumes, planner: Agent
) -> None:
    for stream in ("results", "reports"):
        await topology.stream(stream, "coder")
        await topology.group(stream, "planner")
    await planner.send_message(to="coder", type="task_request", payload={"n": 1})
    async with topology.agent("coder") as coder:
        attempts = answering(coder)
        at_work = asyncio.create_task(coder.run())
        await until(lambda: topology.settled(group, 1))
        await stopped(coder, at_work)
    assert attempts == [1]
    (record,) = await topology.dead_letters(group)
    assert record["reason"] == b"NoRoute"
    assert record["error"].decode() == (
        "the handler returned an answer, but several streams lead to planner: results, reports; name one with"
        " stream=; return None and send the answer, or have planner ask with Agent.request"
    )


async def test_an_answer_waits_for_a_server_that_is_away(
    topology: Topology, group: Consumes, planner: Agent, proxy: Faults
) -> None:
    await topology.stream("results", "coder")
    await topology.group("results", "planner")
    begun, go_on, returned = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with topology.agent("coder", url=proxy.url) as coder:

        @coder.on("task_request")
        async def double(task: dict) -> dict:
            begun.set()
            await go_on.wait()
            asyncio.get_running_loop().call_later(0.1, returned.set)
            return task

        at_work = asyncio.create_task(coder.run())
        await planner.send_message(to="coder", type="task_request", payload={"n": 1})
        await begun.wait()
        with proxy.refuse():
            go_on.set()
            await returned.wait()
            assert not await topology.settled(group, 1)
        await until(lambda: topology.settled(group, 1))
        await stopped(coder, at_work)
    assert await topology.dead_letters(group) == []


async def test_what_was_settled_before_its_answer_could_go_nowhere_stays_settled(
    topology: Topology, group: Consumes, planner: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    await planner.send_message(to="coder", type="task_request", payload={"n": 1})
    async with topology.agent("coder") as coder:

        @coder.on("task_request")
        async def double(task: dict, delivery: Delivery) -> dict:
            await delivery.ack()
            return task

        at_work = asyncio.create_task(coder.run())
        await until(lambda: "the handler returned an answer, but" in caplog.text)
        await stopped(coder, at_work)
    assert await topology.settled(group, 1)
    assert await topology.dead_letters(group) == []


async def test_a_group_without_dead_letters_tries_it_again(topology: Topology, planner: Agent) -> None:
    await topology.group("tasks", "coder", dead_letters=False)
    await planner.send_message(to="coder", type="task_request", payload={"n": 1})
    async with topology.agent("coder") as coder:
        attempts = answering(coder)
        at_work = asyncio.create_task(coder.run())
        await until(lambda: len(attempts) == 2)
        await stopped(coder, at_work)
