"""What is destroyed under live agents comes back by the operator, and they go on by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentstream import Agent
from agentstream.identity.settings import Binding, Settings
from agentstream.protocol.keys import StreamKeys
from faults.conftest import drilled
from faults.drill import Drill
from support.operator import Operator, operator
from support.resources import KEY, a_group, a_stream
from support.servers import Server
from support.waiting import until

STREAM = a_stream(producers=["planner"])
GROUP = a_group(
    startFrom="Beginning", delivery={"lease": "5s", "backoff": {"initial": "10ms", "max": "100ms"}}
)


@dataclass
class Team:
    """Agents with the users and the Secrets that an operator made for them.

    Attributes:
        op: the operator.
        server: the server.
        drill: what they do.
        secrets: where their Secrets are mounted.
    """

    op: Operator
    server: Server
    drill: Drill
    secrets: Path
    agents: dict[str, Agent] = field(default_factory=dict)

    def mount(self, name: str) -> Path:
        """Writes an agent's Secret as it is now where the agent reads it."""
        directory = self.secrets / name
        directory.mkdir(exist_ok=True)
        made = self.op.cluster.secrets["team", name]
        entries = {"uri": self.server.url, "username": made.username, "password": made.password}
        for entry, text in {**entries, "agent": name, "namespace": "team"}.items():
            (directory / entry).write_text(text, encoding="utf-8")
        return directory

    async def connections(self, name: str) -> set[bytes]:
        """The ids of an agent's connections."""
        listed: bytes = await self.drill.wire.call("CLIENT", "LIST")
        user = f" user=agentstream.team.{name} ".encode()
        return {line.split(b" ", 1)[0] for line in listed.splitlines() if user in line}

    async def noted(self, number: int) -> bool:
        """Whether this message is the checkpoint of the group."""
        checkpoint = await self.drill.wire.call("HGET", StreamKeys(KEY).meta, "checkpoint:coder")
        return bool(checkpoint == self.drill.accepted[number].encode())

    def agent(self, name: str) -> Agent:
        """An agent, the same one whenever it is asked for."""
        if name not in self.agents:
            source = Binding(self.mount(name))
            settings = Settings(namespace="team", agent=name, source=source, pod=f"{name}-0")
            self.agents[name] = Agent.connect(settings)
        return self.agents[name]


@pytest.fixture
async def team(private_server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Team]:
    """An operator that runs, and a consumer that has handled fifty messages."""
    async with operator(private_server.url, STREAM, GROUP) as op:
        await op.ready(STREAM.key)
        await op.ready(GROUP.key)
        await until(lambda: {("team", "planner"), ("team", "coder")} <= op.cluster.secrets.keys())
        async for drill in drilled(private_server.url, KEY, tmp_path, request):
            team = Team(op, private_server, drill, tmp_path)
            drill.consume(team.agent("coder"), handlers=4)
            await drill.send(team.agent("planner"), range(50))
            await until(drill.settled)
            yield team
            for agent in team.agents.values():
                await agent.__aexit__(None, None, None)


async def in_hand(team: Team) -> None:
    """Four handlers have a message that takes a while, and nothing waits."""
    await team.drill.send(team.agent("planner"), range(50, 54), takes=0.5)
    await until(lambda: len(team.drill.ledger.records("began")) == 54)


async def test_a_server_is_flushed(team: Team) -> None:
    await in_hand(team)
    await team.drill.wire.call("FLUSHALL")
    team.drill.healed()
    # waits for the stream, and is not told of it
    await team.drill.send(team.agent("planner"), range(54, 150))
    await team.drill.over("FLUSHALL under live agents", renewed=True)
    assert {record.number for record in team.drill.ledger.records("refused")} == {50, 51, 52, 53}


async def test_a_group_is_destroyed(team: Team) -> None:
    planner = team.agent("planner")
    await until(lambda: team.noted(49))
    await team.drill.send(planner, range(50, 90), takes=0.05)
    await until(lambda: len(team.drill.ledger.records("done")) > 60)
    await team.drill.wire.call("XGROUP", "DESTROY", KEY, "coder")
    team.drill.healed()
    await team.drill.send(planner, range(90, 150))
    # it comes back where the last checkpoint is: what was handled since, and what was in hand, comes again
    await team.drill.over("group destroyed under a live consumer", twice=40, renewed=True)


async def test_a_stream_is_deleted(team: Team) -> None:
    await in_hand(team)
    await team.drill.wire.call("DEL", KEY)
    team.drill.healed()
    await team.drill.send(team.agent("planner"), range(54, 150))
    await team.drill.over("stream deleted under live agents", renewed=True)


async def test_a_stream_is_of_another_type_for_a_while(team: Team) -> None:
    await in_hand(team)
    await team.drill.wire.call("DEL", KEY)
    await team.drill.wire.call("SET", KEY, "mine")
    sending = asyncio.create_task(team.drill.send(team.agent("planner"), range(54, 150)))
    await asyncio.wait({sending}, timeout=1)
    assert not sending.done()
    assert await team.drill.wire.call("GET", KEY) == b"mine"
    await team.drill.wire.call("DEL", KEY)
    team.drill.healed()
    await sending
    await team.drill.over("key of another type for a second", renewed=True)


async def test_a_retry_stream_is_deleted(team: Team) -> None:
    await in_hand(team)
    await team.drill.wire.call("DEL", f"{KEY}:retry:coder")
    team.drill.healed()
    await team.drill.send(team.agent("planner"), range(54, 150), fails=1)
    # what is in hand of the main stream is held none the less
    await team.drill.over("retry stream deleted under a live consumer")


async def test_a_server_is_restarted_without_its_users(team: Team) -> None:
    await in_hand(team)
    team.server.kill()
    (team.server.directory / "users.acl").write_text("", encoding="utf-8")
    await asyncio.to_thread(team.server.start)
    team.drill.healed()
    await team.drill.send(team.agent("planner"), range(54, 150))
    await team.drill.over("server killed, restarted without ACL file")


async def test_credentials_are_rotated_under_traffic(team: Team) -> None:
    planner = team.agent("planner")
    for round_ in range(1, 4):
        sending = asyncio.create_task(
            team.drill.send(planner, range(round_ * 100, round_ * 100 + 100), takes=0.005)
        )
        for name in ("planner", "coder"):
            before = await until(lambda name=name: team.connections(name))
            old = team.op.cluster.secrets.pop(("team", name))
            team.op.engine.check_all()
            await until(lambda name=name: ("team", name) in team.op.cluster.secrets)
            assert team.op.cluster.secrets["team", name].password != old.password
            await team.op.engine.idle()
            # the operator has closed what was connected with the old password
            assert not before & await team.connections(name)
            team.mount(name)
        team.drill.healed()
        await sending
    await team.drill.over("credentials rotated 3 times under traffic")
