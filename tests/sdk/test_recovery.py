"""What went wrong is made good: lost replies, dead processes, absent servers, groups that were gone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream.testing import Faults
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from support.servers import Server
from support.topology import NAMESPACE, Topology, ended, following, numbers, send
from support.waiting import until


def dies_with(topology: Topology, pod: str, script: str) -> None:
    """Runs an agent in a process of its own that ends as by SIGKILL."""
    program = f"""
import asyncio, os, signal
from agentstream import Agent
async def main():
    async with Agent.from_env() as agent:
        deliveries = agent.stream_consume("tasks", concurrency=16)
        {script}
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    environ = {
        **os.environ,
        "AGENTSTREAM_URL": topology.url,
        "AGENTSTREAM_NAMESPACE": NAMESPACE,
        "AGENTSTREAM_AGENT": "coder",
        "AGENTSTREAM_POD": pod,
    }
    ended = subprocess.run([sys.executable, "-c", program], env=environ, check=False, timeout=30)
    assert ended.returncode == -9


async def test_a_read_whose_reply_is_lost_strands_nothing(topology: Topology, proxy: Faults) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, *range(20))
    proxy.lose_reply(b"XREADGROUP")
    async with topology.agent("coder", url=proxy.url) as coder:
        assert await numbers(coder.stream_consume("tasks"), 20) == list(range(20))
    assert proxy.lost == 1
    assert await topology.settled(group, 20)


@pytest.mark.parametrize("verb", ["ack", "retry", "dead_letter", "release"])
async def test_a_settling_whose_reply_is_lost_is_done_once(
    topology: Topology, proxy: Faults, verb: str
) -> None:
    group = await topology.group("tasks", "coder", lease=5_000)
    await send(topology, 1)
    function = {"ack": b"as1_settle"}.get(verb, f"as1_{verb}".encode())
    arguments = ("reason",) if verb == "dead_letter" else (30,) if verb == "retry" else ()
    async with topology.agent("coder", url=proxy.url) as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        proxy.lose_reply(function)
        assert await getattr(delivery, verb)(*arguments)
        assert proxy.lost == 1
    stats = await topology.stats(group)
    assert len(await topology.dead_letters(group)) == (verb == "dead_letter")
    delayed = await topology.wire.call("ZCARD", StreamKeys(group.key).delay("coder"))
    passed_on = await topology.wire.call("XLEN", StreamKeys(group.key).retry("coder"))
    assert (delayed, passed_on, stats["settled"]) == (int(verb == "retry"), int(verb == "release"), 1)


async def test_a_sweep_whose_reply_is_lost_strands_nothing(
    topology: Topology, proxy: Faults, wire: Client
) -> None:
    group = await topology.group("tasks", "coder", lease=200)
    await send(topology, 1)
    await wire.call("XREADGROUP", "GROUP", "coder", "gone.1", "STREAMS", group.key, ">")
    await until(lambda: _idle(topology, group, 200))
    proxy.lose_reply(b"as1_sweep")
    async with topology.agent("coder", url=proxy.url) as coder:
        assert await numbers(coder.stream_consume("tasks"), 1) == [1]
    assert proxy.lost == 1
    assert await topology.settled(group, 1)


async def test_a_start_whose_reply_is_lost_is_repeated(
    topology: Topology, proxy: Faults, wire: Client
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, 1)
    await wire.call("XREADGROUP", "GROUP", "coder", ended("coder-pod"), "STREAMS", group.key, ">")
    proxy.lose_reply(b"as1_begin")
    async with topology.agent("coder", url=proxy.url) as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        assert delivery.attempt == 3
        assert await delivery.ack()
    assert proxy.lost == 1
    assert await topology.settled(group, 1)


async def _idle(topology: Topology, group: Consumes, at_least: int) -> bool:
    return all(idle >= at_least for _, _, idle, _ in await topology.pending(group))


async def test_a_new_process_of_a_pod_first_takes_what_the_last_one_left(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, *range(5))
    dies_with(topology, "coder-7", "await anext(deliveries)")
    assert {counter for *_, counter in await topology.pending(group)} == {1}
    await send(topology, 5)
    async with topology.agent("coder", pod="coder-7") as coder:
        async with coder.stream_consume("tasks") as deliveries:
            seen = []
            for _ in range(6):
                delivery = await following(deliveries)
                seen.append((delivery.message.payload["n"], delivery.attempt))
                await delivery.ack()
    assert seen == [*((n, 2) for n in range(5)), (5, 1)]
    assert await topology.settled(group, 6)


async def test_what_a_dead_process_of_another_pod_held_is_claimed_when_its_lease_is_over(
    topology: Topology,
) -> None:
    group = await topology.group("tasks", "coder", lease=500)
    await send(topology, *range(5))
    dies_with(topology, "coder-7", "await anext(deliveries)")
    async with topology.agent("coder", pod="coder-70") as coder:
        assert sorted(await numbers(coder.stream_consume("tasks"), 5)) == list(range(5))
    assert await topology.settled(group, 5)


async def test_more_than_fits_is_taken_up_page_by_page(topology: Topology, wire: Client) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, *range(1_000))
    for name in (ended("coder-pod", 1), ended("coder-pod", 2)):
        await wire.call("XREADGROUP", "GROUP", "coder", name, "COUNT", 500, "STREAMS", group.key, ">")
    async with topology.agent("coder") as coder:
        seen = await numbers(coder.stream_consume("tasks", concurrency=7), 1_000)
    assert sorted(seen) == list(range(1_000))
    assert await topology.settled(group, 1_000)


async def test_what_is_renewed_is_not_claimed_by_others(topology: Topology) -> None:
    group = await topology.group("tasks", "coder", lease=300)
    await send(topology, *range(4))
    async with topology.agent("coder", pod="a") as first, first.stream_consume("tasks") as deliveries:
        held = [await following(deliveries)]
        async with topology.agent("coder", pod="b") as second, second.stream_consume("tasks") as others:
            asking = asyncio.create_task(following(others))
            # more than two sweeps and ten leases
            await asyncio.wait({asking}, timeout=5.5)
            assert not asking.done()
            asking.cancel()
        held += [await following(deliveries) for _ in range(3)]
        assert [await delivery.ack() for delivery in held] == [True] * 4
    assert await topology.settled(group, 4)


async def test_a_handler_whose_lease_was_lost_is_told_and_cannot_settle(
    topology: Topology, wire: Client, caplog: pytest.LogCaptureFixture
) -> None:
    group = await topology.group("tasks", "coder", lease=600)
    await send(topology, 1, 2)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        delivery = await following(deliveries)
        entries = [entry for entry, *_ in await topology.pending(group)]
        # as if another consumer had claimed both, the one that runs and the one that waits
        await wire.call("XCLAIM", group.key, "coder", "other.1", 0, *entries, "JUSTID")
        await until(lambda: not delivery.held)
        assert not await delivery.ack()
    assert {name for _, name, *_ in await topology.pending(group)} == {"other.1"}
    assert any("lost the lease of entry" in record.message for record in caplog.records)


async def test_a_message_that_kills_its_process_ends_as_a_dead_letter_and_its_neighbours_do_not(
    topology: Topology,
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000, max_deliveries=3)
    await send(topology, 0, *range(1, 6))
    poison = (
        "async for d in deliveries:\n"
        "            if d.message.payload['n'] == 0: break\n"
        "            await d.ack()"
    )
    for _ in range(3):
        dies_with(topology, "coder-7", poison)
    async with topology.agent("coder", pod="coder-7") as coder:
        seen = await numbers(coder.stream_consume("tasks"), len(await topology.pending(group)) - 1)
        await until(lambda: topology.settled(group, 6))
    assert 0 not in seen
    (record,) = await topology.dead_letters(group)
    assert (record["reason"], record["attempts"]) == (b"MaxDeliveries", b"3")


async def test_a_broken_connection_loses_and_doubles_nothing(topology: Topology, proxy: Faults) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    seen: list[int] = []
    async with topology.agent("coder", url=proxy.url) as coder, coder.stream_consume("tasks") as deliveries:
        for n in range(10):
            await send(topology, n)
            seen += await numbers(deliveries, 1)
            proxy.cut()
        await until(lambda: topology.settled(group, 10))
    assert seen == list(range(10))


async def test_a_server_that_is_away_is_logged_once_and_waited_for(
    topology: Topology, proxy: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    await topology.group("tasks", "coder")
    proxy.refuse()
    async with topology.agent("coder", url=proxy.url) as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(following(deliveries))
        await until(lambda: caplog.records)
        proxy.accept()
        await send(topology, 1)
        await (await asking).ack()
        proxy.refuse()
        asking = asyncio.create_task(following(deliveries))
        await until(lambda: any("cannot read" in record.message for record in caplog.records))
        await asyncio.wait({asking}, timeout=0.5)
        proxy.accept()
        await send(topology, 2)
        await (await asking).ack()
    reading = [record.message for record in caplog.records if "read {test.tasks}" in record.message]
    assert len(reading) == 2
    assert reading[1] == "can read {test.tasks} again"


async def test_a_group_that_comes_back_at_its_checkpoint_is_consumed_on(
    topology: Topology, wire: Client, caplog: pytest.LogCaptureFixture
) -> None:
    group = await topology.group("tasks", "coder", lease=60_000)
    await send(topology, 1, 2)
    base = StreamKeys(group.key).base
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        first = await following(deliveries)
        checkpoint = first.entry
        await first.ack()
        second = await following(deliveries)
        await wire.call("XGROUP", "DESTROY", group.key, "coder")
        await until(lambda: any("NOGROUP" in record.message for record in caplog.records))
        assert not second.held
        assert not await second.ack()
        await send(topology, 3)
        await wire.call("FCALL", "as1_create_group", 1, group.key, base, "coder", checkpoint)
        assert await numbers(deliveries, 2) == [2, 3]


async def test_a_stream_that_was_wiped_is_consumed_on_when_it_comes_back(
    topology: Topology, wire: Client
) -> None:
    group = await topology.group("tasks", "coder")
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        assert await numbers(deliveries, 1) == [1]
        asking = asyncio.create_task(numbers(deliveries, 1))
        await wire.call("FLUSHALL")
        await topology.stream("tasks")
        await wire.call("FCALL", "as1_create_group", 1, group.key, StreamKeys(group.key).base, "coder", "0")
        await topology.write_routes()
        await send(topology, 2)
        assert await asking == [2]


async def test_a_key_of_another_type_is_waited_out_without_haste(
    topology: Topology, wire: Client, caplog: pytest.LogCaptureFixture
) -> None:
    group = await topology.group("tasks", "coder")
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        asking = asyncio.create_task(following(deliveries))
        await until(lambda: deliveries._consumption._dispatcher is not None)
        await wire.call("DEL", group.key)
        await wire.call("SET", group.key, "x")
        await until(lambda: any("WRONGTYPE" in record.message for record in caplog.records))
        before = await _commands(wire)
        await asyncio.wait({asking}, timeout=1)
        assert await _commands(wire) - before < 60
        await wire.call("DEL", group.key)
        await topology.stream("tasks")
        await wire.call("FCALL", "as1_create_group", 1, group.key, StreamKeys(group.key).base, "coder", "0")
        await send(topology, 1)
        await (await asking).ack()


async def _commands(wire: Client) -> int:
    info = (await wire.call("INFO", "stats")).decode()
    return int(info.partition("total_commands_processed:")[2].partition("\r")[0])


async def test_rights_that_come_back_are_used_again(
    server: Server, topology: Topology, wire: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await topology.group("tasks", "coder")
    await wire.call("ACL", "SETUSER", "agent", "on", ">secret", "~*", "+@all")
    url = server.url.replace("//", "//agent:secret@")
    async with topology.agent("coder", url=url) as coder, coder.stream_consume("tasks") as deliveries:
        await send(topology, 1)
        assert await numbers(deliveries, 1) == [1]
        asking = asyncio.create_task(numbers(deliveries, 1))
        await wire.call("ACL", "SETUSER", "agent", "-xreadgroup")
        await send(topology, 2)
        await until(lambda: any("no permissions" in record.message for record in caplog.records))
        await wire.call("ACL", "SETUSER", "agent", "+xreadgroup")
        assert await asking == [2]


async def test_a_server_that_is_killed_and_comes_back_loses_nothing(private_server: Server) -> None:
    wire = Client(lambda: Endpoint(private_server.url), name="test")
    topology = Topology(wire, private_server.url)
    await topology.stream("tasks", "planner")
    group = await topology.group("tasks", "coder", lease=2_000)
    seen: list[int] = []
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:

        async def handle() -> None:
            async for delivery in coder.stream_consume("tasks"):
                async with delivery:
                    seen.append(delivery.message.payload["n"])

        handling = asyncio.create_task(handle())
        for batch in range(4):
            numbers_of_batch = range(batch * 500, batch * 500 + 500)
            sending = asyncio.gather(
                *(planner.send_message(to="coder", type="event", payload={"n": n}) for n in numbers_of_batch)
            )
            if batch in {1, 2}:
                await asyncio.sleep(0)
                await asyncio.to_thread(private_server.restart)
            await sending
        await until(lambda: len(set(seen)) == 2_000, timeout=20)
        coder.stop()
        await handling
    assert set(seen) == set(range(2_000))
    with private_server.admin() as client:
        assert client.xlen(group.key) == 2_000
        assert client.xpending(group.key, "coder")["pending"] == 0
        assert client.exists(StreamKeys(group.key).dead_letters("coder")) == 0
    await wire.close()


async def test_a_credential_that_was_rotated_is_read_at_the_next_connect(
    server: Server, topology: Topology, wire: Client, tmp_path: Path
) -> None:
    from agentstream.agent import Agent  # noqa: PLC0415

    await topology.group("tasks", "coder")
    for name, value in {
        "uri": server.url,
        "username": "agent",
        "password": "old",
        "namespace": NAMESPACE,
    }.items():
        (tmp_path / name).write_text(value)
    (tmp_path / "agent").write_text("coder")
    await wire.call("ACL", "SETUSER", "agent", "on", ">old", "~*", "+@all")
    async with Agent.from_env({"AGENTSTREAM_BINDING": str(tmp_path)}) as coder:
        async with coder.stream_consume("tasks") as deliveries:
            await send(topology, 1)
            assert await numbers(deliveries, 1) == [1]
            (tmp_path / "password").write_text("new")
            await wire.call("ACL", "SETUSER", "agent", "resetpass", ">new")
            await wire.call("CLIENT", "KILL", "USER", "agent")
            await send(topology, 2)
            assert await numbers(deliveries, 1) == [2]
            (tmp_path / "uri").unlink()
            await wire.call("CLIENT", "KILL", "USER", "agent")
            asking = asyncio.create_task(numbers(deliveries, 1))
            await asyncio.wait({asking}, timeout=0.3)
            (tmp_path / "uri").write_text(server.url)
            await send(topology, 3)
            assert await asking == [3]
