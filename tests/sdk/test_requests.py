"""Requests and their answers: the first answer, or who gave up, or nobody in time."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentstream import Message, NoReply, Reject, RequestFailed
from agentstream.agent import Agent
from agentstream.errors import ConnectionLost, InvalidMessage, NoRoute
from agentstream.protocol.envelope import encode
from agentstream.protocol.keys import reply_key
from agentstream.sending.replies import is_reply_key
from agentstream.testing.faults import Faults
from agentstream.transport.client import Client
from support.servers import Server
from support.topology import Topology, following
from support.waiting import until

TOKEN = "0123456789abcdef" * 2


@pytest.fixture
async def declared(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, which `coder` consumes and `auditor` reads along."""
    await topology.group("tasks", "coder", max_deliveries=2)
    return topology


@pytest.fixture
async def planner(declared: Topology) -> AsyncIterator[Agent]:
    async with declared.agent("planner") as agent:
        yield agent


@contextlib.asynccontextmanager
async def answering(agent: Agent, workers: int = 1) -> AsyncIterator[None]:
    """The agent answers each request with its number, doubled."""

    async def work() -> None:
        async for delivery in deliveries:
            async with delivery:
                await delivery.reply({"n": 2 * delivery.message.payload["n"]})

    async with agent.stream_consume("tasks") as deliveries:
        working = [asyncio.create_task(work()) for _ in range(workers)]
        yield
    await asyncio.gather(*working)


async def answers(wire: Client) -> list[str]:
    """The keys of the streams for answers."""
    return [key.decode() for key in await wire.call("KEYS", "*:reply:*")]


async def connections(server: Server, role: str) -> list[dict[str, str]]:
    with server.admin() as client:
        return [one for one in client.client_list() if one["name"].endswith(f":{role}")]


async def test_a_request_returns_the_answer_to_it(declared: Topology, planner: Agent) -> None:
    before = time.time()
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(planner.request(to="coder", payload={"n": 1}, timeout=30))
        async with await following(deliveries) as delivery:
            request = delivery.message
            await delivery.reply({"n": 2})
        answer = await asking
    assert (request.type, request.sender, request.to) == ("task_request", "planner", "coder")
    assert is_reply_key(request.reply_to, "test", "planner")
    assert request.expires_at is not None
    assert before + 30 <= request.expires_at <= time.time() + 30
    assert (answer.type, answer.sender, answer.to) == ("task_result", "coder", "planner")
    assert (answer.payload, answer.correlation_id) == ({"n": 2}, request.id)


async def test_a_request_says_what_its_sender_wants_it_to(declared: Topology, planner: Agent) -> None:
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(
            planner.request(
                to="coder", payload={}, type="event", stream="tasks", correlation_id="c", expires_at=4e9
            )
        )
        async with await following(deliveries) as delivery:
            await delivery.reply({})
        await asking
    message = delivery.message
    assert (message.type, message.correlation_id, message.expires_at) == ("event", "c", 4e9)


async def test_five_hundred_requests_at_a_time_get_their_own_answers(
    declared: Topology, planner: Agent, wire: Client
) -> None:
    async with declared.agent("coder") as coder, answering(coder, workers=8):
        replies = await asyncio.gather(*(planner.request(to="coder", payload={"n": n}) for n in range(500)))
        assert [reply.payload["n"] for reply in replies] == [2 * n for n in range(500)]
        (key,) = await answers(wire)
        assert 0 < await wire.call("PTTL", key) <= 121_000


async def test_answers_are_trimmed_as_they_are_read(declared: Topology, planner: Agent, wire: Client) -> None:
    async with declared.agent("coder") as coder, answering(coder):
        for n in range(3):
            await planner.request(to="coder", payload={"n": n})

        (key,) = await answers(wire)

        async def is_empty() -> bool:
            return await wire.call("XLEN", key) == 0

        await until(is_empty)


async def test_nothing_is_left_of_a_requester_that_ends(declared: Topology, wire: Client) -> None:
    async with declared.agent("coder") as coder, answering(coder):
        async with declared.agent("planner") as planner:
            await planner.request(to="coder", payload={"n": 1})
            assert len(await answers(wire)) == 1
        assert await answers(wire) == []


async def test_who_asks_nothing_has_no_connection_for_answers(
    server: Server, declared: Topology, planner: Agent
) -> None:
    await planner.send_message(to="coder", type="event", payload={})
    assert await connections(server, "answers") == []


async def test_who_waits_for_nothing_says_nothing(server: Server, declared: Topology, planner: Agent) -> None:
    async with declared.agent("coder") as coder, answering(coder):
        await planner.request(to="coder", payload={"n": 1})

    async def is_silent() -> bool:
        (connection,) = await connections(server, "answers")
        return connection["cmd"] == "xtrim" and int(connection["idle"]) >= 1

    # the last command was that which trims the answer: nobody reads on
    await until(is_silent)


async def test_nobody_in_time_is_no_reply(declared: Topology, planner: Agent) -> None:
    with pytest.raises(NoReply, match="coder did not answer"):
        await planner.request(to="coder", payload={}, timeout=0.1)
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        await planner.send_message(to="coder", type="event", payload={})
        # nobody works on what nobody waits for
        assert (await following(deliveries)).message.type == "event"
    (record,) = await declared.dead_letters(declared.routes["coder"].consumes[0])
    assert record["reason"] == b"Expired"


async def test_an_answer_that_comes_too_late_is_dropped(declared: Topology, planner: Agent) -> None:
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        with pytest.raises(NoReply):
            await planner.request(to="coder", payload={}, timeout=0.1, expires_at=4e9)
        late = await following(deliveries)
        asking = asyncio.create_task(planner.request(to="coder", payload={}))
        soon = await following(deliveries)
        for delivery in (late, soon):
            async with delivery:
                await delivery.reply({"entry": delivery.entry})
        assert (await asking).payload == {"entry": soon.entry}


async def test_of_several_answers_the_first_one_counts(declared: Topology, planner: Agent) -> None:
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        for n in range(3):
            asking = asyncio.create_task(planner.request(to="coder", payload={}))
            async with await following(deliveries) as delivery:
                await delivery.reply({"n": n})
                await delivery.reply({"n": -1})
            assert (await asking).payload == {"n": n}


async def test_a_request_that_is_tried_again_is_answered(declared: Topology, planner: Agent) -> None:
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(planner.request(to="coder", payload={}))
        async with await following(deliveries):
            raise RuntimeError("fails")
        async with await following(deliveries) as delivery:
            await delivery.reply({"attempt": delivery.attempt})
        assert (await asking).payload == {"attempt": 2}


async def test_a_request_that_is_rejected_has_failed(declared: Topology, planner: Agent) -> None:
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(planner.request(to="coder", payload={}))
        async with await following(deliveries):
            raise Reject("no such document")
        with pytest.raises(RequestFailed, match="no such document") as failed:
            await asking
        assert failed.value.reason == "no such document"


async def test_a_request_whose_attempts_are_used_up_has_failed(declared: Topology, planner: Agent) -> None:
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(planner.request(to="coder", payload={}))
        for _ in range(2):
            async with await following(deliveries):
                raise RuntimeError("the disk is full")
        with pytest.raises(RequestFailed, match="RuntimeError: the disk is full") as failed:
            await asking
        assert failed.value.reason == "MaxDeliveries"


async def test_a_request_that_expired_has_failed(declared: Topology, planner: Agent) -> None:
    soon = time.time() + 0.2
    asking = asyncio.create_task(planner.request(to="coder", payload={}, expires_at=soon))
    await until(lambda: time.time() > soon)
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        reading = asyncio.create_task(following(deliveries))
        with pytest.raises(RequestFailed) as failed:
            await asking
        assert failed.value.reason == "Expired"
        reading.cancel()
        await asyncio.wait({reading})


async def test_handlers_answer_by_what_they_return_and_who_has_none_is_known(
    declared: Topology, planner: Agent
) -> None:
    async with declared.agent("coder") as coder:

        @coder.on("task_request")
        async def double(payload: dict[str, Any]) -> dict[str, Any]:
            return {"n": 2 * payload["n"]}

        running = asyncio.create_task(coder.run())
        assert (await planner.request(to="coder", payload={"n": 4})).payload == {"n": 8}
        with pytest.raises(RequestFailed) as failed:
            await planner.request(to="coder", payload={}, type="event")
        assert failed.value.reason == "NoHandler"
        coder.stop()
        await running


async def test_who_reads_along_and_gives_up_fails_no_request(declared: Topology, planner: Agent) -> None:
    audit = await declared.group("tasks", "auditor", deliver_all=True)
    async with (
        declared.agent("auditor") as auditor,
        declared.agent("coder") as coder,
        auditor.stream_consume("tasks") as copies,
        coder.stream_consume("tasks") as deliveries,
    ):
        asking = asyncio.create_task(planner.request(to="coder", payload={}))
        await (await following(copies)).dead_letter("no")
        assert len(await declared.dead_letters(audit)) == 1
        async with await following(deliveries) as delivery:
            await delivery.reply({})
        assert (await asking).sender == "coder"


async def test_lost_replies_of_the_server_double_nothing(
    declared: Topology, proxy: Faults, wire: Client
) -> None:
    async with (
        declared.agent("planner", url=proxy.url) as planner,
        declared.agent("coder", url=proxy.url) as coder,
        answering(coder),
    ):
        for n, command in enumerate(["as1_add", "as1_reply", "XREAD", "XTRIM", "as1_settle"] * 2):
            proxy.lose_reply(command)
            reply = await planner.request(to="coder", payload={"n": n})
            assert reply.payload["n"] == 2 * n
        assert await wire.call("XLEN", "{test.tasks}") == 10


async def test_a_server_that_is_away_delays_an_answer(declared: Topology, proxy: Faults) -> None:
    async with (
        declared.agent("planner", url=proxy.url) as planner,
        declared.agent("coder") as coder,
        coder.stream_consume("tasks") as deliveries,
    ):
        asking = asyncio.create_task(planner.request(to="coder", payload={}))
        delivery = await following(deliveries)
        with proxy.refuse():
            async with delivery:
                await delivery.reply({"n": 1})
        assert (await asking).payload == {"n": 1}


async def test_an_answer_counts_even_if_whether_the_request_was_sent_is_not_known(
    declared: Topology, proxy: Faults
) -> None:
    async with declared.agent("planner", url=proxy.url) as planner, declared.agent("coder") as coder:
        async with answering(coder):
            await planner.request(to="coder", payload={"n": 0})
            # no reply to adding it, however often it is repeated
            proxy.lose_reply("as1_add", times=1_000)
            reply = await planner.request(to="coder", payload={"n": 1}, timeout=0.6)
            assert reply.payload == {"n": 2}


async def test_a_request_that_cannot_be_sent_is_an_error_of_sending(planner: Agent) -> None:
    with pytest.raises(NoRoute):
        await planner.request(to="nobody", payload={}, timeout=0.1)
    with pytest.raises(InvalidMessage):
        await planner.request(to="coder", payload={"n": object()})


async def test_a_requester_that_is_closed_waits_no_longer(declared: Topology) -> None:
    async with declared.agent("planner") as planner:
        asking = asyncio.create_task(planner.request(to="coder", payload={}))

        async def is_sent() -> bool:
            return bool(await declared.wire.call("XLEN", "{test.tasks}"))

        await until(is_sent)
    with pytest.raises(ConnectionLost, match="closed"):
        await asking


async def test_a_requester_that_is_gone_holds_nobody_up(declared: Topology, wire: Client) -> None:
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with declared.agent("planner") as planner:
            asking = asyncio.create_task(planner.request(to="coder", payload={}, timeout=30))
            delivery = await following(deliveries)
            asking.cancel()
            await asyncio.wait({asking})
        async with delivery:
            await delivery.reply({})
        consumes = declared.routes["coder"].consumes[0]
        assert await declared.settled(consumes, 1)
        (key,) = await answers(wire)
        # it goes by itself
        assert 0 < await wire.call("PTTL", key) <= 91_000


RESPONDER = """
import asyncio, sys
from agentstream.agent import Agent
from agentstream.transport.endpoint import Endpoint
from agentstream.identity.settings import Settings

async def main():
    settings = Settings(namespace="test", agent="coder", source=Endpoint(sys.argv[1]), pod=sys.argv[2])
    async with Agent.connect(settings) as coder:
        async for delivery in coder.stream_consume("tasks"):
            print("working", flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_another_answers_for_a_responder_that_is_killed_in_mid_work(
    server: Server, declared: Topology, planner: Agent
) -> None:
    doomed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RESPONDER, server.url, "doomed"), stdout=asyncio.subprocess.PIPE
    )
    try:
        asking = asyncio.create_task(planner.request(to="coder", payload={"n": 4}))
        assert doomed.stdout is not None
        assert await asyncio.wait_for(doomed.stdout.readline(), 20) == b"working\n"
        doomed.send_signal(signal.SIGKILL)
        async with declared.agent("coder") as coder, answering(coder):
            assert (await asyncio.wait_for(asking, 20)).payload == {"n": 8}
    finally:
        with contextlib.suppress(ProcessLookupError):
            doomed.kill()
        await doomed.wait()


async def test_a_message_whose_sender_does_not_wait_is_answered_by_a_message(
    declared: Topology, planner: Agent, wire: Client
) -> None:
    await declared.stream("results", "coder")
    await declared.group("results", "planner")
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        sent = await planner.send_message(to="coder", type="task_request", payload={})
        async with await following(deliveries) as delivery:
            await delivery.reply({"n": 1})
    async with planner.stream_consume("results") as results, await following(results) as result:
        answer = result.message
    assert (answer.type, answer.sender, answer.to) == ("task_result", "coder", "planner")
    assert (answer.correlation_id, answer.payload) == (sent.id, {"n": 1})


async def test_an_answer_that_nothing_leads_to_is_an_error(declared: Topology, planner: Agent) -> None:
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        await planner.send_message(to="coder", type="task_request", payload={})
        delivery = await following(deliveries)
        with pytest.raises(NoRoute):
            await delivery.reply({}, timeout=0.1)
        with pytest.raises(InvalidMessage):
            await delivery.reply({"n": object()})
        await delivery.ack()


@pytest.mark.parametrize(
    "reply_to",
    [
        "{test.tasks}",
        "{test.tasks}:retry:coder",
        "planner",
        reply_key("test", "tester", TOKEN),
        reply_key("other", "planner", TOKEN),
        reply_key("test", "planner", TOKEN) + "0",
        reply_key("test", "planner", TOKEN[1:]),
        reply_key("test", "planner", TOKEN.upper()),
        reply_key("test", "planner", TOKEN) + "\n",
        "x" + reply_key("test", "planner", TOKEN),
    ],
)
async def test_only_a_reply_stream_of_the_sender_is_ever_written_to(
    declared: Topology, planner: Agent, wire: Client, reply_to: str
) -> None:
    before = set(await wire.call("KEYS", "*"))
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        for settle in ("reply", "dead_letter"):
            await planner.send_message(to="coder", type="task_request", payload={}, reply_to=reply_to)
            delivery = await following(deliveries)
            if settle == "reply":
                with pytest.raises(NoRoute):
                    await delivery.reply({}, timeout=0.05)
            await delivery.dead_letter("no")
    assert await wire.call("XLEN", "{test.tasks}") == 2
    assert {b"{test.tasks}:dlq:coder"} >= {
        key
        for key in await wire.call("KEYS", "*")
        if key not in before
        and not key.startswith((b"{test.tasks}:once:", b"{test.tasks}:sent:", b"{test.tasks}:stats:"))
    }


async def test_what_is_no_answer_is_dropped(
    declared: Topology, planner: Agent, wire: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(planner.request(to="coder", payload={}))
        delivery = await following(deliveries)
        key = delivery.message.reply_to
        assert key is not None
        await wire.call("XADD", key, "*", "m", "{")
        await wire.call("XADD", key, "*", "f", "v")
        stranger = Message(
            v=1, id=delivery.message.id, sender="a", to="b", type="event", payload={}, timestamp=0
        )
        await wire.call("XADD", key, "*", "m", encode(stranger))
        async with delivery:
            await delivery.reply({"n": 1})
        assert (await asking).payload == {"n": 1}
    assert "an entry of the reply stream that is no message" in caplog.text


@pytest.mark.parametrize("milliseconds", [1, (1 << 64) - 1])
async def test_an_answer_with_the_last_id_of_all_keeps_no_other_from_being_read(
    declared: Topology, planner: Agent, wire: Client, milliseconds: int
) -> None:
    async with declared.agent("coder") as coder, answering(coder):
        # who answers chooses the ids that it adds
        await planner.request(to="coder", payload={"n": 0})
        (key,) = await answers(wire)
        await wire.call("UNLINK", key)
        await wire.call("XADD", key, f"{milliseconds}-{(1 << 64) - 1}", "m", "x", "", "")
        for n in range(3):
            assert (await planner.request(to="coder", payload={"n": n})).payload == {"n": 2 * n}
        assert await wire.call("XLEN", key) == 0


@pytest.mark.parametrize(
    "sizes", [[4] * 12, [40], [0, 40, 1]], ids=["more than a reply", "one too large", "among others"]
)
async def test_answers_that_cannot_be_read_at_a_time_keep_no_other_from_being_read(
    declared: Topology, planner: Agent, wire: Client, sizes: list[int]
) -> None:
    async with declared.agent("coder") as coder, answering(coder):
        await planner.request(to="coder", payload={"n": 0})
        (key,) = await answers(wire)
        for size in sizes:
            # the server takes no argument beyond 16 MiB, but many of them
            await wire.call("XADD", key, "*", *(("f", b"x" * (1 << 20)) * size or ("f", "")))
        with contextlib.suppress(NoReply):
            # its answer may go with what cannot be read
            await planner.request(to="coder", payload={"n": 1}, timeout=6)
        assert (await planner.request(to="coder", payload={"n": 2}, timeout=15)).payload == {"n": 4}


async def test_an_answer_lives_as_long_as_whoever_asked_waits(
    declared: Topology, planner: Agent, wire: Client
) -> None:
    async with declared.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        lifetimes = []
        for expires_in in (3_600, 60, 1e9):
            asking = asyncio.create_task(
                planner.request(to="coder", payload={}, expires_at=time.time() + expires_in)
            )
            async with await following(deliveries) as delivery:
                await delivery.reply({})
            await asking
            lifetimes.append(await wire.call("PTTL", delivery.message.reply_to) / 1000)
    an_hour, not_less, a_day = lifetimes
    assert 3_600 < an_hour <= 3_660
    assert not_less > 3_500
    assert 86_300 < a_day <= 86_400
