"""The sandbox for threads: the same, without an event loop."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterator

import pytest

from agentstream import AgentStreamError, Reject
from agentstream.sync import Agent
from agentstream.testing import Sandbox, SandboxError, SyncSandbox
from support.servers import Build, builds


@pytest.fixture(params=builds(), ids=lambda build: build.name)
def sandbox(request: pytest.FixtureRequest) -> Iterator[SyncSandbox]:
    """`planner` produces to `tasks`, which `coder` consumes."""
    build: Build = request.param
    with SyncSandbox(binary=build.binary) as running:
        running.declare_stream("tasks", producers=["planner"])
        running.declare_group("tasks", agent="coder", lease=1.0, max_deliveries=3)
        yield running


def working(agent: Agent, handled: list[int]) -> threading.Thread:
    """A thread that handles what comes, until the agent stops."""

    def work() -> None:
        for delivery in agent.stream_consume("tasks"):
            with delivery:
                if delivery.payload["n"] < 0:
                    raise Reject("Negative")
                handled.append(delivery.payload["n"])

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_handler_in_a_thread_is_tested_in_a_few_lines(sandbox: SyncSandbox) -> None:
    planner, coder, handled = sandbox.agent("planner"), sandbox.agent("coder"), []
    thread = working(coder, handled)
    for n in (1, -1, 2):
        planner.send_message(to="coder", type="event", payload={"n": n})
    sandbox.settled("tasks")
    coder.stop()
    thread.join()
    assert handled == [1, 2]
    assert [message.payload["n"] for message in sandbox.messages("tasks", at_least=3)] == [1, -1, 2]
    (letter,) = sandbox.dead_letters("tasks", group="coder")
    assert (letter.reason, letter.attempts) == ("Negative", 1)


def test_faults_are_the_same(sandbox: SyncSandbox) -> None:
    planner = sandbox.agent("planner", through=sandbox.more_faults())
    other = sandbox.agent("planner")
    sandbox.faults.lose_reply("as1_add", times=3)
    other.send_message(to="coder", type="event", payload={"n": 1})
    assert sandbox.faults.lost == 3
    sandbox.server.kill()
    sandbox.server.start()
    planner.send_message(to="coder", type="event", payload={"n": 2})
    assert [message.payload["n"] for message in sandbox.messages("tasks")] == [1, 2]


def test_an_agent_that_is_killed_hands_nothing_back(sandbox: SyncSandbox) -> None:
    planner, first = sandbox.agent("planner"), sandbox.agent("coder", pod="coder-0")
    planner.send_message(to="coder", type="event", payload={"n": 1})
    deliveries = first.stream_consume("tasks")
    delivery = next(deliveries)
    sandbox.kill(first)
    assert not delivery.held
    assert next(deliveries, None) is None
    with pytest.raises(AgentStreamError):
        first.notify("planner", {})
    again = next(sandbox.agent("coder", pod="coder-0").stream_consume("tasks"))
    assert (again.payload, again.attempt) == ({"n": 1}, 2)
    assert again.ack()


def test_the_iteration_of_an_agent_that_is_killed_ends(sandbox: SyncSandbox) -> None:
    coder = sandbox.agent("coder")
    thread = working(coder, [])
    deadline = time.monotonic() + 10
    while not coder._original._consumptions and time.monotonic() < deadline:
        time.sleep(0.005)
    sandbox.kill(coder)
    thread.join(10)
    assert not thread.is_alive()


def test_agents_are_made_from_the_environment(sandbox: SyncSandbox) -> None:
    with Agent.from_env(sandbox.environ("planner")) as planner:
        planner.send_message(to="coder", type="event", payload={"n": 1})
    assert len(sandbox.messages("tasks")) == 1


def test_it_says_what_is_wrong(sandbox: SyncSandbox) -> None:
    with pytest.raises(LookupError, match="no stream orders is declared here"):
        sandbox.messages("orders")
    with pytest.raises(TimeoutError, match="tasks has 0 messages"):
        sandbox.messages("tasks", at_least=1, timeout=0.01)
    with pytest.raises(AgentStreamError, match="the sandbox is entered once"):
        sandbox.__enter__()
    with pytest.raises(AgentStreamError, match="enter the sandbox first"):
        SyncSandbox().settled("tasks")


def test_a_server_that_does_not_start_leaves_no_thread(tmp_path: str) -> None:
    before = threading.active_count()
    with pytest.raises(SandboxError), SyncSandbox(binary="/bin/false"):
        pass
    assert threading.active_count() == before


def test_it_has_what_the_other_one_has() -> None:
    names = {name for name in dir(Sandbox) if not name.startswith("_")} - {"settings"}
    assert names | {"faults", "server"} == {name for name in dir(SyncSandbox) if not name.startswith("_")}
    for name in names - {"faults", "server"}:
        original, mirror = (
            inspect.signature(getattr(Sandbox, name)),
            inspect.signature(getattr(SyncSandbox, name)),
        )
        assert original.parameters == mirror.parameters, name
