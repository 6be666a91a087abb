"""Consumers that die, hang, come back too late, or are asked to end in the middle of their work."""

from __future__ import annotations

import itertools

import pytest

from agentstream.testing import AgentProcess, Sandbox, block_loop
from faults.drill import Drill, process
from support.waiting import until


async def test_processes_are_killed_with_messages_running_and_buffered(
    sandbox: Sandbox, drill: Drill
) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=0.5, max_deliveries=20)
    await drill.send(sandbox.agent("planner"), range(400), takes=0.01)
    running = [process(sandbox, drill) for _ in range(2)]
    for kills in range(1, 5):
        await until(lambda kills=kills: len(drill.ledger.records("done")) > 50 * kills)
        running.pop(0).kill()
        running.append(process(sandbox, drill))
    drill.healed()
    # a handler may be done, and its acknowledgement not on its way: what eight handlers had in hand
    await drill.over("4 consumers killed (-9), with other pods taking over", twice=4 * 8)


async def test_the_process_of_a_pod_is_started_again(sandbox: Sandbox, drill: Drill) -> None:
    # nothing waits for a lease: the next process knows what the last one held
    await sandbox.declare_group("tasks", agent="coder", lease=600, max_deliveries=20)
    await drill.send(sandbox.agent("planner"), range(200), takes=0.01)
    for kills in range(1, 4):
        worker = process(sandbox, drill, pod="coder-0")
        await until(lambda kills=kills: len(drill.ledger.records("done")) > 40 * kills)
        worker.kill()
    process(sandbox, drill, pod="coder-0")
    drill.healed()
    await drill.over("the one consumer killed (-9) 3 times, same pod", twice=3 * 8)


async def test_one_that_was_stopped_comes_back_after_its_messages_were_claimed(
    sandbox: Sandbox, drill: Drill
) -> None:
    planner = sandbox.agent("planner")
    stopped = process(sandbox, drill, 4, 16)
    await drill.send(planner, range(40), takes=0.3)
    await until(lambda: len(drill.ledger.records("began")) == 4)
    stopped.pause()
    drill.consume(sandbox.agent("coder"))
    await until(drill.settled, timeout=20)
    # what it comes back with was handled by others: it is told so
    stopped.resume()
    drill.healed()
    await until(lambda: len(drill.ledger.records("refused")) == 4)
    await drill.send(planner, range(40, 50))
    await drill.over("consumer stopped (SIGSTOP) past its lease, and resumed", twice=4)
    refused = drill.ledger.records("refused")
    assert {record.who for record in refused} == {f"p{stopped.pid}"}
    assert {record.fence for record in refused} == {1}


async def test_an_event_loop_is_blocked_for_three_leases(sandbox: Sandbox, drill: Drill) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=0.5)
    # all that is sent is read at once by the one that is about to be blocked
    coder = drill.consume(sandbox.agent("coder"), handlers=4, concurrency=64)
    await drill.send(sandbox.agent("planner"), range(24), takes=0.2)
    await until(lambda: len(drill.ledger.records("began")) == 4)
    assert (await drill.seen()).pending == 24
    # another consumer looks for what nobody renews
    other = process(sandbox, drill)
    await other.printed("ready")
    block_loop(1.5)
    drill.healed()
    await drill.over("event loop blocked for 3 leases")
    assert {record.who for record in drill.ledger.records("acked")} == {coder._consumer.identity.name}
    assert not drill.ledger.records("refused")


@pytest.mark.parametrize("max_deliveries", [1, 2, 3])
async def test_a_message_that_kills_its_process_harms_no_other(
    sandbox: Sandbox, drill: Drill, max_deliveries: int
) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=600, max_deliveries=max_deliveries)
    # where one is allowed, what ended beside others has another one, alone
    kills = max(max_deliveries, 2)
    planner = sandbox.agent("planner")
    await drill.send(planner, range(20))
    await drill.send(planner, [20], kills=True)
    await drill.send(planner, range(21, 40))
    for attempt in itertools.count(1):
        worker = process(sandbox, drill, pod="coder-0")
        await until(lambda worker=worker: _ended_or_settled(worker, drill), timeout=20)
        if worker.returncode is None:
            break
        assert attempt <= kills
        drill.healed()
    await drill.over(f"a message that kills its process, maxDeliveries {max_deliveries}", twice=8 * kills)
    (letter,) = await sandbox.dead_letters("tasks", group="coder")
    assert (letter.message.payload["n"], letter.reason, letter.attempts) == (20, "MaxDeliveries", kills)
    assert {record.number for record in drill.ledger.records("done")} == {*range(40)} - {20}


async def test_ten_thousand_messages_of_a_dead_process_are_handled(sandbox: Sandbox, drill: Drill) -> None:
    planner = sandbox.agent("planner")
    for start in range(0, 10_000, 2_500):
        await drill.send(planner, range(start, start + 2_500))
    read = ("GROUP", "coder", "gone.1", "COUNT", 10_000, "STREAMS", drill.key, ">")
    await drill.wire.call("XREADGROUP", *read)
    assert (await drill.seen()).pending == 10_000
    drill.healed()
    drill.consume(sandbox.agent("coder"), handlers=32, concurrency=500)
    outcome = await drill.over("10,000 pending entries of a dead consumer")
    assert outcome.messages == 10_000


async def test_all_are_asked_to_end_in_mid_batch_again_and_again(sandbox: Sandbox, drill: Drill) -> None:
    # nothing may wait for a lease: what is not finished is handed back
    await sandbox.declare_group("tasks", agent="coder", lease=600, max_deliveries=20)
    await drill.send(sandbox.agent("planner"), range(300), takes=0.02)
    for ends in range(1, 3):
        workers = [process(sandbox, drill) for _ in range(2)]
        await until(lambda ends=ends: len(drill.ledger.records("done")) > 50 * ends)
        for worker in workers:
            await worker.printed("ready")
            worker.terminate()
        assert [await worker.ended() for worker in workers] == [0, 0]
    drill.healed()
    process(sandbox, drill)
    await drill.over("consumers asked to end (SIGTERM) in mid-batch, 4 times")
    assert not drill.ledger.records("refused")


async def _ended_or_settled(worker: AgentProcess, drill: Drill) -> bool:
    return worker.returncode is not None or await drill.settled()
