"""The programs of `examples/programs` lose nothing, whatever becomes of their processes.

What is handled twice is what a killed process had in hand; a process that is asked to end, and a deploy,
repeat nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agentstream.testing import AgentProcess, Sandbox
from support.programs import PROGRAMS, Deployed, kill_a_worker

COUNT = 40
HOOKS = ("--config", str(PROGRAMS / "gunicorn.conf.py"), "--no-control-socket")
SLEEPS = "import time; time.sleep(0.02)"


class Program(NamedTuple):
    """How to start a program, and the payload of message `n` for it."""

    agent: str
    command: tuple[str, ...]
    payload: Callable[[int], dict[str, Any]]
    workers: int = 1
    in_hand: int = 8
    """How many messages of one process are begun at the same time, at most."""
    variant: str = ""

    def __str__(self) -> str:
        return self.agent + self.variant


def slow(n: int) -> dict[str, Any]:
    return {"n": n, "takes": 0.02}


ALL = [
    Program("threads", ("threads.py",), slow),
    Program("subprocesses", ("subprocesses.py",), lambda n: {"n": n, "program": SLEEPS}, in_hand=4),
    Program("effects", ("effects.py", "LEDGER"), lambda n: {"n": n, "amount": n}),
    Program(
        "fanout",
        ("fanout.py",),
        lambda n: {"n": n, "documents": ["a", "b", "c"], "enough": 2},
        in_hand=4,
    ),
    Program("web", ("uvicorn", "web:app", "--workers", "2", "--port", "PORT"), slow, workers=2),
    Program(
        "prefork",
        ("gunicorn", "prefork:app", "--preload", "--workers", "2", "--bind", "127.0.0.1:PORT", *HOOKS),
        slow,
        workers=2,
    ),
    Program(
        "prefork",
        ("gunicorn", "prefork:app", "-k", "gevent", "--workers", "2", "--bind", "127.0.0.1:PORT", *HOOKS),
        slow,
        workers=2,
        variant="-gevent",
    ),
]


@pytest.fixture(params=ALL, ids=str)
def program(request: pytest.FixtureRequest) -> Program:
    return request.param


@pytest.fixture
async def deployed(sandbox: Sandbox, program: Program, tmp_path: Path) -> Deployed:
    await sandbox.declare_group("tasks", agent=program.agent, lease=2.0, max_deliveries=5)
    if program.agent == "fanout":
        await sandbox.declare_stream("documents", producers=["fanout"])
        await sandbox.declare_group("documents", agent="threads", lease=2.0)
        await Deployed(sandbox, "threads", ("threads.py",)).start("threads-0")
    command = tuple(str(tmp_path / "ledger.db") if one == "LEDGER" else one for one in program.command)
    return Deployed(sandbox, program.agent, command)


async def send(sandbox: Sandbox, program: Program, numbers: Iterable[int]) -> None:
    planner = sandbox.agent("planner")
    for n in numbers:
        await planner.send_message(to=program.agent, type="event", payload=program.payload(n))


async def doubles(sandbox: Sandbox, program: Program, deployed: Deployed) -> set[int]:
    """Waits until everything is settled. Returns what was begun more than once; nothing may be lost."""
    await sandbox.settled("tasks", timeout=60)
    assert set(deployed.handled()) == set(range(COUNT))
    assert await sandbox.dead_letters("tasks", group=program.agent) == []
    return {n for n, times in deployed.began().items() if times > 1}


async def test_a_killed_process_repeats_at_most_what_it_had_in_hand(
    sandbox: Sandbox, program: Program, deployed: Deployed
) -> None:
    first = await deployed.start("pod-0", workers=program.workers)
    await send(sandbox, program, range(COUNT))
    await deployed.has_handled(5)
    if program.workers > 1:
        kill_a_worker(first)  # the parent starts another one
    else:
        first.kill()
        await deployed.start("pod-0")
    assert len(await doubles(sandbox, program, deployed)) <= program.in_hand


async def test_a_process_that_is_asked_to_end_repeats_nothing(
    sandbox: Sandbox, program: Program, deployed: Deployed
) -> None:
    first = await deployed.start("pod-0", workers=program.workers)
    await send(sandbox, program, range(COUNT))
    await deployed.has_handled(5)
    await ended(first)
    await deployed.start("pod-1", workers=program.workers)
    assert await doubles(sandbox, program, deployed) == set()


async def test_a_deploy_repeats_nothing(sandbox: Sandbox, program: Program, deployed: Deployed) -> None:
    first = await deployed.start("pod-0", workers=program.workers)
    await send(sandbox, program, range(COUNT // 2))
    await deployed.start("pod-1", workers=program.workers)
    await send(sandbox, program, range(COUNT // 2, COUNT))
    await ended(first)
    assert await doubles(sandbox, program, deployed) == set()


async def ended(process: AgentProcess) -> None:
    """Asks a process to end, as Kubernetes does, and waits for it."""
    process.terminate()
    assert await process.ended(timeout=30) == 0, process.output


@pytest.mark.parametrize("kills", [3])
async def test_a_ledger_books_each_transfer_once_however_often_it_is_killed(
    sandbox: Sandbox, tmp_path: Path, kills: int
) -> None:
    program = ALL[2]
    await sandbox.declare_group("tasks", agent="effects", lease=2.0, max_deliveries=10)
    deployed = Deployed(sandbox, "effects", ("effects.py", str(tmp_path / "ledger.db")))
    await send(sandbox, program, range(COUNT))
    for kill in range(kills):
        process = await deployed.start("pod-0")
        await deployed.has_handled(8 * (kill + 1))
        process.kill()
    await deployed.start("pod-0")
    await doubles(sandbox, program, deployed)
    with sqlite3.connect(tmp_path / "ledger.db") as ledger:
        booked = ledger.execute("SELECT n, amount FROM transfers ORDER BY n").fetchall()
    ledger.close()
    assert booked == [(n, n) for n in range(COUNT)]


@pytest.mark.parametrize(
    "job",
    [{"program": "import time; time.sleep(5)"}, {"computes": 5}],
    ids=["a subprocess", "the event loop blocked"],
)
async def test_work_longer_than_the_lease_is_done_once(sandbox: Sandbox, job: dict[str, Any]) -> None:
    await sandbox.declare_group("tasks", agent="subprocesses", lease=2.0, max_deliveries=5)
    deployed = Deployed(sandbox, "subprocesses", ("subprocesses.py",))
    for pod in ("pod-0", "pod-1"):
        await deployed.start(pod)
    planner = sandbox.agent("planner")
    await planner.send_message(to="subprocesses", type="event", payload={"n": 0, **job})
    await sandbox.settled("tasks", timeout=30)
    assert (deployed.began(), deployed.handled()) == ({0: 1}, {0: 1})


async def test_a_program_that_fails_is_a_dead_letter_with_its_last_words(sandbox: Sandbox) -> None:
    await sandbox.declare_group("tasks", agent="subprocesses")
    process = await Deployed(sandbox, "subprocesses", ("subprocesses.py",)).start("pod-0")
    planner = sandbox.agent("planner")
    failing = {"n": 0, "program": "raise SystemExit('no such model')"}
    await planner.send_message(to="subprocesses", type="event", payload=failing)
    await sandbox.settled("tasks")
    (dead,) = await sandbox.dead_letters("tasks", group="subprocesses")
    assert (dead.reason, dead.attempts) == ("ProgramFailed", 1)
    assert "no such model" in process.output


async def test_an_orchestrator_asks_again_and_cancels_what_it_needs_no_more(sandbox: Sandbox) -> None:
    await sandbox.declare_group("tasks", agent="fanout")
    await sandbox.declare_stream("documents", producers=["fanout"])
    await sandbox.declare_group("documents", agent="threads", lease=2.0)
    deployed = Deployed(sandbox, "fanout", ("fanout.py",))
    fanout = await deployed.start("fanout-0")
    order = {"n": 0, "documents": ["a", "b"], "enough": 2, "patience": 0.5}
    await sandbox.agent("planner").send_message(to="fanout", type="event", payload=order)
    # nobody works on documents yet
    await fanout.printed("asking again")
    await Deployed(sandbox, "threads", ("threads.py",)).start("threads-0")
    await deployed.has_handled(1)
    await sandbox.settled("documents", timeout=30)
    reasons = {dead.reason for dead in await sandbox.dead_letters("documents", group="threads")}
    assert reasons <= {"Expired"}
