"""Commands and replies that are lost on the way: everything is done once, whichever of them it hits."""

from __future__ import annotations

import asyncio

import pytest

from agentstream.testing import Sandbox
from faults.drill import Drill
from support.topology import following
from support.waiting import until

COUNT = 40


@pytest.mark.parametrize("fault", ["lose_reply", "lose_command"])
@pytest.mark.parametrize("command", ["as1_add", "XREADGROUP", "as1_settle", "as1_sweep"])
async def test_a_command_of_ordinary_traffic_is_lost_twice(
    sandbox: Sandbox, drill: Drill, command: str, fault: str
) -> None:
    drill.consume(sandbox.agent("coder"))
    planner = sandbox.agent("planner")
    for lost in (1, 2):
        # one by one: with a connection that breaks, all others go that are under way on it
        getattr(sandbox.faults, fault)(command)
        await drill.send(planner, range(lost * 20, lost * 20 + 20), takes=0.05)
        await until(lambda lost=lost: sandbox.faults.lost == lost)
    drill.healed()
    outcome = await drill.over(f"{fault} twice: {command}")
    assert outcome.messages == COUNT


@pytest.mark.parametrize("fault", ["lose_reply", "lose_command"])
async def test_the_renewal_of_leases_is_lost_three_times(sandbox: Sandbox, drill: Drill, fault: str) -> None:
    await drill.send(sandbox.agent("planner"), range(COUNT), takes=0.5)
    getattr(sandbox.faults, fault)("as1_renew", times=3)
    drill.consume(sandbox.agent("coder"), handlers=20)
    await until(lambda: sandbox.faults.lost == 3)
    drill.healed()
    await drill.over(f"{fault} three times: as1_renew")


@pytest.mark.parametrize("fault", ["lose_reply", "lose_command"])
@pytest.mark.parametrize("count", [1, 10])
async def test_one_call_makes_one_entry(sandbox: Sandbox, drill: Drill, count: int, fault: str) -> None:
    getattr(sandbox.faults, fault)("as1_add", times=3)
    await drill.send(sandbox.agent("planner"), range(count))
    assert sandbox.faults.lost == 3
    assert len(await sandbox.messages("tasks")) == len(drill.accepted) == count
    drill.healed()
    drill.consume(sandbox.agent("coder"))
    await drill.over(f"{fault} three times: {count} sent at once")


@pytest.mark.parametrize("fault", ["lose_reply", "lose_command"])
async def test_a_retry_is_lost_three_times(sandbox: Sandbox, drill: Drill, fault: str) -> None:
    await drill.send(sandbox.agent("planner"), range(COUNT), fails=1)
    getattr(sandbox.faults, fault)("as1_retry", times=3)
    drill.consume(sandbox.agent("coder"), handlers=1)
    await until(lambda: sandbox.faults.lost == 3)
    drill.healed()
    await drill.over(f"{fault} three times: as1_retry")
    assert {record.attempt for record in drill.ledger.records("done")} == {2}


@pytest.mark.parametrize("fault", ["lose_reply", "lose_command"])
async def test_a_dead_letter_is_lost_three_times(sandbox: Sandbox, drill: Drill, fault: str) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=1.0, max_deliveries=2)
    await drill.send(sandbox.agent("planner"), range(COUNT), fails=9)
    getattr(sandbox.faults, fault)("as1_dead_letter", times=3)
    drill.consume(sandbox.agent("coder"), handlers=1)
    await until(lambda: sandbox.faults.lost == 3)
    drill.healed()
    await drill.over(f"{fault} three times: as1_dead_letter")
    letters = await sandbox.dead_letters("tasks", group="coder")
    assert [letter.reason for letter in letters] == ["MaxDeliveries"] * COUNT


@pytest.mark.parametrize("fault", ["lose_reply", "lose_command"])
@pytest.mark.parametrize("command", ["as1_begin", "as1_take"])
async def test_the_start_of_what_a_dead_process_left_is_lost_three_times(
    sandbox: Sandbox, drill: Drill, command: str, fault: str
) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=1.0, max_deliveries=9)
    await drill.send(sandbox.agent("planner"), range(COUNT))
    gone = sandbox.agent("coder", pod="coder-x")
    await following(gone.stream_consume("tasks"))
    await sandbox.kill(gone)
    getattr(sandbox.faults, fault)(command, times=3)
    drill.consume(sandbox.agent("coder", pod="coder-x"), handlers=1)
    await until(lambda: sandbox.faults.lost == 3)
    drill.healed()
    await drill.over(f"{fault} three times: {command} after a crash")


@pytest.mark.parametrize("fault", ["lose_reply", "lose_command"])
async def test_handing_back_is_lost_once(sandbox: Sandbox, drill: Drill, fault: str) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=60)
    await drill.send(sandbox.agent("planner"), range(COUNT))
    getattr(sandbox.faults, fault)("as1_release")
    first = sandbox.agent("coder")
    async with first.stream_consume("tasks") as deliveries:
        await following(deliveries)
    assert sandbox.faults.lost == 1
    drill.healed()
    drill.consume(sandbox.agent("coder"))
    # or it would have to wait until a lease is over
    await drill.over(f"{fault}: as1_release")


async def test_connections_are_cut_again_and_again(sandbox: Sandbox, drill: Drill) -> None:
    drill.consume(sandbox.agent("coder"))
    planner = sandbox.agent("planner")
    for round_ in range(20):
        sending = asyncio.create_task(drill.send(planner, range(round_ * 20, round_ * 20 + 20)))
        await asyncio.sleep(0)
        sandbox.faults.cut()
        await sending
    drill.healed()
    # an acknowledgement under way is repeated; only one that is late by a lease is not
    await drill.over("connections cut 20 times under traffic")
