"""Agents in processes of their own: killed, stopped and gone on with, they do what real ones would."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from agentstream.testing import Sandbox
from support.topology import following
from support.waiting import until

WORKER = """
import asyncio, sys
from agentstream import Agent
async def main():
    async with Agent.from_env() as agent:
        print("ready", *sys.argv[1:], flush=True)
        async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                print("begins", delivery.message.payload["n"], delivery.attempt, flush=True)
                await asyncio.sleep(delivery.message.payload["takes"])
                print("ends", delivery.message.payload["n"], flush=True)
asyncio.run(main())
"""


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(WORKER, encoding="utf-8")
    return path


async def send(sandbox: Sandbox, n: int, *, takes: float = 0) -> None:
    await sandbox.agent("planner").send_message(to="coder", type="event", payload={"n": n, "takes": takes})


async def test_a_process_works_until_it_is_asked_to_end(sandbox: Sandbox, worker: Path) -> None:
    process = sandbox.process(worker, "an argument", agent="coder", environ={"PYTHONHASHSEED": "1"})
    await process.printed("ready an argument")
    await send(sandbox, 1)
    await process.printed("ends 1")
    await sandbox.settled("tasks")
    process.terminate()
    assert await process.ended() == 0
    assert process.returncode == 0


async def test_what_a_killed_process_held_is_handled_by_another_one(sandbox: Sandbox, worker: Path) -> None:
    await send(sandbox, 1, takes=60)
    process = sandbox.process(worker, agent="coder")
    await process.printed("begins 1 1")
    process.kill()
    assert process.returncode == -signal.SIGKILL
    deliveries = sandbox.agent("coder").stream_consume("tasks")
    again = await following(deliveries)
    assert again.attempt == 2
    assert await again.ack()
    await sandbox.settled("tasks")


async def test_a_process_takes_over_at_once_from_one_of_its_pod(sandbox: Sandbox, worker: Path) -> None:
    await sandbox.declare_group("tasks", agent="coder", lease=60)
    await send(sandbox, 1, takes=0.2)
    process = sandbox.process(worker, agent="coder", pod="coder-x")
    await process.printed("begins 1 1")
    process.kill()
    await sandbox.process(worker, agent="coder", pod="coder-x").printed("begins 1 2")
    await sandbox.settled("tasks")


async def test_a_process_that_was_stopped_for_too_long_has_lost_what_it_held(
    sandbox: Sandbox, worker: Path
) -> None:
    await send(sandbox, 1, takes=0.5)
    process = sandbox.process(worker, agent="coder")
    await process.printed("begins 1 1")
    process.pause()
    again = await following(sandbox.agent("coder").stream_consume("tasks"))
    assert again.attempt == 2
    process.resume()
    await send(sandbox, 2)
    await process.printed("ends 2")
    assert await again.ack()
    await sandbox.settled("tasks")


async def test_a_module_is_run_by_its_name_and_everything_it_started_ends_with_it(sandbox: Sandbox) -> None:
    process = sandbox.process("http.server", "0", agent="coder")
    await process.printed("Serving HTTP")
    process.kill()
    assert await process.ended() == -signal.SIGKILL


async def test_what_a_process_started_ends_with_it(sandbox: Sandbox, tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('child', child.pid, flush=True)\n"
        "child.wait()\n",
        encoding="utf-8",
    )
    process = sandbox.process(program, agent="coder")
    await process.printed("\n")
    child = int(process.output.split()[1])
    process.kill()
    await until(lambda: _is_gone(child))


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"


async def test_what_a_process_did_not_do_in_time_is_an_error_that_says_what_it_printed(
    sandbox: Sandbox, worker: Path, tmp_path: Path
) -> None:
    process = sandbox.process(worker, agent="coder")
    await process.printed("ready")
    with pytest.raises(TimeoutError, match=r"no 'never' was printed in 0\.01 s, but: ready"):
        await process.printed("never", timeout=0.01)
    with pytest.raises(TimeoutError, match=r"it still runs after 0\.01 s, and printed: ready"):
        await process.ended(timeout=0.01)
    fails = sandbox.process(tmp_path / "missing.py", agent="coder")
    with pytest.raises(
        RuntimeError, match=r"it ended with 2 and had not printed 'ready', but: .*missing\.py"
    ):
        await fails.printed("ready")


async def test_signals_to_a_process_that_has_ended_hit_nobody(sandbox: Sandbox, tmp_path: Path) -> None:
    process = sandbox.process(tmp_path / "missing.py", agent="coder")
    assert await process.ended() == 2
    for signalled in (process.pause, process.resume, process.terminate, process.kill, process.kill):
        signalled()
    assert process.returncode == 2
