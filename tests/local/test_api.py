"""The HTTP API of `agentstream dev`, over real connections: with the token of its file, and without."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from support.dev import Dev, a_group, a_stream
from support.waiting import until

MESSAGES = 6
FAILS = """\
import asyncio, pathlib
from agentstream import Agent

async def main():
    async with Agent.from_env() as agent:
        async for delivery in agent.stream_consume("tasks"):
            async with delivery:
                if not pathlib.Path("fixed").exists():
                    raise ValueError("cannot read it")
                with open("replayed.txt", "a") as file:
                    file.write(f"{delivery.message.payload['n']} {delivery.replay}\\n")

asyncio.run(main())
"""
RETRIES = "delivery: {maxDeliveries: 1}"


@pytest.fixture
async def dev(tmp_path: Path) -> AsyncIterator[Dev]:
    dev = Dev(tmp_path)
    (tmp_path / "fails.py").write_text(FAILS)
    (tmp_path / "m.yaml").write_text(
        a_stream("tasks", "producers: [boss]")
        + a_stream("results")
        + a_group("coder", "tasks", "python", "fails.py", scale=f"replicas: 1\n  {RETRIES}")
        + a_group("boss", "results", "python", "boss.py", str(MESSAGES))
    )
    await dev.start("m.yaml")
    await dev.ready()
    yield dev
    await dev.close()


def console(dev: Dev) -> Path:
    return dev.directory / ".agentstream" / "console"


def client(dev: Dev) -> httpx.AsyncClient:
    found = json.loads(console(dev).read_text())
    return httpx.AsyncClient(base_url=found["url"], headers={"Authorization": f"Bearer {found['token']}"})


async def test_dead_letters_are_counted_tried_out_and_replayed(dev: Dev) -> None:
    assert stat.S_IMODE(console(dev).stat().st_mode) == 0o600
    async with client(dev) as http:

        async def dead() -> int:
            (group,) = (await http.get("/queue/lag", params={"group": "coder"})).json()["groups"]
            count: int = group["dead"]
            return count

        await dev.line(f"{MESSAGES} dead letters")
        assert await dead() == MESSAGES
        wanted = {"groupRef": {"name": "coder"}, "from": {"source": "DeadLetters"}}
        tried = await http.post("/queue/replay", json={**wanted, "dryRun": True})
        assert (tried.status_code, tried.json()["matched"], await dead()) == (200, MESSAGES, MESSAGES)
        (dev.directory / "fixed").touch()
        started = await http.post("/queue/replay", json=wanted, headers={"Idempotency-Key": "inc-7"})
        assert started.status_code == 202
        replayed = dev.directory / "replayed.txt"
        await until(lambda: replayed.exists() and len(replayed.read_text().splitlines()) == MESSAGES, 20)
        assert sorted(replayed.read_text().splitlines()) == [f"{n} inc-7" for n in range(MESSAGES)]
        assert (await http.get(started.headers["Location"])).json()["requestedBy"]
    assert await dev.end() == 1
    assert not console(dev).exists()


async def test_the_sentences_of_the_page_work_as_typed(dev: Dev) -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    named = [line[2:] for line in page.splitlines() if line.startswith(("$ TOKEN=", "$ URL="))]
    replay = '{"groupRef": {"name": "coder"}, "from": {"source": "DeadLetters"}, "dryRun": true}'
    curl = 'curl -s -H "Authorization: Bearer $TOKEN" $URL/queue'
    await dev.line(f"{MESSAGES} dead letters")
    for call, field in (
        (f"{curl}/lag/default/coder", "dead"),
        (f"{curl}/replay -X POST -H 'Content-Type: application/json' -d '{replay}'", "matched"),
    ):
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-c", "\n".join([*named[:2], call])), cwd=dev.directory, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await shell.communicate()
        assert json.loads(out)[field] == MESSAGES, out
    assert await dev.end() == 1


async def test_numbers_come_as_they_change_and_end_with_the_run(dev: Dev) -> None:
    async with client(dev) as http, http.stream("GET", "/events", params={"view": "lag"}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        async for line in lines:
            if line.startswith("data: "):
                assert {g["name"] for g in json.loads(line[6:])["groups"]} == {"boss", "coder"}
                break
        assert await dev.end() in {0, 1}
        async for _ in lines:
            pass


async def test_strangers_and_other_sites_learn_nothing(dev: Dev) -> None:
    async with client(dev) as http:
        no_token = await http.get("/queue/lag", headers={"Authorization": "Bearer x"})
        rebound = await http.get("/queue/lag", headers={"Host": "evil.example"})
        another = await http.post("/queue/replay", json={}, headers={"Origin": "http://evil.example"})
        assert [reply.status_code for reply in (no_token, rebound, another)] == [401, 403, 403]
        assert all(
            "application/problem+json" in r.headers["content-type"] for r in (no_token, rebound, another)
        )
        token = json.loads(console(dev).read_text())["token"]
    assert token not in dev.text
    assert await dev.end() in {0, 1}


async def test_a_port_that_is_taken_is_a_line(tmp_path: Path) -> None:
    dev = Dev(tmp_path)
    (tmp_path / "m.yaml").write_text(a_stream("tasks"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        await dev.start("m.yaml", "--api-port", str(port))
        assert await dev.wait() == 2
    await dev.close()
    (line,) = [line for line in dev.lines if "error" in line]
    assert line.startswith(f"error: --api-port: cannot listen on 127.0.0.1:{port}: Address already in use;")
    assert "Traceback" not in dev.text
