"""A signed stream whose agents have Secrets of their own, which tests write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from agentstream.agent import Agent
from agentstream.identity.settings import Binding, Settings
from agentstream.protocol.keys import default_stream_key
from agentstream.protocol.routes import Consumes, Route
from agentstream.protocol.signatures import SigningEntry, SigningKey, encode_signing, entry_name
from support.topology import NAMESPACE, Topology, fields_of

KEY = default_stream_key(NAMESPACE, "tasks")
OLD, NEW = SigningKey("old", "o" * 43), SigningKey("new", "n" * 43)


class Signed:
    """`planner` produces to `tasks`, which `coder` consumes, and each has a Secret of its own.

    Attributes:
        topology: what is declared.
        policy: what the Secrets say of `tasks`.
        group: the group of `coder`.
    """

    def __init__(self, topology: Topology, directory: Path) -> None:
        self.topology = topology
        self.policy = "Off"
        self._directory = directory
        self.group: Consumes

    async def declare(self, policy: str, **more: Any) -> Signed:
        """Declares stream and group with a policy."""
        self.policy = policy
        await self.topology.stream("tasks", "planner")
        self.group = await self.topology.group("tasks", "coder", signatures=policy, **more)
        (produces,) = self.topology.routes["planner"].produces
        signing = msgspec.structs.replace(produces, signatures=policy)
        self.topology.routes["planner"] = Route(produces=(signing,))
        await self.topology.write_routes()
        for agent in ("planner", "coder"):
            (self._directory / agent).mkdir()
            self.write(agent, "uri", self.topology.url)
        return self

    def write(self, agent: str, entry: str, text: str) -> None:
        """Writes an entry of an agent's Secret as a mount does, in one step."""
        fresh = self._directory / agent / f".{entry}"
        fresh.write_text(text)
        fresh.replace(self._directory / agent / entry)

    def give(self, agent: str, *keys: SigningKey) -> None:
        """Gives an agent these keys, the newest first, and the policy."""
        self.write(agent, entry_name("tasks"), encode_signing(SigningEntry(self.policy, keys)))

    def agent(self, name: str, url: str | None = None) -> Agent:
        """An agent with its Secret."""
        if url is not None:
            self.write(name, "uri", url)
        source = Binding(self._directory / name)
        return Agent.connect(Settings(namespace=NAMESPACE, agent=name, source=source, pod=f"{name}-pod"))

    async def send(self, *payloads: int) -> None:
        """Has the planner send numbers."""
        async with self.agent("planner") as planner:
            for n in payloads:
                await planner.send_message(to="coder", type="event", payload={"n": n})

    async def add(self, *fields: bytes | str) -> None:
        """Adds an entry without an SDK."""
        await self.topology.wire.call("XADD", KEY, "*", *fields)

    async def entries(self) -> list[dict[str, bytes]]:
        """The fields of what is on the stream."""
        return [fields_of(fields) for _, fields in await self.topology.wire.call("XRANGE", KEY, "-", "+")]

    async def reasons(self) -> list[str]:
        """Why messages became dead letters."""
        return [record["reason"].decode() for record in await self.topology.dead_letters(self.group)]
