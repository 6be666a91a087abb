"""Sending, of one message or many: once, in order, to where routes lead, waiting for what may come."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentstream.agent import Agent
from agentstream.errors import (
    AccessDenied,
    AgentStreamError,
    Backpressure,
    ConnectionLost,
    InvalidMessage,
    MessageExpired,
    NoRoute,
    SendFailed,
    ServerRefused,
    StreamMissing,
)
from agentstream.protocol.envelope import decode
from agentstream.sending.outgoing import OutgoingMessage
from agentstream.sent import SentMessage
from agentstream.telemetry.counters import SHED
from agentstream.testing import Faults
from agentstream.transport.client import Client
from support.servers import Server
from support.topology import Topology, fields_of
from support.waiting import until


@pytest.fixture
async def declared(topology: Topology) -> Topology:
    """`planner` produces to `tasks`, which `coder` consumes, and to the broadcast stream `news`."""
    await topology.stream("news", "planner", broadcast=True)
    await topology.group("tasks", "coder")
    return topology


async def test_a_message_is_on_the_stream_as_it_was_sent(declared: Topology, wire: Client) -> None:
    before = time.time()
    async with declared.agent("planner") as planner:
        sent = await planner.send_message(
            to="coder",
            type="task_request",
            payload={"doc": 7},
            correlation_id="c",
            reply_to="planner",
            expires_at=before + 60,
        )
    ((entry, fields),) = await wire.call("XRANGE", "{test.tasks}", "-", "+")
    message = decode(fields_of(fields)["m"])
    assert (sent.entry, sent.stream, sent.id) == (entry.decode(), "tasks", message.id)
    assert (message.sender, message.to, message.payload) == ("planner", "coder", {"doc": 7})
    assert (message.correlation_id, message.reply_to, message.expires_at) == ("c", "planner", before + 60)
    assert before <= message.timestamp <= time.time()


async def test_a_broadcast_goes_to_the_broadcast_stream(declared: Topology, wire: Client) -> None:
    async with declared.agent("planner") as planner:
        sent = await planner.send_message(to="broadcast", type="event", payload={})
    assert sent.stream == "news"
    assert await wire.call("XLEN", "{test.news}") == 1


async def test_a_stream_without_addressee_is_for_all_its_groups(declared: Topology, wire: Client) -> None:
    async with declared.agent("planner") as planner:
        sent = await planner.send_message(stream="tasks", type="event", payload={})
    ((_, fields),) = await wire.call("XRANGE", "{test.tasks}", "-", "+")
    assert (sent.stream, decode(fields_of(fields)["m"]).to) == ("tasks", "broadcast")


async def test_messages_of_one_moment_travel_together_and_in_order(declared: Topology, wire: Client) -> None:
    async with declared.agent("planner") as planner:
        sent = await asyncio.gather(
            *(planner.send_message(to="coder", type="event", payload={"n": n}) for n in range(2_500))
        )
    entries = await wire.call("XRANGE", "{test.tasks}", "-", "+")
    assert [one.entry for one in sent] == [entry.decode() for entry, _ in entries]


async def test_a_lost_reply_never_doubles_a_message(proxy: Faults, declared: Topology, wire: Client) -> None:
    async with declared.agent("planner", url=proxy.url) as planner:
        for n in range(5):
            proxy.lose_reply(b"as1_add")
            sent = await planner.send_message(to="coder", type="event", payload={"n": n})
            assert proxy.lost == n + 1
            assert await wire.call("XLEN", "{test.tasks}") == n + 1
            assert await wire.call("XRANGE", "{test.tasks}", sent.entry, sent.entry)


async def test_a_server_that_is_away_delays_a_message(
    proxy: Faults, declared: Topology, wire: Client
) -> None:
    async with declared.agent("planner", url=proxy.url) as planner:
        proxy.refuse()
        sending = asyncio.create_task(planner.send_message(to="coder", type="event", payload={}))
        await asyncio.wait({sending}, timeout=0.1)
        assert not sending.done()
        proxy.accept()
        await sending
    assert await wire.call("XLEN", "{test.tasks}") == 1


async def test_a_server_that_stays_away_is_an_error_at_the_deadline(declared: Topology) -> None:
    async with declared.agent("planner", url="redis://127.0.0.1:1") as planner:
        with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:1"):
            await planner.send_message(to="coder", type="event", payload={}, timeout=0.2)


async def test_a_full_stream_is_an_error_at_the_deadline(declared: Topology, wire: Client) -> None:
    await wire.call("SET", "{test.tasks}:gate", 0)
    async with declared.agent("planner") as planner:
        with pytest.raises(Backpressure, match=r"as many unsettled entries .*agentstream lag"):
            await planner.send_message(to="coder", type="event", payload={}, timeout=0.2)
    assert await wire.call("XLEN", "{test.tasks}") == 0


async def test_a_sender_waits_for_a_full_stream_to_drain(declared: Topology, wire: Client) -> None:
    await wire.call("SET", "{test.tasks}:gate", 0)
    async with declared.agent("planner") as planner:
        sending = asyncio.create_task(planner.send_message(to="coder", type="event", payload={}))
        await asyncio.wait({sending}, timeout=0.1)
        assert not sending.done()
        await wire.call("SET", "{test.tasks}:gate", 5)
        await sending


async def test_a_sender_never_creates_a_stream(declared: Topology, wire: Client) -> None:
    await wire.call("DEL", "{test.tasks}")
    async with declared.agent("planner") as planner:
        with pytest.raises(StreamMissing):
            await planner.send_message(to="coder", type="event", payload={}, timeout=0.2)
        assert await wire.call("EXISTS", "{test.tasks}") == 0
        sending = asyncio.create_task(planner.send_message(to="coder", type="event", payload={}))
        await asyncio.wait({sending}, timeout=0.1)
        await declared.stream("tasks")
        await sending


async def test_a_sender_waits_for_a_route_that_is_still_to_be_declared(declared: Topology) -> None:
    async with declared.agent("planner") as planner:
        sending = asyncio.create_task(planner.send_message(to="tester", type="event", payload={}))
        await asyncio.wait({sending}, timeout=0.15)
        assert not sending.done()
        await declared.group("tasks", "tester")
        assert (await sending).stream == "tasks"


async def test_an_addressee_that_nobody_declares_is_an_error_that_says_what_is_declared(
    declared: Topology,
) -> None:
    async with declared.agent("planner") as planner:
        with pytest.raises(
            NoRoute, match="no group of nobody reads on what planner produces to: tasks, news"
        ):
            await planner.send_message(to="nobody", type="event", payload={}, timeout=0.2)


async def test_neither_addressee_nor_stream_is_an_error(declared: Topology) -> None:
    async with declared.agent("planner") as planner:
        with pytest.raises(NoRoute, match="to= or stream="):
            await planner.send_message(type="event", payload={})


async def test_what_does_not_fit_the_schema_is_not_sent(declared: Topology, wire: Client) -> None:
    async with declared.agent("planner") as planner:
        with pytest.raises(InvalidMessage, match="type"):
            await planner.send_message(to="coder", type="order", payload={})  # type: ignore[arg-type]
    assert await wire.call("XLEN", "{test.tasks}") == 0


async def test_refused_credentials_are_an_error_at_the_deadline_without_the_password(
    server: Server, declared: Topology
) -> None:
    url = server.url.replace("//", "//nobody:hidden@")
    async with declared.agent("planner", url=url) as planner:
        with pytest.raises(AccessDenied) as caught:
            await planner.send_message(to="coder", type="event", payload={}, timeout=0.2)
    assert "hidden" not in str(caught.value)


async def test_a_server_without_the_library_is_an_error_at_the_deadline(
    declared: Topology, wire: Client
) -> None:
    await wire.call("FUNCTION", "FLUSH")
    async with declared.agent("planner") as planner:
        with pytest.raises(ServerRefused, match="Function not found"):
            await planner.send_message(to="coder", type="event", payload={}, timeout=0.2)


async def test_a_server_without_memory_is_a_full_one(declared: Topology, wire: Client) -> None:
    await wire.call("CONFIG", "SET", "maxmemory", 1)
    async with declared.agent("planner") as planner:
        with pytest.raises(Backpressure):
            await planner.send_message(to="coder", type="event", payload={}, timeout=0.2)
    await wire.call("CONFIG", "SET", "maxmemory", 0)


async def test_after_a_reconnect_routes_are_read_again(proxy: Faults, declared: Topology) -> None:
    async with declared.agent("planner", url=proxy.url) as planner:
        assert (await planner.send_message(to="coder", type="event", payload={})).stream == "tasks"
        await declared.forget_route("coder")
        await declared.group("news", "coder")
        proxy.cut()

        async def goes_to_news() -> bool:
            return (await planner.send_message(to="coder", type="event", payload={})).stream == "news"

        await until(goes_to_news)


async def test_of_a_batch_those_are_added_that_fit(declared: Topology, wire: Client) -> None:
    await wire.call("SET", "{test.tasks}:gate", 3)
    async with declared.agent("planner") as planner:
        results = await asyncio.gather(
            *(
                planner.send_message(to="coder", type="event", payload={"n": n}, on_full="raise")
                for n in range(10)
            ),
            return_exceptions=True,
        )
    assert [isinstance(result, Backpressure) for result in results] == [False] * 3 + [True] * 7
    assert await numbers_on(wire) == [0, 1, 2]


async def test_those_that_were_refused_come_when_there_is_room(declared: Topology, wire: Client) -> None:
    await wire.call("SET", "{test.tasks}:gate", 3)
    async with declared.agent("planner") as planner:
        sending = [
            asyncio.create_task(planner.send_message(to="coder", type="event", payload={"n": n}))
            for n in range(10)
        ]
        await asyncio.gather(*sending[:3])
        assert not any(task.done() for task in sending[3:])
        await wire.call("SET", "{test.tasks}:gate", 10)
        await asyncio.gather(*sending)
    assert sorted(await numbers_on(wire)) == list(range(10))


async def test_full_is_an_error_at_once_where_that_is_wanted(declared: Topology, wire: Client) -> None:
    await wire.call("SET", "{test.tasks}:gate", 0)
    async with declared.agent("planner") as planner:
        with pytest.raises(Backpressure):
            await planner.send_message(to="coder", type="task_request", payload={}, on_full="raise")


async def test_events_may_be_shed_and_are_counted(declared: Topology, wire: Client) -> None:
    await wire.call("SET", "{test.tasks}:gate", 1)
    async with declared.agent("planner") as planner:
        sent = [
            await planner.send_message(to="coder", type="event", payload={}, on_full="shed") for _ in range(3)
        ]
        assert [(one.shed, bool(one.entry)) for one in sent] == [(False, True), (True, False), (True, False)]
        assert planner._counters.of(SHED, "tasks") == 2
        with pytest.raises(TypeError, match="on_ful"):
            await planner.send_message(to="coder", type="event", payload={}, on_ful="shed")
        with pytest.raises(TypeError, match="once="):
            await planner.request(to="coder", payload={}, once="one")
        with pytest.raises(InvalidMessage, match="only events may be shed"):
            await planner.send_message(to="coder", type="task_request", payload={}, on_full="shed")


async def test_a_stream_that_vanishes_refuses_the_rest_until_it_is_back(
    declared: Topology, wire: Client
) -> None:
    async with declared.agent("planner") as planner:

        async def sender(first: int) -> None:
            for n in range(first, 400, 8):
                await planner.send_message(to="coder", type="event", payload={"n": n})

        senders = [asyncio.create_task(sender(first)) for first in range(8)]
        await until(lambda: wire.call("XLEN", "{test.tasks}"))
        before = set(await numbers_on(wire))
        await wire.call("RENAME", "{test.tasks}", "{test.tasks}:aside")
        before |= set(await numbers_on(wire, "{test.tasks}:aside"))
        await declared.stream("tasks")
        await asyncio.gather(*senders)
    after = await numbers_on(wire)
    assert sorted([*before, *after]) == list(range(400))


async def test_a_message_that_expires_while_it_waits_is_not_sent(declared: Topology, wire: Client) -> None:
    await wire.call("SET", "{test.tasks}:gate", 0)
    async with declared.agent("planner") as planner:
        with pytest.raises(MessageExpired):
            await planner.send_message(
                to="coder", type="event", payload={}, expires_at=time.time() + 0.05, timeout=10
            )
    assert await wire.call("XLEN", "{test.tasks}") == 0


async def test_a_message_that_expires_behind_others_is_not_sent(
    proxy: Faults, declared: Topology, wire: Client
) -> None:
    async with declared.agent("planner", url=proxy.url) as planner:
        await planner.send_message(to="coder", type="event", payload={"n": 0})
        with proxy.hold():
            first = asyncio.create_task(planner.send_message(to="coder", type="event", payload={"n": 1}))
            await asyncio.sleep(0)
            expires_at = time.time() + 0.05
            second = asyncio.create_task(
                planner.send_message(to="coder", type="event", payload={"n": 2}, expires_at=expires_at)
            )
            await until(lambda: time.time() > expires_at)
        await first
        with pytest.raises(MessageExpired):
            await second
    assert await numbers_on(wire) == [0, 1]


async def test_a_key_of_ones_own_is_added_once_within_an_hour(declared: Topology, wire: Client) -> None:
    async with declared.agent("planner") as planner:

        async def send(once: str | None, stream: str = "tasks") -> SentMessage:
            return await planner.send_message(stream=stream, type="task_result", payload={}, once=once)

        first = await send("result-7")
        again = await asyncio.gather(*(send("result-7") for _ in range(3)))
        others = [await send("result-8"), await send(None), await send("result-7", stream="news")]
        twins = await asyncio.gather(send("result-9"), send("result-9"))
        with pytest.raises(InvalidMessage, match="once="):
            await send("")
    assert {one.entry for one in again} == {first.entry}
    assert len({(one.stream, one.entry) for one in (first, *others)}) == 4
    assert twins[0].entry == twins[1].entry
    assert await wire.call("XLEN", "{test.tasks}") == 4
    assert 3_500_000 < await wire.call("PTTL", "{test.tasks}:once:planner:broadcast:result-7") <= 3_600_000


async def test_a_key_of_ones_own_is_that_of_a_sender_and_an_addressee(
    declared: Topology, wire: Client
) -> None:
    await declared.stream("tasks", "tester")
    await declared.group("tasks", "reviewer")
    async with declared.agent("planner") as planner, declared.agent("tester") as tester:
        for _ in range(2):
            sent = [
                await sender.send_message(
                    to=to, stream="tasks", type="event", payload={"n": n}, once="result-7", **options
                )
                for sender in (planner, tester)
                for to in ("coder", "reviewer", None)
                for n, options in enumerate(({}, {"key": "k"}))
            ]
            assert len({one.entry for one in sent}) == 6
    assert await wire.call("XLEN", "{test.tasks}") == 6


async def test_each_entry_with_an_ordering_key_names_the_one_before_it(
    declared: Topology, wire: Client
) -> None:
    async with declared.agent("planner") as planner:
        sent = await planner.send_many(
            [
                OutgoingMessage(to="coder", type="event", payload={}, key=key)
                for key in ("a", "b", "a", None, "a")
            ]
        )
        last = await planner.send_message(to="coder", type="event", payload={}, key="b")
    entries = [fields_of(fields) for _, fields in await wire.call("XRANGE", "{test.tasks}", "-", "+")]
    before = [fields.get("p", b"").decode() for fields in entries]
    assert before == ["0-0", "0-0", sent[0].entry, "", sent[2].entry, sent[1].entry]
    assert [decode(fields["m"]).key for fields in entries] == ["a", "b", "a", None, "a", "b"]
    order = fields_of(await wire.call("HGETALL", "{test.tasks}:order"))
    assert order == {"a": sent[4].entry.encode(), "b": last.entry.encode()}


async def numbers_on(wire: Client, key: str = "{test.tasks}") -> list[int]:
    """The numbers of the messages on a stream."""
    entries = await wire.call("XRANGE", key, "-", "+")
    return [decode(fields_of(fields)["m"]).payload["n"] for _, fields in entries]


async def test_many_messages_take_few_round_trips_and_keep_their_order(
    declared: Topology, wire: Client
) -> None:
    async with declared.agent("planner") as planner:
        before = planner._write.round_trips
        sent = await planner.send_many(
            OutgoingMessage(to="coder", type="event", payload={"n": n}, schema_version=2)
            for n in range(1_000)
        )
        assert planner._write.round_trips - before < 8
        assert await planner.send_many([]) == []
    entries = await wire.call("XRANGE", "{test.tasks}", "-", "+")
    assert [one.entry for one in sent] == [entry.decode() for entry, _ in entries]
    messages = [decode(fields_of(fields)["m"]) for _, fields in entries]
    assert [message.payload["n"] for message in messages] == list(range(1_000))
    assert [message.id for message in messages] == [one.id for one in sent]
    assert {message.schema_version for message in messages} == {2}


async def test_of_many_messages_it_is_said_which_were_sent(declared: Topology, wire: Client) -> None:
    await wire.call("SET", "{test.tasks}:gate", 2)
    many = [
        OutgoingMessage(to="coder", type="event", payload={"n": 0}),
        OutgoingMessage(to="nobody", type="event", payload={"n": 1}),
        OutgoingMessage(to="coder", type="event", payload={"n": 2}),
        OutgoingMessage(to="coder", type="event", payload={"n": 3}),
        OutgoingMessage(to="coder", type="event", payload={"n": 4}, expires_at=1),
        OutgoingMessage(to="broadcast", type="event", payload={"n": 5}),
    ]
    async with declared.agent("planner") as planner:
        with pytest.raises(SendFailed, match="3 of 6 messages were not sent: no group of nobody") as caught:
            await planner.send_many(many, timeout=0.3)
    expected = [SentMessage, NoRoute, SentMessage, Backpressure, MessageExpired, SentMessage]
    assert [type(result) for result in caught.value.results] == expected
    assert await numbers_on(wire) == [0, 2]


async def test_many_messages_wait_for_room(declared: Topology, wire: Client) -> None:
    await wire.call("SET", "{test.tasks}:gate", 10)
    async with declared.agent("planner") as planner:
        sending = asyncio.create_task(
            planner.send_many(OutgoingMessage(to="coder", type="event", payload={"n": n}) for n in range(700))
        )
        await until(lambda: wire.call("XLEN", "{test.tasks}"))
        assert not sending.done()
        await wire.call("SET", "{test.tasks}:gate", 1_000)
        await sending
    assert sorted(await numbers_on(wire)) == list(range(700))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (OutgoingMessage(to="No Agent", type="event", payload={}), InvalidMessage),
        (OutgoingMessage(type="event", payload={}), NoRoute),
        (OutgoingMessage(to="coder", type="event", payload={}, once="x" * 513), InvalidMessage),
    ],
)
async def test_of_many_messages_none_is_sent_if_one_does_not_fit(
    declared: Topology, wire: Client, bad: OutgoingMessage, error: type[Exception]
) -> None:
    async with declared.agent("planner") as planner:
        with pytest.raises(error):
            await planner.send_many([OutgoingMessage(to="coder", type="event", payload={}), bad])
    assert await wire.call("XLEN", "{test.tasks}") == 0


async def test_whoever_is_cancelled_while_sending_many_sends_no_more(
    proxy: Faults, declared: Topology, wire: Client
) -> None:
    async with declared.agent("planner", url=proxy.url) as planner:
        await planner.send_message(to="coder", type="event", payload={"n": 0})
        with proxy.hold():
            sending = asyncio.create_task(
                planner.send_many(
                    OutgoingMessage(to="coder", type="event", payload={"n": n}) for n in range(1, 200)
                )
            )
            await until(lambda: planner._sender._batchers["{test.tasks}"]._in_flight)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        await planner.send_message(to="coder", type="event", payload={"n": 200})
    assert await numbers_on(wire) == [*range(65), 200]


def lookups(server: Server) -> int:
    """How often a route was read from the server."""
    with server.admin() as client:
        return client.info("commandstats").get("cmdstat_hget", {}).get("calls", 0)


async def test_a_thousand_who_send_at_once_look_a_route_up_once(server: Server, declared: Topology) -> None:
    async with declared.agent("planner") as planner:
        before = lookups(server)
        sent = await asyncio.gather(
            *(planner.send_message(to="coder", type="event", payload={"n": n}) for n in range(1000))
        )
        # that of the sender, and that of the addressee
        assert lookups(server) - before == 2
    assert [one.entry for one in sent] == sorted((one.entry for one in sent), key=_place)


async def test_who_is_cancelled_while_looking_up_takes_nobody_along(
    declared: Topology, proxy: Faults
) -> None:
    async with declared.agent("planner", url=proxy.url) as planner:
        with proxy.hold():
            sending = [asyncio.create_task(_send(planner, n)) for n in range(3)]
            await until(lambda: planner._directory._reads._calls)
            sending[0].cancel()
            await asyncio.wait({sending[0]})
        await asyncio.gather(*sending[1:])
        assert sending[0].cancelled()
    assert await declared.wire.call("XLEN", "{test.tasks}") == 2


async def test_all_who_look_up_are_told_that_the_server_cannot_be_reached(
    declared: Topology, proxy: Faults
) -> None:
    async with declared.agent("planner", url=proxy.url) as planner:
        with proxy.refuse():
            looked = await asyncio.gather(
                *(planner._directory.target("coder", None, 0) for _ in range(3)), return_exceptions=True
            )
        assert [type(error) for error in looked] == [ConnectionLost] * 3
        assert await planner._directory.target("coder", None, 0)


async def test_that_nothing_leads_there_is_never_said_from_what_was_known_before(declared: Topology) -> None:
    await declared.stream("results", "coder")
    async with declared.agent("coder") as coder:
        with pytest.raises(NoRoute):
            await coder._directory.target("planner", None, 0)
        # both routes are known now, and good for half a minute
        with pytest.raises(AgentStreamError):
            await coder._directory.target("planner", None, 0)
        await coder._directory._route("planner")
        await coder._directory._route("coder")
        await declared.group("results", "planner")
        assert (await coder._directory.target("planner", None, 0)).stream == "results"


async def _send(agent: Agent, n: int) -> None:
    await agent.send_message(to="coder", type="event", payload={"n": n})


def _place(entry: str) -> tuple[int, ...]:
    return tuple(map(int, entry.split("-")))
