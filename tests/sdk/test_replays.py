"""Copies of signed messages, and who handles them: nobody, whichever process they reach and when."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.protocol import commands, library
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.signatures import SKEW, WINDOW, sign
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from support.servers import Server
from support.signed import KEY, OLD, Signed
from support.topology import NAMESPACE, Topology, following, numbers
from support.waiting import until


@pytest.fixture
async def strict(server: Server, wire: Client, tmp_path: Path) -> Signed:
    """Signatures are required, and both have the key."""
    return await declared(server.url, wire, tmp_path)


async def declared(url: str, wire: Client, directory: Path) -> Signed:
    signed = await Signed(Topology(wire, url), directory).declare("Require")
    for agent in ("planner", "coder"):
        signed.give(agent, OLD)
    return signed


def body(n: int) -> bytes:
    return (
        b'{"v":1,"id":"0b0e9d3e-4b55-4f6e-8f1c-%012d","from":"planner","to":"coder","type":"event",'
        b'"payload":{"n":%d},"timestamp":1}' % (n, n)
    )


async def add(signed: Signed, entry: str, n: int, at: float) -> None:
    """Adds a message that was signed at a time, as an entry whose id the adder chooses."""
    await signed.topology.wire.call("XADD", KEY, entry, "m", body(n), "s", sign(OLD, KEY, body(n), at))


async def handled(signed: Signed, *expected: int) -> None:
    """A process that starts now handles these and no more."""
    async with signed.agent("coder") as coder:
        deliveries = coder.stream_consume("tasks")
        if expected:
            assert await numbers(deliveries, len(expected)) == list(expected)
        entries = len(await signed.entries())
        waiting = asyncio.ensure_future(anext(deliveries))
        await until(lambda: signed.topology.settled(signed.group, entries))
        assert not waiting.done()
        coder.stop()
        with pytest.raises(StopAsyncIteration):
            await waiting


async def test_an_old_message_is_refused_on_a_quiet_stream_after_a_restart(strict: Signed) -> None:
    ago = time.time() - 3600
    await add(strict, f"{int(ago * 1000)}-0", 0, ago)
    await handled(strict, 0)
    await add(strict, f"{int(ago * 1000)}-1", 0, ago)
    # as late as its signature lets it be
    await add(strict, f"{int((ago + WINDOW + SKEW - 1) * 1000)}-0", 0, ago)
    await handled(strict)
    assert await strict.reasons() == ["Replayed", "Replayed"]


async def test_a_copy_reaches_no_other_process(strict: Signed) -> None:
    await strict.send(*range(20))
    messages = await strict.entries()
    async with strict.agent("coder") as one, strict.agent("coder") as other:
        seen: Counter[int] = Counter()

        async def work(agent: Agent) -> None:
            async for delivery in agent.stream_consume("tasks"):
                async with delivery:
                    seen[delivery.message.payload["n"]] += 1

        tasks = [asyncio.create_task(work(agent)) for agent in (one, other)]
        for message in messages * 3:
            await strict.add("m", message["m"], "s", message["s"])
        await until(lambda: strict.topology.settled(strict.group, 80))
        for agent in (one, other):
            agent.stop()
        await asyncio.gather(*tasks)
    assert seen == dict.fromkeys(range(20), 1)
    assert await strict.reasons() == ["Replayed"] * 60


async def test_who_was_away_for_hours_handles_its_backlog(strict: Signed) -> None:
    ago = time.time() - 7200
    for n in range(50):
        await add(strict, f"{int((ago + 60 * n) * 1000)}-0", n, ago + 60 * n - 30)
    await handled(strict, *range(50))
    assert await strict.reasons() == []


@pytest.mark.parametrize("skew", [-SKEW + 1, SKEW - 1])
async def test_a_sender_whose_clock_differs_is_not_taken_for_an_attacker(strict: Signed, skew: float) -> None:
    await add(strict, "*", 0, time.time() + skew)
    await add(strict, "*", 0, time.time() + skew)
    await handled(strict, 0)
    assert await strict.reasons() == ["Replayed"]


async def test_a_message_on_the_retry_stream_is_the_original_and_what_comes_meanwhile_is_not(
    strict: Signed,
) -> None:
    await strict.send(0)
    (message,) = await strict.entries()
    async with strict.agent("coder") as coder:
        async with await following(coder.stream_consume("tasks")):
            raise ZeroDivisionError
    await strict.add("m", message["m"], "s", message["s"])
    async with strict.agent("coder") as coder:
        delivery = await following(coder.stream_consume("tasks"))
        assert (delivery.attempt, delivery.message.payload["n"]) == (2, 0)
        assert await delivery.ack()
        await until(lambda: strict.topology.settled(strict.group, 2))
    assert await strict.reasons() == ["Replayed"]


DYING = """
import asyncio, os, signal
from pathlib import Path
from agentstream.agent import Agent
from agentstream.consuming.dispatch import Dispatcher
from agentstream.identity.settings import Binding, Settings
Dispatcher._verified = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
async def main():
    settings = Settings(namespace="{namespace}", agent="coder", source=Binding(Path("{binding}")), pod="x")
    async with Agent.connect(settings) as agent:
        async for _ in agent.stream_consume("tasks"):
            raise SystemExit("it was handled")
asyncio.run(main())
"""


async def test_what_was_asked_for_by_a_process_that_was_killed_then_is_handled_by_another(
    strict: Signed, tmp_path: Path
) -> None:
    await strict.send(0)
    (message,) = await strict.entries()
    program = DYING.format(namespace=NAMESPACE, binding=tmp_path / "coder")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=os.environ)
    assert await process.wait() == -signal.SIGKILL
    assert await strict.topology.wire.call("HLEN", StreamKeys(KEY).seen("coder")) == 2
    await strict.add("m", message["m"], "s", message["s"])
    await handled(strict, 0)
    assert await strict.reasons() == ["Replayed"]


async def test_of_what_nobody_can_tell_is_handled_later_and_no_attempt_is_counted(strict: Signed) -> None:
    wire = strict.topology.wire
    text = library.source().replace("as1_originals'", "as1_elsewhere'")
    await wire.call("FUNCTION", "LOAD", "REPLACE", text)
    await strict.send(0)
    async with strict.agent("coder") as coder:
        waiting = asyncio.create_task(following(coder.stream_consume("tasks")))
        await until(lambda: failed(coder))
        assert not waiting.done()
        await wire.call("FUNCTION", "LOAD", "REPLACE", library.source())
        delivery = await waiting
        assert delivery.attempt == 1
        assert await delivery.ack()
    assert await strict.reasons() == []


def failed(agent: Agent) -> bool:
    """Whether looking for copies has failed."""
    sessions = agent._consumer.consumed.values()
    return any(session.dispatcher._originals._failures._known for session in sessions)


async def test_a_group_that_is_made_again_at_its_checkpoint_handles_what_it_had_not(strict: Signed) -> None:
    await strict.send(0)
    await handled(strict, 0)
    await strict.topology.wire.call(*commands.destroy_group(KEY, "coder"))
    assert await strict.topology.wire.call("EXISTS", StreamKeys(KEY).seen("coder")) == 0
    await strict.topology.wire.call(*commands.create_group(KEY, "coder", "$"))
    await strict.send(1)
    async with strict.agent("coder") as coder:
        assert await numbers(coder.stream_consume("tasks"), 1) == [1]


async def test_an_unsigned_stream_asks_nothing(server: Server, wire: Client, tmp_path: Path) -> None:
    signed = await Signed(Topology(wire, server.url), tmp_path).declare("Off")
    await signed.send(0)
    await handled(signed, 0)
    assert await wire.call("EXISTS", StreamKeys(KEY).seen("coder")) == 0


class Copies(RuleBasedStateMachine):
    """Messages, copies of any age, handlers that fail, and processes that come and go, in any order."""

    url: str
    directories: Iterator[Path]

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.signed_at: dict[int, float] = {}
        self.copies = 0
        self.last = (int(time.time() * 1000) - 7_200_000, 0)
        self.succeeded: Counter[int] = Counter()
        self.agents: list[tuple[Agent, asyncio.Task[None]]] = []
        self.run(self._begin())

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    async def _begin(self) -> None:
        self.wire = Client(lambda: Endpoint(self.url), name="model")
        await self.wire.call("FLUSHALL")
        self.strict = await declared(self.url, self.wire, next(self.directories))

    @rule(later=st.integers(0, 600_000), delay=st.floats(0, WINDOW - 1))
    def add(self, later: int, delay: float) -> None:
        """A message that is added so much later than what was before, signed so long before that."""
        number = len(self.signed_at)
        self._next(later)
        self.signed_at[number] = self.last[0] / 1000 - delay
        self.run(add(self.strict, f"{self.last[0]}-{self.last[1]}", number, self.signed_at[number]))

    @rule(of=st.integers(0, 99), later=st.integers(0, 500_000))
    def copy(self, of: int, later: int) -> None:
        """A copy, at an id that its signature may let through."""
        if self.signed_at:
            number = of % len(self.signed_at)
            self._next(later)
            self.copies += 1
            entry = f"{self.last[0]}-{self.last[1]}"
            self.run(add(self.strict, entry, number, self.signed_at[number]))

    def _next(self, later: int) -> None:
        self.last = (self.last[0] + later, 0 if later else self.last[1] + 1)

    @rule()
    def start(self) -> None:
        if len(self.agents) < 3:
            self.run(self._start())

    async def _start(self) -> None:
        agent = self.strict.agent("coder")
        await agent.__aenter__()
        self.agents.append((agent, asyncio.create_task(self._work(agent))))
        await asyncio.sleep(0)

    async def _work(self, agent: Agent) -> None:
        async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                self._handle(delivery)

    def _handle(self, delivery: Delivery) -> None:
        number = delivery.message.payload["n"]
        if delivery.attempt == 1 and number % 3 == 0:
            raise ZeroDivisionError
        self.succeeded[number] += 1

    @rule()
    def settle(self) -> None:
        """The processes handle all that there is."""
        if not self.agents:
            self.start()
        count = len(self.signed_at) + self.copies
        self.run(until(partial(self.strict.topology.settled, self.strict.group, count)))
        assert self.succeeded == dict.fromkeys(self.signed_at, 1)
        assert Counter(self.run(self.strict.reasons())) == Counter(
            {"Replayed": self.copies} if self.copies else {}
        )

    @rule(which=st.integers(0, 2))
    def stop(self, which: int) -> None:
        if self.agents:
            self.run(self._stop(self.agents.pop(which % len(self.agents))))

    async def _stop(self, running: tuple[Agent, asyncio.Task[None]]) -> None:
        agent, task = running
        agent.stop()
        await task
        await agent.__aexit__(None, None, None)

    @invariant()
    def nothing_is_handled_twice(self) -> None:
        assert all(count == 1 for count in getattr(self, "succeeded", {}).values())

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.settle()
            while self.agents:
                self.run(self._stop(self.agents.pop()))
            self.run(self.wire.close())
            self.runner.close()


def test_no_message_is_refused_and_no_copy_is_handled_whatever_happens(
    server: Server, tmp_path: Path
) -> None:
    def directories() -> Iterator[Path]:
        for number in range(1_000_000):
            directory = tmp_path / str(number)
            directory.mkdir()
            yield directory

    Copies.url, Copies.directories = server.url, directories()
    run_state_machine_as_test(
        Copies,
        settings=settings(
            max_examples=15,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
