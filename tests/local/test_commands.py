"""Commands in the folder of a running `agentstream dev`, which are all that they need."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from support.dev import Dev, a_group, a_stream


class Ended(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


async def run(dev: Dev, *arguments: str, given: str | None = None) -> Ended:
    """Runs `agentstream` in the folder of a `dev`; `given` is its standard input."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agentstream_operator", *arguments),
        cwd=dev.directory,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(None if given is None else given.encode())
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Ended(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[Dev]:
    dev = Dev(tmp_path)
    yield dev
    await dev.close()


def declare(dev: Dev, text: str) -> None:
    (dev.directory / "m.yaml").write_text(text)


async def test_the_doctor_finds_nothing_wrong_and_then_that_it_has_ended(dev: Dev) -> None:
    declare(dev, a_stream("tasks"))
    await dev.start("m.yaml")
    await dev.ready()
    ended = await run(dev, "doctor", "-o", "json")
    found = {check["check"]: check["verdict"] for check in json.loads(ended.out)["checks"]}
    assert (ended.code, set(found.values())) == (0, {"ok"}), ended.out
    assert set(found) == {
        *("api", "server", "eviction", "memory", "durability", "functions", "clock", "resources")
    }
    file = dev.directory / ".agentstream" / "console"
    console = file.read_text()
    assert await dev.end() == 0
    file.write_text(console)
    assert (await run(dev, "doctor")).code == 3


async def test_the_doctor_says_what_is_wrong_with_a_resource(dev: Dev) -> None:
    declare(dev, a_stream("tasks"))
    await dev.start("m.yaml")
    await dev.ready()
    declare(dev, a_stream("tasks") + a_stream("again", 'key: "{default.tasks}"'))
    await dev.line("AgentStream default/again: not ready")
    ended = await run(dev, "doctor")
    assert ended.code == 1
    [line] = [line for line in ended.out.splitlines() if line.startswith("wrong")]
    assert "AgentStream default/again  KeyClaimed: {default.tasks} is already used by the older" in line
    assert await dev.end() == 0


async def test_a_plan_says_what_a_changed_manifest_then_does(dev: Dev) -> None:
    declare(dev, a_stream("tasks") + a_group("coder", "tasks", "sleep", "60"))
    await dev.start("m.yaml")
    await dev.ready()
    assert await run(dev, "plan", "m.yaml") == Ended(0, "2 as declared\n", "")
    new = a_stream("tasks", "retention: {minAge: 1h}") + a_group("other", "tasks", "sleep", "60")
    (dev.directory / "new.yaml").write_text(new)
    code, out, _ = await run(dev, "plan", "new.yaml", "-o", "json")
    acts = [(found["act"], found["name"]) for found in json.loads(out)["changes"]]
    assert (code, acts) == (1, [("change", "tasks"), ("create", "other"), ("remove", "coder")])
    declare(dev, new)
    await dev.line("ConsumerGroup default/other: ready")
    await dev.line("ConsumerGroup default/coder: no longer declared")
    assert (await run(dev, "plan", "new.yaml")).code == 0
    declare(dev, new.replace("tasks", "others"))
    # it does not do what the plan says is refused
    code, out, _ = await run(dev, "plan", "m.yaml")
    assert code == 2
    line = await dev.line("spec.streamRef: ")
    assert line.partition("spec.streamRef: ")[2] in out
    assert await dev.end() == 0


async def test_a_stream_that_is_there_is_imported_and_taken_over(dev: Dev) -> None:
    declare(dev, a_stream("tasks"))
    await dev.start("m.yaml")
    await dev.ready()
    with redis.Redis(
        port=dev.port(), username="agentstream-operator", password=dev.password(), decode_responses=True
    ) as admin:
        for number in range(3):
            admin.xadd("{shop}:orders", {"n": number}, id=f"{1_700_000_000_000 + number}-0")
        admin.xgroup_create("{shop}:orders", "worker", "1700000000000-0")
        admin.xgroup_create("{shop}:orders", "Old One", "0")
        code, out, err = await run(dev, "import", "{shop}:orders", "-n", "shop")
        assert (code, err) == (0, "")
        assert "# the group Old One cannot be declared" in out
        declare(dev, a_stream("tasks") + out)
        await dev.line("StreamAdopted: adopted the stream {shop}:orders with 3 messages")
        await dev.line("ConsumerGroup shop/worker: ready")
        assert admin.xlen("{shop}:orders") == 3
        lag = json.loads((await run(dev, "lag", "shop/worker", "-o", "json")).out)
        assert lag["groups"][0]["undelivered"] == 2
        again = await run(dev, "import", "{shop}:orders", "-n", "shop")
        assert "# it belongs to AgentStream shop/shop-orders of installation agentstream already" in again.out
    missing = await run(dev, "import", "nothing")
    assert missing == Ended(1, "", "error: nothing is no stream: there is no such key\n")
    assert await dev.end() == 0


ANSWERS = """\
import asyncio
from agentstream import Agent, Reject

async def main():
    async with Agent.from_env() as agent:
        async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                if delivery.message.payload.get("fails"):
                    raise Reject("NoSuchTask")
                elif delivery.message.payload.get("n") != 0:
                    await delivery.reply({"twice": 2 * delivery.message.payload["n"]})

asyncio.run(main())
"""


async def test_a_message_is_sent_as_a_producer_and_its_answer_printed(dev: Dev) -> None:
    (dev.directory / "answers.py").write_text(ANSWERS)
    declare(
        dev,
        a_stream("tasks", "producers: [boss, planner]")
        + a_stream("none")
        + a_group("coder", "tasks", "python", "answers.py"),
    )
    await dev.start("m.yaml")
    await dev.ready()
    code, out, err = await run(dev, "send", "coder", '{"n": 21}', "--as", "boss", "--wait")
    assert (code, out, err) == (0, '{"twice": 42}\n', "")
    code, out, _ = await run(dev, "send", "tasks", "-", "--as", "planner", "-o", "json", given='{"n": 1}')
    sent = json.loads(out)
    assert (code, sent["stream"]) == (0, "tasks")
    shown = json.loads((await run(dev, "show", sent["id"], "-o", "json")).out)
    assert (shown["from"], shown["payload"], shown["groups"][0]["group"]) == ("planner", {"n": 1}, "coder")
    late = await run(dev, "send", "coder", '{"n": 0}', "--as", "boss", "--wait", "--timeout", "1s")
    assert (late.code, len(late.err.splitlines())) == (1, 1)
    refused = await run(dev, "send", "coder", '{"fails": true}', "--as", "boss", "--wait")
    assert (refused.code, len(refused.err.splitlines())) == (1, 1)
    assert "NoSuchTask" in refused.err
    assert await dev.end() in {0, 1}
