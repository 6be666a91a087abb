"""What the asynchronous agent does, done by threads; with the examples of the SDK's README."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

import agentstream
from agentstream import NoReply, NoRoute, OutgoingMessage, QuorumMissed, Reject, RequestFailed, Retry
from agentstream.errors import Backpressure, EffectInDoubt
from agentstream.protocol.keys import notify_channel
from agentstream.protocol.routes import Consumes
from agentstream.sync import Agent, Deliveries, Delivery
from agentstream.transport.client import Client
from support.topology import NAMESPACE, Topology
from support.tracing import exporter
from support.waiting import until


@pytest.fixture
def group(topology: Topology) -> Consumes:
    return topology.routes["coder"].consumes[0]


def interrupted(firsts: list[bool], first: bool) -> None:  # noqa: FBT001
    firsts.append(first)
    raise KeyboardInterrupt


def handled(deliveries: Deliveries[Any], count: int) -> list[Any]:
    """The payloads of so many messages, which are acknowledged."""
    payloads: list[Any] = []
    while len(payloads) < count:
        with next(deliveries) as delivery:
            payloads.append(delivery.payload)
    return payloads


async def test_threads_share_the_work_of_one_consumption(
    topology: Topology, group: Consumes, planner: Agent, coder: Agent
) -> None:
    together, done = threading.Barrier(4, timeout=10), threading.Event()

    def work(deliveries: Deliveries[Any]) -> list[int]:
        seen: list[int] = []
        for delivery in deliveries:
            with delivery:
                if not seen:
                    # none goes on before all four have one
                    together.wait()
                seen.append(delivery.payload["n"])
        return seen

    def share() -> list[int]:
        with planner, coder, ThreadPoolExecutor(4) as threads:
            sent = planner.send_many(
                OutgoingMessage(to="coder", type="event", payload={"n": n}) for n in range(40)
            )
            assert len({one.entry for one in sent}) == 40
            deliveries = coder.stream_consume("tasks", concurrency=8)
            working = [threads.submit(work, deliveries) for _ in range(4)]
            assert done.wait(20)
            coder.stop()
            return sorted(n for seen in working for n in seen.result())

    sharing = asyncio.create_task(asyncio.to_thread(share))
    await until(lambda: topology.settled(group, 40))
    done.set()
    assert await sharing == list(range(40))


async def test_a_block_settles_by_how_it_ends(
    topology: Topology, group: Consumes, planner: Agent, coder: Agent
) -> None:
    def work() -> list[tuple[str, int]]:
        seen: list[tuple[str, int]] = []
        with planner, coder, coder.stream_consume("tasks", concurrency=1) as deliveries:
            for how in ("fails", "again", "rejected", "ends"):
                planner.send_message(to="coder", type="event", payload={"how": how})
            for delivery in deliveries:
                with delivery:
                    how = delivery.message.payload["how"]
                    seen.append((how, delivery.attempt))
                    if how == "fails":
                        raise LookupError("as ever")
                    if how == "again" and delivery.attempt == 1:
                        raise Retry("later", after=0.01)
                    if how == "rejected":
                        raise Reject("NoUse")
                assert delivery.settled
                if len(seen) == 6:
                    return seen
        raise AssertionError

    seen = await asyncio.to_thread(work)
    assert sorted(seen) == [
        ("again", 1),
        ("again", 2),
        ("ends", 1),
        ("fails", 1),
        ("fails", 2),
        ("rejected", 1),
    ]
    await until(lambda: topology.settled(group, 4))
    assert {record["reason"] for record in await topology.dead_letters(group)} == {b"NoUse", b"MaxDeliveries"}


async def test_the_verbs_say_whether_the_message_was_held(
    topology: Topology, group: Consumes, planner: Agent, coder: Agent
) -> None:
    def work() -> None:
        with planner, coder, coder.stream_consume("tasks", concurrency=1) as deliveries:
            planner.send_message(to="coder", type="event", payload={})
            first = next(deliveries)
            assert "Delivery of event" in repr(first)
            assert (first.stream, first.fence, first.deadline, first.held) == ("tasks", 1, None, True)
            assert first.extend(5)
            assert first.release()
            assert not first.ack()
            assert not first.extend(5)
            second = next(deliveries)
            assert (second.entry, second.attempt, second.fence) == (first.entry, 1, 2)
            assert second.retry(after=0, reason="once more")
            assert next(deliveries).dead_letter("Enough")

    await asyncio.to_thread(work)
    (record,) = await topology.dead_letters(group)
    assert record["reason"] == b"Enough"


async def test_payloads_come_as_the_type_that_was_asked_for(planner: Agent, coder: Agent) -> None:
    class Doc(msgspec.Struct):
        doc: int

    def work() -> None:
        with planner, coder:
            planner.send_message(to="coder", type="event", payload=Doc(7))
            assert handled(coder.stream_consume("tasks", payload=Doc), 1) == [Doc(7)]

    await asyncio.to_thread(work)


async def test_an_effect_comes_about_once(planner: Agent, coder: Agent) -> None:
    def work() -> list[bool]:
        firsts: list[bool] = []
        with planner, coder, coder.stream_consume("tasks", concurrency=1) as deliveries:
            for _ in range(3):
                planner.send_message(to="coder", type="event", payload={})
            for _ in range(2):
                with next(deliveries) as delivery, delivery.once("charge") as first:
                    firsts.append(first)
            with next(deliveries) as delivery:
                with pytest.raises(ZeroDivisionError), delivery.once("other"):
                    raise ZeroDivisionError
                with pytest.raises(KeyboardInterrupt), delivery.once("other") as first:
                    interrupted(firsts, first)
                with pytest.raises(EffectInDoubt), delivery.once("other"):
                    pass
                with pytest.raises(ValueError, match="key"):
                    delivery.once("")
        return firsts

    assert await asyncio.to_thread(work) == [True, False, True]


async def test_errors_are_those_of_the_asynchronous_face(planner: Agent, topology: Topology) -> None:
    await topology.wire.call("SET", "{test.tasks}:gate", 0)

    def work() -> None:
        with planner:
            with pytest.raises(NoRoute):
                planner.send_message(type="event", payload={})
            with pytest.raises(Backpressure):
                planner.send_message(to="coder", type="event", payload={}, on_full="raise")
            assert planner.send_message(to="coder", type="event", payload={}, on_full="shed").shed
            with pytest.raises(ValueError, match="concurrency"):
                planner.stream_consume("tasks", concurrency=0)

    await asyncio.to_thread(work)


async def test_requests_are_answered(planner: Agent, coder: Agent) -> None:
    def answer() -> None:
        for delivery in coder.stream_consume("tasks"):
            with delivery:
                if "text" not in delivery.payload:
                    raise Reject("NoText")
                delivery.reply({"words": len(delivery.payload["text"].split())})

    def ask() -> None:
        with planner, coder, ThreadPoolExecutor(1) as threads:
            answering = threads.submit(answer)
            assert planner.request(to="coder", payload={"text": "to be"}).payload == {"words": 2}
            with pytest.raises(RequestFailed):
                planner.request(to="coder", payload={})
            coder.stop()
            answering.result()
            with pytest.raises(NoReply):
                planner.request(to="coder", payload={"text": "or not"}, timeout=0.1)

    await asyncio.to_thread(ask)


async def test_a_receipt_says_who_acknowledged(topology: Topology, planner: Agent, coder: Agent) -> None:
    await topology.stream("news", "planner", broadcast=True)
    for name in ("coder", "tester"):
        await topology.group("news", name, broadcast=True)

    def work() -> None:
        with planner, coder:
            receipt = planner.broadcast(type="event", payload={"release": "1.4"})
            assert (receipt.expected, receipt.sent.stream) == (("coder", "tester"), "news")
            assert "expecting 2 groups" in repr(receipt)
            assert receipt.status().outstanding == ("coder", "tester")
            assert handled(coder.stream_consume("news"), 1) == [{"release": "1.4"}]
            assert receipt.wait(quorum=1).acknowledged == ("coder",)
            with pytest.raises(QuorumMissed):
                receipt.wait(timeout=0.05)

    await asyncio.to_thread(work)


async def test_notifications_end_when_the_agent_stops(
    topology: Topology, wire: Client, planner: Agent, coder: Agent
) -> None:
    channel = notify_channel("agentstream", "test", "coder")

    seen: list[Any] = []

    def listen() -> int:
        with coder:
            with pytest.raises(ValueError, match="buffer"):
                coder.notifications(buffer=0)
            with coder.notifications() as notifications:
                for note in notifications:
                    seen.append(note.payload)  # noqa: PERF401 - it is looked at meanwhile
                return notifications.dropped

    def tell() -> int:
        with planner:
            return planner.notify("coder", {"topic": "cache"})

    async def is_heard() -> bool:
        return (await wire.call("PUBSUB", "NUMSUB", channel))[1] == 1

    listening = asyncio.create_task(asyncio.to_thread(listen))
    await until(is_heard)
    assert await asyncio.to_thread(tell) == 1
    await until(lambda: seen == [{"topic": "cache"}])
    coder.stop()
    assert await listening == 0


async def test_a_lost_lease_does_not_interrupt_a_thread(
    topology: Topology, group: Consumes, planner: Agent, coder: Agent
) -> None:
    await topology.group("tasks", "slow", lease=300)
    slow = Agent.connect(topology.settings("slow"))
    in_hand, lost = threading.Event(), threading.Event()

    def work() -> tuple[bool, bool, bool]:
        with slow, slow.stream_consume("tasks") as deliveries:
            with next(deliveries) as delivery:
                in_hand.set()
                assert lost.wait(10)
                deadline = time.monotonic() + 10
                while delivery.held and time.monotonic() < deadline:
                    lost.wait(0.01)
                    lost.clear()
                held = delivery.held
                acknowledged = delivery.ack()
            return held, acknowledged, delivery.settled

    working = asyncio.create_task(asyncio.to_thread(work))

    def send() -> None:
        with planner:
            planner.send_message(stream="tasks", type="event", payload={})

    await asyncio.to_thread(send)
    await until(in_hand.is_set)
    ((entry, _, _, _),) = await topology.wire.call("XPENDING", group.key, "slow", "-", "+", 10)
    await topology.wire.call("XCLAIM", group.key, "slow", "thief", 0, entry)
    lost.set()
    assert await working == (False, False, True)


async def test_after_its_deadline_a_message_is_given_to_another_attempt(
    topology: Topology, planner: Agent
) -> None:
    await topology.stream("jobs", "planner")
    jobs = await topology.group("jobs", "worker", deadline=100)
    worker = Agent.connect(topology.settings("worker"))

    def work() -> list[tuple[int, bool, bool]]:
        seen: list[tuple[int, bool, bool]] = []
        with planner, worker, worker.stream_consume("jobs", concurrency=2) as deliveries:
            planner.send_message(to="worker", type="event", payload={})
            with next(deliveries) as late:
                assert late.deadline is not None
                with next(deliveries) as again:
                    seen.append((again.attempt, again.held, again.ack()))
                seen.append((late.attempt, late.held, late.ack()))
        return seen

    assert await asyncio.to_thread(work) == [(2, True, True), (1, False, False)]
    assert await topology.settled(jobs, 1)


async def test_handlers_are_plain_functions(
    topology: Topology, group: Consumes, planner: Agent, coder: Agent
) -> None:
    seen: list[Any] = []
    gathered = threading.Event()

    @coder.on("task_request")
    def count(payload: dict[str, Any], delivery: Delivery[dict[str, Any]]) -> dict[str, int]:
        seen.append(type(delivery))
        return {"words": len(payload["text"].split())}

    @coder.on("event", batch_size=2, max_wait=5.0)
    def gather(deliveries: list[Delivery]) -> None:
        seen.append(sorted(delivery.payload["n"] for delivery in deliveries))
        assert all(delivery.ack() for delivery in deliveries)
        gathered.set()

    @coder.upcast("event", from_version=1)
    def newer(payload: dict[str, Any]) -> dict[str, Any]:
        return payload

    assert count({"text": "called directly"}, None) == {"words": 2}  # type: ignore[arg-type]
    seen.clear()

    def work() -> None:
        with planner, coder, ThreadPoolExecutor(1) as threads:
            running = threads.submit(coder.run)
            assert planner.request(to="coder", payload={"text": "to be or"}).payload == {"words": 3}
            for n in range(2):
                planner.send_message(to="coder", type="event", payload={"n": n})
            assert gathered.wait(10)
            coder.stop()
            running.result()

    await asyncio.to_thread(work)
    assert seen == [Delivery, [0, 1]]
    await until(lambda: topology.settled(group, 3))


async def test_functions_that_are_no_handlers_are_refused(coder: Agent) -> None:
    async def asynchronous(payload: dict[str, Any]) -> None: ...

    def foreign(delivery: agentstream.Delivery) -> None: ...

    def nothing() -> None: ...

    def unknown(payload: Nothing) -> None: ...  # type: ignore[name-defined] # noqa: F821

    for function, why in (
        (asynchronous, "asynchronous"),
        (foreign, r"agentstream\.sync"),
        (nothing, "takes"),
        (unknown, "cannot be resolved"),
    ):
        with pytest.raises(TypeError, match=why):
            coder.on("event")(function)


PAGE = Path(__file__).parents[2] / "sdk" / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def example(name: str) -> Any:
    """What an example of the page defines."""
    (text,) = (one for one in EXAMPLES if f"def {name}(" in one)
    names: dict[str, Any] = {}
    # annotations of handlers are resolved, so not in the way of this module
    exec(compile(text, PAGE, "exec", dont_inherit=True), names)
    return names[name]


async def test_iterating(topology: Topology, wire: Client) -> None:
    await topology.stream("results", "coder")
    await topology.group("results", "planner")
    (text,) = (one for one in EXAMPLES if "def work(" in one)
    environ = {
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
    }
    command = [sys.executable, "-c", f"{text}\nwork()"]
    process = await asyncio.to_thread(
        subprocess.Popen, command, env=environ, stderr=subprocess.PIPE, text=True
    )
    async with topology.agent("planner") as planner:
        await planner.send_message(to="coder", type="task_request", payload={"text": "to be or"})
        async for result in planner.stream_consume("results"):
            async with result:
                assert result.payload == {"words": 3}
                break
    process.terminate()
    assert await asyncio.to_thread(process.communicate, timeout=10) == (None, "")
    assert process.returncode == 0


async def test_handlers(topology: Topology, planner: Agent, coder: Agent) -> None:
    serving = asyncio.create_task(asyncio.to_thread(example("serve"), coder))

    def ask() -> dict[str, Any]:
        with planner:
            return planner.request(to="coder", payload={"text": "to be"}).payload

    assert await asyncio.to_thread(ask) == {"words": 2, "first": True}
    coder.stop()
    await serving


async def test_traces(topology: Topology) -> None:
    exporter()
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        ordered, handled = await example("order")(planner), await example("handle")(coder)
    assert ordered == handled != f"{0:032x}"
