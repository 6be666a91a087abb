"""Places for processes: what ends is started again, what is no longer wanted ends in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from agentstream_operator.local.processes.commands import Command
from agentstream_operator.local.processes.reaper import Reaper
from agentstream_operator.local.processes.supervisor import LONGEST_LINE, SupervisedProcess
from agentstream_operator.local.processes.workloads import ProcessHost, Workload
from support.waiting import until


class Place:
    """A supervised process that runs Python text, and everything that came of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.said: list[str] = []
        self.printed: list[tuple[str, str]] = []
        self.ended: list[str] = []
        self.reaper = Reaper()
        self.tasks: list[asyncio.Task[None]] = []
        (directory / "password").touch()

    def say(self, text: str) -> None:
        self.said.append(text)

    def relay(self, name: str, text: str) -> None:
        self.printed.append((name, text))

    async def end(self, name: str) -> None:
        self.ended.append(name)

    def command(self, text: str, *, grace: float = 5.0) -> Command:
        environment = {"PATH": os.environ["PATH"]}
        return Command((sys.executable, "-c", text), environment, self.directory, self.directory, grace)

    def start(self, command: Command) -> SupervisedProcess:
        process = SupervisedProcess("coder-0", command, output=self, reaper=self.reaper, ended=self.end)
        self.tasks.append(asyncio.create_task(process.run()))
        return process

    @property
    def lines(self) -> list[str]:
        return [text for _, text in self.printed]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    yield place
    for task in place.tasks:
        task.cancel()
    await asyncio.gather(*place.tasks, return_exceptions=True)
    place.reaper.close()


WAITS = "print('up', flush=True); import time; time.sleep(60)"


async def test_lines_are_shown_with_the_name_of_the_place(place: Place) -> None:
    place.start(place.command(WAITS))
    await until(lambda: place.printed)
    assert place.printed == [("coder-0", "up")]


async def test_a_process_knows_its_name(place: Place) -> None:
    place.start(place.command("import os; print(os.environ['AGENTSTREAM_POD'])"))
    await until(lambda: place.lines)
    assert place.lines[0] == "coder-0"


async def test_a_killed_process_is_started_again(place: Place) -> None:
    process = place.start(place.command(WAITS))
    await until(lambda: place.lines)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    await until(lambda: len(place.lines) == 2)
    assert place.said == ["coder-0: killed by SIGKILL; restarting in 0.2 s"]
    assert place.ended == ["coder-0"]
    assert process.failure is None


async def test_a_process_that_is_restarted_ends_in_order_and_that_is_no_failure(place: Place) -> None:
    process = place.start(place.command(WAITS))
    for count in range(1, 4):
        await until(lambda: len(place.lines) == count)  # noqa: B023 - awaited here
        process.restart()
    await until(lambda: len(place.lines) == 4)
    assert (place.said, process.failure) == ([], None)
    assert place.ended == ["coder-0"] * 3


async def test_a_process_in_a_crash_loop_is_restarted_at_once(place: Place, tmp_path: Path) -> None:
    text = f"import os, sys\nif not os.path.exists('ok'): sys.exit(3)\n{WAITS}"
    process = place.start(place.command(text))
    await until(lambda: len(place.said) == 5, timeout=20)
    (tmp_path / "ok").touch()
    # it would come back after 3.2 s
    process.restart()
    await until(lambda: place.lines, timeout=3)
    assert process.failure is None


async def test_a_restart_does_not_bring_back_what_was_stopped(place: Place) -> None:
    process = place.start(place.command(WAITS))
    await until(lambda: place.lines)
    process.stop()
    process.restart()
    await place.tasks[0]
    assert place.lines == ["up"]


async def test_a_crash_loop_is_held_back_and_says_why(place: Place) -> None:
    process = place.start(place.command("raise SystemExit('no model')"))
    await until(lambda: len(place.said) == 3)
    assert place.said == [
        f"coder-0: exit code 1 (no model); restarting in {delay} s" for delay in (0.2, 0.4, 0.8)
    ]
    assert process.failure == "exit code 1 (no model)"


async def test_a_process_that_ends_well_is_started_again_too(place: Place) -> None:
    place.start(place.command("pass"))
    await until(lambda: len(place.said) == 2)
    assert place.said[0] == "coder-0: exit code 0; restarting in 0.2 s"


async def test_trouble_is_over_when_a_process_keeps_running(place: Place, tmp_path: Path) -> None:
    text = f"import os, sys\nif not os.path.exists('ok'): sys.exit(3)\n{WAITS}"
    process = place.start(place.command(text))
    await until(lambda: process.failure is not None)
    (tmp_path / "ok").touch()
    await until(lambda: place.lines)
    await until(lambda: process.failure is None)


async def test_a_retired_process_gets_time_to_end(place: Place) -> None:
    text = (
        # not print, which the signal may interrupt
        "import os, signal, sys, time\n"
        r"signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'bye\n'), sys.exit()))" + "\n" + WAITS
    )
    process = place.start(place.command(text))
    await until(lambda: place.lines)
    process.stop()
    await place.tasks[0]
    assert place.lines == ["up", "bye"]
    assert place.ended == ["coder-0"]


async def test_a_process_that_does_not_end_is_killed(place: Place) -> None:
    text = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"
    process = place.start(place.command(text, grace=0.1))
    await until(lambda: place.lines)
    process.stop()
    await place.tasks[0]
    assert place.said == ["coder-0: did not end within 0.1 s of SIGTERM; killed"]


async def test_a_place_that_waits_to_start_again_ends_at_once(place: Place) -> None:
    process = place.start(place.command("pass"))
    await until(lambda: place.said)
    process.stop()
    await asyncio.wait_for(place.tasks[0], 1)


async def test_a_cancelled_place_leaves_nothing(place: Place) -> None:
    process = place.start(place.command(WAITS, grace=60))
    await until(lambda: place.lines)
    pid = process.pid
    assert pid is not None
    place.tasks[0].cancel()
    await asyncio.gather(*place.tasks, return_exceptions=True)
    assert not psutil.pid_exists(pid)


async def test_what_a_process_started_ends_with_it(place: Place) -> None:
    text = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)"
    place.start(place.command(text))
    await until(lambda: place.ended)
    grandchild = int(place.lines[0])
    await until(
        lambda: (
            not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE
        )
    )


async def test_a_command_that_does_not_exist_is_left_to_who_knows_where_it_stands(place: Place) -> None:
    command = Command(("no-such",), {"PATH": ""}, place.directory, place.directory, 1.0)
    process = place.start(command)
    await until(lambda: process.failure)
    assert process.failure == "command 'no-such' does not exist"
    assert not place.said


async def test_a_program_that_the_system_refuses_is_said(place: Place, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("no program")
    (tmp_path / "run").chmod(0o755)
    place.start(Command(("./run",), {"PATH": ""}, place.directory, place.directory, 1.0))
    await until(lambda: place.said)
    assert place.said[0] == "coder-0: cannot start './run': Exec format error; restarting in 0.2 s"


async def test_a_process_waits_for_its_binding(place: Place, tmp_path: Path) -> None:
    (tmp_path / "password").unlink()
    process = place.start(place.command(WAITS))
    await asyncio.sleep(0)
    assert process.pid is None
    (tmp_path / "password").touch()
    await until(lambda: place.lines)


async def test_a_place_without_a_binding_ends_at_once(place: Place, tmp_path: Path) -> None:
    (tmp_path / "password").unlink()
    process = place.start(place.command(WAITS))
    await asyncio.sleep(0)
    process.stop()
    await asyncio.wait_for(place.tasks[0], 1)


async def test_a_long_line_is_cut(place: Place) -> None:
    place.start(place.command("print('x' * 5000)"))
    await until(lambda: place.lines)
    assert place.lines[0] == "x" * LONGEST_LINE + "… (1000 more)"


async def test_a_line_without_an_end_does_not_gather(place: Place) -> None:
    place.start(place.command("import sys; sys.stdout.write('x' * 100_000); sys.stdout.flush(); " + WAITS))
    await until(lambda: place.lines)
    assert all(len(line) < LONGEST_LINE + 30 for line in place.lines)


async def test_output_that_is_no_text_is_shown(place: Place) -> None:
    place.start(place.command(r"import sys; sys.stdout.buffer.write(b'\xff!\r\n')"))
    await until(lambda: place.lines)
    assert place.lines[0] == "\ufffd!"


class Fleet:
    """A workload in a task group of its own."""

    def __init__(self, place: Place, tasks: asyncio.TaskGroup) -> None:
        self.place = place
        self.workload = Workload("coder", ProcessHost(tasks, place.reaper, place), place.end)

    async def names(self, *names: str) -> None:
        await until(lambda: {n for n, _ in self.place.printed} >= set(names))


async def test_as_many_run_as_are_wanted(place: Place) -> None:
    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(place, tasks)
        fleet.workload.apply(place.command(WAITS), 3)
        await fleet.names("coder-0", "coder-1", "coder-2")
        assert (fleet.workload.seen.replicas, fleet.workload.seen.ready) == (3, 3)
        fleet.workload.stop()
    assert fleet.workload.running == 0


async def test_those_that_hold_the_least_go_first(place: Place) -> None:
    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(place, tasks)
        fleet.workload.apply(place.command(WAITS), 4)
        await fleet.names("coder-0", "coder-1", "coder-2", "coder-3")
        fleet.workload.set_deletion_costs({"coder-0": 1, "coder-2": 5, "coder-3": 2})
        fleet.workload.apply(place.command(WAITS), 2)
        await until(lambda: len(place.ended) == 2)
        assert sorted(place.ended) == ["coder-0", "coder-1"]
        fleet.workload.stop()


async def test_what_does_not_run_goes_before_what_holds_nothing(place: Place) -> None:
    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(place, tasks)
        ends = "import os\nif os.environ['AGENTSTREAM_POD'] == 'coder-0': raise SystemExit(1)\n"
        command = place.command(ends + WAITS)
        fleet.workload.apply(command, 3)
        await fleet.names("coder-1", "coder-2")
        await until(lambda: fleet.workload.seen.crashing and fleet.workload.seen.ready == 2)
        fleet.workload.apply(command, 2)
        # both of the others still run
        await until(lambda: fleet.workload.running == 2)
        assert set(place.ended) == {"coder-0"}
        fleet.workload.stop()


async def test_the_last_ones_go_first(place: Place) -> None:
    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(place, tasks)
        fleet.workload.apply(place.command(WAITS), 3)
        await fleet.names("coder-0", "coder-1", "coder-2")
        fleet.workload.apply(place.command(WAITS), 1)
        await until(lambda: len(place.ended) == 2)
        assert sorted(place.ended) == ["coder-1", "coder-2"]
        fleet.workload.apply(place.command(WAITS), 0)


async def test_the_name_of_one_that_is_ending_is_not_taken(place: Place) -> None:
    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(place, tasks)
        stubborn = place.command(
            f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}", grace=0.5
        )
        fleet.workload.apply(stubborn, 1)
        await fleet.names("coder-0")
        fleet.workload.apply(stubborn, 0)
        fleet.workload.apply(place.command(WAITS), 1)
        await fleet.names("coder-1")
        assert fleet.workload.running == 2
        fleet.workload.stop()


async def test_another_command_replaces_the_processes(place: Place) -> None:
    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(place, tasks)
        fleet.workload.apply(place.command(WAITS), 1)
        await fleet.names("coder-0")
        fleet.workload.apply(place.command(WAITS.replace("up", "new")), 1)
        await until(lambda: "new" in place.lines and place.ended)
        fleet.workload.stop()


async def test_why_a_place_is_in_trouble_is_seen(place: Place) -> None:
    async with asyncio.TaskGroup() as tasks:
        fleet = Fleet(place, tasks)
        fleet.workload.apply(place.command("raise SystemExit('no model')"), 1)
        await until(lambda: fleet.workload.seen.crashing)
        assert fleet.workload.seen.crashing == "exit code 1 (no model)"
        fleet.workload.stop()
