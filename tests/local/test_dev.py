"""`agentstream dev` from manifests to working agents, signed streams too, whatever happens meanwhile."""

from __future__ import annotations

import shutil
import signal
import socket
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.local.bindings import SigningFiles
from agentstream_operator.resources.meta import ResourceKey
from support.dev import Dev, a_group, a_stream, coders, environment_of, is_alive
from support.waiting import until


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[Dev]:
    dev = Dev(tmp_path)
    yield dev
    await dev.close()


def declare(dev: Dev, text: str) -> None:
    (dev.directory / "m.yaml").write_text(text)


async def test_consumers_come_with_the_work_and_go_with_it(dev: Dev) -> None:
    declare(dev, coders(messages=20))
    await dev.start("m.yaml", "--until-idle", "2s", "--output", "json")
    # where the sender is slow to start, the first measurement asks for one
    await dev.line("to 2 consumers")
    seen = dev.remember()
    await dev.line("to 0 consumers")
    secrets = [
        dev.password(),
        *(p.read_text() for p in dev.directory.glob(".agentstream/bindings/*/password")),
    ]
    assert len(secrets) == 3
    assert await dev.wait() == 0
    assert sorted(dev.done) == list(range(20))
    groups = {group["name"]: group["numbers"] for group in dev.summary["groups"]}
    assert (groups["coder"]["sent"], groups["coder"]["acknowledged"]) == (20, 20)
    total = dev.summary["total"]
    assert (total["sent"], total["lost"], total["deadLettered"], total["waiting"]) == (20, 0, 0, 0)
    assert 0 < total["p50Ms"] <= total["p95Ms"]
    shown = " ".join([dev.text, *map(environment_of, seen)])
    assert not [secret for secret in secrets if secret in shown]
    await until(lambda: not [p for p in dev.family if is_alive(p)])


async def test_no_secret_is_in_the_command_line_or_environment_of_any_process(dev: Dev) -> None:
    declare(dev, coders(scale="replicas: 1"))
    await dev.start("m.yaml")
    await dev.line("[coder-0] up")
    secrets = [
        dev.password(),
        *(p.read_text() for p in dev.directory.glob(".agentstream/bindings/*/password")),
    ]
    seen = " ".join(map(environment_of, dev.remember()))
    assert "AGENTSTREAM" not in seen
    assert "bindings/default.coder" in seen
    assert not [secret for secret in secrets if secret in seen]
    assert await dev.end() == 0
    assert dev.out[-1].startswith("total")


async def test_a_killed_agent_comes_back_and_nothing_is_lost(dev: Dev) -> None:
    declare(dev, coders(messages=100, scale="replicas: 2\n  delivery: {lease: 2s}"))
    await dev.start("m.yaml", "--until-idle", "1s")
    victim = int((await dev.line("[coder-0] up")).split()[-1])
    await until(lambda: dev.done)
    psutil.Process(victim).kill()
    await dev.line("coder-0: killed by SIGKILL; restarting in 0.2 s")
    assert await dev.wait() == 0
    assert set(dev.done) == set(range(100)), dev.text


async def test_a_killed_server_comes_back_and_nothing_is_lost(dev: Dev) -> None:
    declare(dev, coders(messages=100, scale="replicas: 2\n  delivery: {lease: 2s}"))
    await dev.start("m.yaml", "--until-idle", "1s")
    await dev.line("[boss-0] sent")
    await until(lambda: dev.done)
    dev.server().kill()
    await dev.line("valkey ended (killed by SIGKILL)")
    await dev.line("valkey is back")
    dev.remember()
    assert await dev.wait() == 0
    assert set(dev.done) == set(range(100)), dev.text


async def test_what_waits_at_the_end_is_there_for_the_next_run(dev: Dev) -> None:
    idle = coders(messages=3, scale="suspend: true")
    declare(dev, idle)
    await dev.start("m.yaml", "--output", "json")
    await dev.line("[boss-0] sent")
    assert await dev.end(signal.SIGTERM) == 0
    assert dev.summary["total"]["waiting"] == 3
    first = (dev.directory / ".agentstream" / "resources.json").read_text()
    declare(dev, idle.replace("suspend: true", "suspend: false").replace('"3"', '"0"'))
    await dev.start("m.yaml", "--until-idle", "500ms", "--output", "json")
    assert await dev.wait() == 0
    assert sorted(dev.done) == [0, 1, 2]
    second = (dev.directory / ".agentstream" / "resources.json").read_text()
    assert first.count('"created"') == second.count('"created"') == 4


async def test_a_crash_loop_is_held_back_and_shown(dev: Dev) -> None:
    declare(
        dev, a_stream("tasks") + a_group("coder", "tasks", "python", "-c", "raise SystemExit('no model')")
    )
    await dev.start("m.yaml")
    await dev.line("coder-0: exit code 1 (no model); restarting in 0.8 s")
    assert await dev.end() == 0


FAILS = """\
import asyncio
from agentstream import Agent, Reject

async def main():
    async with Agent.from_env() as agent:
        async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                raise Reject("NoModel")

asyncio.run(main())
"""


async def test_messages_that_became_dead_letters_are_no_success(dev: Dev) -> None:
    declare(dev, coders(messages=3, scale="replicas: 1"))
    (dev.directory / "coder.py").write_text(FAILS)
    await dev.start("m.yaml", "--until-idle", "500ms", "--output", "json")
    assert await dev.wait() == 1
    assert dev.summary["total"]["deadLettered"] == 3
    # what to do about them, while it runs and afterwards
    assert dev.text.count("new dead letter") == 1
    assert "dead letters: 3 of coder; they are kept: `agentstream dlq coder`" in dev.lines[-1]


@pytest.mark.parametrize(("arguments", "tracebacks"), [((), 1), (("--verbose",), 6)])
async def test_a_failed_attempt_is_a_line_and_each_error_has_a_traceback_once(
    dev: Dev, arguments: tuple[str, ...], tracebacks: int
) -> None:
    twice = "replicas: 1\n  delivery: {maxDeliveries: 2, backoff: {initial: 10ms}}"
    declare(dev, coders(messages=3, scale=twice))
    (dev.directory / "coder.py").write_text(FAILS.replace('Reject("NoModel")', 'ValueError("no model")'))
    await dev.start("m.yaml", "--until-idle", "500ms", *arguments)
    assert await dev.wait() == 1
    again = [line for line in dev.lines if "attempt 1 of 2, again in 0.0 s: ValueError: no model" in line]
    last = [line for line in dev.lines if "attempt 2 of 2, now a dead letter: ValueError: no model" in line]
    assert (len(again), len(last)) == (3, 3)
    assert dev.text.count("Traceback") == tracebacks


async def test_when_it_is_ready_it_says_what_to_do_next(dev: Dev) -> None:
    declare(dev, a_stream("tasks"))
    await dev.start("m.yaml")
    await dev.ready()
    await dev.line("next, in another terminal in this folder: agentstream lag · agentstream top")
    assert await dev.end() == 0


@pytest.mark.parametrize(
    ("manifests", "why"),
    [
        (
            a_stream("tasks", "producers: [boss]")
            + a_group("coder", "tasks", "python", "-c", "raise SystemExit(3)"),
            "the consumers of ConsumerGroup default/coder keep ending: exit code 3",
        ),
        (a_group("coder", "tasks", "sleep", "60"), "ConsumerGroup default/coder is not ready: StreamMissing"),
        (
            a_stream("tasks") + a_group("coder", "tasks", "x").replace('command: ["x"]', "image: coder"),
            "the consumers of ConsumerGroup default/coder keep ending: its first container has no command",
        ),
        (
            a_stream("tasks") + a_group("coder", "tasks", "no-such-program"),
            "the consumers of ConsumerGroup default/coder keep ending: command 'no-such-program' does not",
        ),
    ],
    ids=["consumers that keep ending", "a stream that is not there", "only an image", "no such program"],
)
async def test_where_nothing_ever_works_it_ends_and_says_why(dev: Dev, manifests: str, why: str) -> None:
    declare(dev, manifests)
    await dev.start("m.yaml", "--until-idle", "500ms")
    assert await dev.wait() == 1
    assert f"error: nothing has moved for 10 s: {why}" in dev.text


async def test_what_is_not_idle_in_time_is_no_success(dev: Dev) -> None:
    declare(dev, coders(messages=3, scale="suspend: true"))
    await dev.start("m.yaml", "--until-idle", "500ms", "--for", "2s")
    assert await dev.wait() == 1
    assert "error: not idle after 2 s" in dev.text


@pytest.mark.parametrize(
    "command",
    ["python coder.py", "python -m app.worker", "python ../elsewhere/coder.py", "python linked.py"],
)
async def test_changed_code_is_loaded(dev: Dev, command: str) -> None:
    work, elsewhere = dev.directory / "work", dev.directory / "elsewhere"
    for package in (work / "app", elsewhere):
        package.mkdir(parents=True)
    handler = "VERSION = 1"
    places = {
        "python coder.py": (work / "coder.py", work / "handler.py", "handler"),
        "python -m app.worker": (work / "app" / "worker.py", work / "app" / "handler.py", "app.handler"),
        "python ../elsewhere/coder.py": (elsewhere / "coder.py", elsewhere / "handler.py", "handler"),
        "python linked.py": (elsewhere / "coder.py", elsewhere / "handler.py", "handler"),
    }
    (work / "linked.py").symlink_to(elsewhere / "coder.py")
    program, module, name = places[command]
    module.write_text(handler)
    says = f"print('version', {name}.VERSION, flush=True)"
    program.write_text(f"import time, {name}\n{says}\ntime.sleep(60)\n")
    text = a_stream("tasks") + a_group("coder", "tasks", *command.split()).replace(
        "name: c,", "name: c, workingDir: work,"
    )
    declare(dev, text)
    await dev.start("m.yaml")
    await dev.line("[coder-0] version 1")
    # what agents write is no code of theirs
    (work / "notes.txt").write_text("done")
    module.write_text("VERSION = 22")
    await dev.line("[coder-0] version 22")
    assert "ConsumerGroup default/coder: restarting: handler.py has changed" in dev.text
    # a mistake, and its correction
    module.write_text("VERSION = = 3")
    await dev.line("SyntaxError")
    module.write_text("VERSION = 333")
    await dev.line("[coder-0] version 333")
    assert await dev.end() == 0


async def test_code_is_loaded_where_its_directory_comes_later_or_is_made_again(dev: Dev) -> None:
    work = dev.directory / "work"

    def write(version: int) -> None:
        work.mkdir(exist_ok=True)
        (work / "coder.py").write_text(
            f"import time\nprint('version', {version}, flush=True)\ntime.sleep(60)\n"
        )

    declare(
        dev,
        a_stream("tasks")
        + a_group("coder", "tasks", "python", "coder.py").replace("name: c,", "name: c, workingDir: work,"),
    )
    await dev.start("m.yaml")
    await dev.line("work is not a directory")
    write(1)
    await dev.line("[coder-0] version 1")
    write(2)
    await dev.line("[coder-0] version 2")
    shutil.rmtree(work)
    write(3)
    await dev.line("[coder-0] version 3")
    write(4)
    await dev.line("[coder-0] version 4")
    work.rename(dev.directory / "old")
    write(5)
    await dev.line("[coder-0] version 5")
    write(6)
    await dev.line("[coder-0] version 6")
    assert await dev.end() == 0


async def test_a_file_that_is_written_all_the_time_is_told_of_once_per_start(dev: Dev) -> None:
    (dev.directory / "coder.py").write_text(
        "import signal, threading\n"
        "asked = threading.Event()\n"
        "signal.signal(signal.SIGTERM, lambda *_: asked.set())\n"
        "print('at work', flush=True)\n"
        "asked.wait()\n"
        "for n in range(10):\n"
        "    open('made.py', 'w').write(str(n))\n"
        "    threading.Event().wait(0.3)\n"
        "print('done', flush=True)\n"
    )
    declare(dev, a_stream("tasks") + a_group("coder", "tasks", "python", "coder.py"))
    await dev.start("m.yaml")
    await dev.line("at work")
    (dev.directory / "other.py").write_text("1")
    await dev.line("[coder-0] done")
    assert dev.text.partition("[coder-0] done")[0].count("restarting:") == 1
    assert await dev.end() == 0


async def test_a_manifest_behind_a_link_is_taken_up_when_it_changes(dev: Dev) -> None:
    elsewhere = dev.directory / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "real.yaml").write_text(a_stream("tasks"))
    (dev.directory / "m.yaml").symlink_to(elsewhere / "real.yaml")
    await dev.start("m.yaml")
    await dev.line("AgentStream default/tasks: ready")
    (elsewhere / "real.yaml").write_text(a_stream("tasks") + a_stream("more"))
    await dev.line("AgentStream default/more: ready")
    assert await dev.end() == 0


async def test_code_is_not_loaded_again_where_nobody_wants_it(dev: Dev) -> None:
    (dev.directory / "m.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    declare(dev, a_stream("tasks") + a_group("coder", "tasks", "python", "m.py"))
    await dev.start("m.yaml", "--no-reload")
    await dev.line("[coder-0] up")
    (dev.directory / "m.py").write_text("print('changed')")
    # manifests are watched by the same means, and are seen later
    declare(dev, a_stream("tasks") + a_stream("more") + a_group("coder", "tasks", "python", "m.py"))
    await dev.line("AgentStream default/more: ready")
    assert "restarting" not in dev.text
    assert await dev.end() == 0


async def test_a_command_that_does_not_exist_is_one_line(dev: Dev) -> None:
    declare(dev, a_stream("tasks") + a_group("coder", "tasks", "no-such-program"))
    await dev.start("m.yaml")
    await dev.line("does not exist")
    assert await dev.end() == 0
    about = [line for line in dev.lines if "no-such-program" in line and "error" in line]
    assert len(about) == 1
    assert about[0].endswith(
        "m.yaml:6: ConsumerGroup default/coder: command 'no-such-program' does not exist"
    )


async def test_a_template_without_a_command_is_one_line(dev: Dev) -> None:
    text = a_stream("tasks") + a_group("coder", "tasks", "x").replace('command: ["x"]', "image: coder")
    declare(dev, text)
    await dev.start("m.yaml", "--for", "1s")
    assert await dev.wait() == 0
    about = [line for line in dev.lines if "container has no command" in line]
    assert len([line for line in about if " error: " in line]) == 1
    assert len(about) <= 2  # the other one is an event
    assert len([line for line in dev.lines if "images are ignored" in line]) == 1


async def test_mode_hpa_is_as_direct_and_that_is_said_once(dev: Dev) -> None:
    declare(
        dev, coders(scale="autoscaling: {mode: HPA, targetBacklog: 5, maxReplicas: 3, scaleDownAfter: 1s}")
    )
    await dev.start("m.yaml", "--until-idle", "500ms", "--output", "json")
    assert await dev.wait() == 0
    assert sorted(dev.done) == list(range(20))
    assert len([line for line in dev.lines if "mode HPA works as Direct" in line]) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\nb: 2\n", "error: m.yaml:2: is not valid YAML: "),
        (
            a_stream("tasks", "producer: [a]"),
            "error: m.yaml:4: AgentStream default/tasks: spec.producer: unknown",
        ),
        ("apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n", "error: m.yaml: declares no AgentStream"),
    ],
)
async def test_a_mistake_in_a_manifest_is_one_line(dev: Dev, text: str, expected: str) -> None:
    declare(dev, text)
    await dev.start("m.yaml")
    assert await dev.wait() == 2
    assert len(dev.lines) == 1
    assert dev.lines[0].startswith(expected)


async def test_a_port_in_use_is_one_line(dev: Dev) -> None:
    declare(dev, a_stream("tasks"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        await dev.start("m.yaml", "--port", str(port))
        assert await dev.wait() == 2
    assert dev.lines == [f"error: port {port} is in use; choose another one with --port"]


async def test_a_file_in_place_of_the_data_directory_is_one_line(dev: Dev) -> None:
    declare(dev, a_stream("tasks"))
    await dev.start("m.yaml", "--data", "m.yaml")
    assert await dev.wait() == 2
    assert dev.lines == ["error: cannot use m.yaml as data directory: File exists"]


async def test_a_full_disk_is_one_line(dev: Dev) -> None:
    declare(dev, a_stream("tasks"))
    await dev.start("m.yaml", file_size=0)
    assert await dev.wait() == 2
    assert len(dev.lines) == 1
    assert dev.lines[0].startswith("error: cannot ")
    assert dev.lines[0].endswith(".agentstream as data directory: File too large")


async def test_a_data_directory_in_use_is_one_line(dev: Dev, tmp_path: Path) -> None:
    declare(dev, a_stream("tasks"))
    await dev.start("m.yaml")
    await dev.ready()
    other = Dev(tmp_path)
    await other.start("m.yaml")
    assert await other.wait() == 2
    assert other.lines == [
        (
            f"error: .agentstream is in use by another `agentstream dev` (process {dev.process.pid});"
            " stop that one, or choose another directory with --data"
        )
    ]
    assert await dev.end() == 0


async def test_of_two_resources_on_one_key_the_first_wins(dev: Dev) -> None:
    declare(dev, a_stream("tasks") + a_stream("work", "key: '{default.tasks}'"))
    await dev.start("m.yaml")
    line = await dev.line("KeyClaimed")
    assert "AgentStream default/work" in line
    assert "default/tasks" in line.split("KeyClaimed")[1]
    assert await dev.end() == 0


async def test_a_key_of_another_type_is_said_and_left_alone(dev: Dev) -> None:
    declare(dev, a_stream("tasks"))
    await dev.start("m.yaml")
    await dev.ready()
    password, port = dev.password(), dev.port()
    wire = Client(
        lambda: Endpoint(f"redis://127.0.0.1:{port}", "agentstream-operator", password), name="test"
    )
    await wire.call("SET", "{default.text}", "mine")
    declare(dev, a_stream("tasks") + a_stream("text"))
    assert "AgentStream default/text" in await dev.line("WrongType")
    assert await wire.call("GET", "{default.text}") == b"mine"
    await wire.close()
    assert await dev.end() == 0


async def test_changed_manifests_are_taken_up_and_broken_ones_are_not(dev: Dev) -> None:
    waits = ("python", "-c", "import time; print('up', flush=True); time.sleep(60)")
    text = a_stream("tasks") + a_group("coder", "tasks", *waits)
    declare(dev, text)
    await dev.start("m.yaml")
    await dev.line("[coder-0] up")
    declare(dev, text.replace("replicas: 1", "replicas: [1"))
    await dev.line("the changed manifests are not applied")
    assert "error: m.yaml:" in dev.text
    declare(dev, text.replace("streamRef: {name: tasks}", "streamRef: {name: other}"))
    await dev.line("streamRef is immutable")
    declare(dev, text.replace("replicas: 1", "replicas: 2"))
    await dev.line("[coder-1] up")
    declare(dev, a_stream("tasks"))
    await dev.line("ConsumerGroup default/coder: no longer declared")
    agents = [p for p in dev.remember() if "print('up'" in environment_of(p)]
    await until(lambda: not [p for p in agents if is_alive(p)])
    assert await dev.end() == 0


async def test_deleting_a_group_deletes_its_data_where_that_is_declared(dev: Dev) -> None:
    group = a_group("coder", "tasks", "sleep", "60", scale="deletionPolicy: Delete")
    declare(dev, a_stream("tasks") + group)
    await dev.start("m.yaml")
    await dev.ready()
    declare(dev, a_stream("tasks"))
    await dev.line("ConsumerGroup default/coder: GroupDeleted")
    declare(dev, a_stream("tasks") + group)
    await until(lambda: dev.text.count("GroupCreated") == 2)
    assert await dev.end() == 0


async def test_a_second_interrupt_kills_at_once(dev: Dev) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('up', flush=True); time.sleep(60)"
    )
    declare(dev, a_stream("tasks") + a_group("coder", "tasks", "python", "-c", stubborn))
    await dev.start("m.yaml")
    await dev.line("[coder-0] up")
    dev.process.send_signal(signal.SIGINT)
    since = time.monotonic()
    await dev.line("Ctrl-C again to kill them")
    # what comes sooner is taken for an echo of the first
    await until(lambda: time.monotonic() > since + 0.6)
    assert await dev.end() == 130


async def test_a_killed_dev_leaves_nothing_running_and_can_be_started_again(dev: Dev) -> None:
    declare(dev, coders(scale="replicas: 1"))
    await dev.start("m.yaml")
    await dev.line("[coder-0] up")
    assert await dev.end(signal.SIGKILL) == -signal.SIGKILL
    await dev.start("m.yaml", "--for", "1s")
    assert await dev.wait() == 0


async def test_a_reader_that_goes_away_ends_it(dev: Dev) -> None:
    declare(dev, a_stream("tasks"))
    await dev.start("m.yaml", reading=False)
    assert await dev.wait() == 0


async def test_a_terminal_shows_a_table(dev: Dev) -> None:
    declare(dev, a_stream("tasks") + a_group("coder", "tasks", "sh", "-c", "echo up; sleep 60"))
    await dev.start_on_terminal("m.yaml")
    await until(lambda: all(part in dev.screen for part in ("per second", "dead letters", "1/1", "up")))
    assert "[coder-0] " in dev.screen
    dev.remember()
    dev.process.send_signal(signal.SIGINT)
    assert await dev.wait() == 0
    assert "total" in dev.screen


async def test_bindings_that_cannot_be_written_are_one_line(dev: Dev) -> None:
    (dev.directory / ".agentstream" / "bindings" / "default.coder" / "uri").mkdir(parents=True)
    declare(dev, a_stream("tasks"))
    await dev.start("m.yaml")
    assert await dev.wait() == 2
    assert dev.lines == ["error: cannot write to .agentstream: Is a directory"]


STREAM = ResourceKey("AgentStream", "default", "tasks")


def declare_signed(dev: Dev, rotation: int) -> None:
    signing = f"producers: [boss], signing: {{policy: Require, rotation: {rotation}}}"
    (dev.directory / "m.yaml").write_text(coders(messages=20).replace("producers: [boss]", signing))


async def test_agents_have_the_keys_of_a_signed_stream_and_keep_them_over_a_restart(dev: Dev) -> None:
    data = dev.directory / ".agentstream"
    files = SigningFiles(data / "signing")
    ids = []
    for rotation in (0, 0, 1):
        declare_signed(dev, rotation)
        await dev.start("m.yaml", "--until-idle", "2s", "--output", "json")
        assert await dev.wait() == 0
        total = dev.summary["total"]
        assert (total["acknowledged"], total["lost"], total["deadLettered"]) == (20, 0, 0)
        found = files.read(STREAM)
        assert found is not None
        ids.append([key.id for key in found.keys])
        for agent in ("boss", "coder"):
            assert (data / "bindings" / f"default.{agent}" / "signing-tasks").exists()
        assert not [key for key in found.keys if key.secret in dev.text]
    first, second, third = ids
    assert first == second == third[1:]
    assert len(third) == 2
    path = data / "signing" / "default.tasks"
    assert [stat.S_IMODE(place.stat().st_mode) for place in (path.parent, path)] == [0o700, 0o600]
