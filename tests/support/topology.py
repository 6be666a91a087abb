"""Streams, groups and routes as the operator leaves them, without the operator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

import msgspec
import pytest

from agentstream.agent import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.consuming.dispatch import Dispatcher
from agentstream.consuming.presence import this_place
from agentstream.identity.settings import Settings
from agentstream.protocol import commands
from agentstream.protocol.envelope import Message
from agentstream.protocol.keys import (
    ConsumerProcess,
    StreamKeys,
    consumer_name,
    default_stream_key,
    routes_key,
)
from agentstream.protocol.routes import Consumes, Produces, Route, encode_route
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint

NAMESPACE = "test"
HANDED_BACK = 86_400_000
"""For so many ms or longer, what is anybody's seems to be idle."""


def ended(pod: str, started: int = 1) -> str:
    """The name of a consumer of this machine whose process has ended."""
    return consumer_name(pod, ConsumerProcess(started, 1, this_place() or "nowhere"))


# at one moment: what is tried again goes to and fro between the two
_LEFT = "return redis.call('XLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2])"


@dataclass
class Topology:
    """What is declared on one server.

    Attributes:
        wire: an administrator's connection.
        url: where agents connect to.
    """

    wire: Client
    url: str
    routes: dict[str, Route] = field(default_factory=dict)

    async def stream(self, name: str, *producers: str, broadcast: bool = False, **more: Any) -> StreamKeys:
        """A stream to which the agents produce."""
        key = default_stream_key(NAMESPACE, name)
        keys = StreamKeys(key)
        await self.wire.call(*commands.create_stream(key, {"name": name}))
        for producer in producers:
            await self._route(producer, produces=(Produces(name, key, broadcast, **more),))
        return keys

    async def group(self, stream: str, agent: str, start: str = "0", **policy: Any) -> Consumes:
        """A group of the same name as the agent that consumes it. Short times, where the test names none."""
        key = default_stream_key(NAMESPACE, stream)
        short = {"lease": 2_000, "backoff_initial": 20, "backoff_max": 200}
        consumes = Consumes(stream, key, group=agent, **{**short, **policy})
        await self.wire.call(*commands.create_group(key, agent, start))
        await self._route(agent, consumes=(consumes,))
        return consumes

    async def write_routes(self) -> None:
        """The routes again, as after a loss of all data."""
        for agent in self.routes:
            route = encode_route(self.route(agent))
            await self.wire.call("HSET", routes_key("agentstream", NAMESPACE), agent, route)

    def route(self, agent: str) -> Route:
        """An agent's route, with the groups that broadcast streams have by now."""
        route = self.routes[agent]
        return Route(tuple(self._with_groups(produces) for produces in route.produces), route.consumes)

    def _with_groups(self, produces: Produces) -> Produces:
        if not produces.broadcast:
            return produces
        groups = (c.group for route in self.routes.values() for c in route.consumes if c.key == produces.key)
        return msgspec.structs.replace(produces, groups=tuple(sorted(groups)))

    async def forget_route(self, agent: str) -> None:
        """The agent is declared nowhere any more."""
        self.routes.pop(agent, None)
        await self.wire.call("HDEL", routes_key("agentstream", NAMESPACE), agent)

    async def _route(
        self, agent: str, produces: tuple[Produces, ...] = (), consumes: tuple[Consumes, ...] = ()
    ) -> None:
        known = self.routes.get(agent, Route())
        self.routes[agent] = Route((*known.produces, *produces), (*known.consumes, *consumes))
        await self.write_routes()

    def settings(self, agent: str, pod: str | None = None, url: str | None = None) -> Settings:
        """How an agent connects; each in a pod of its own, if the test names none."""
        return Settings(
            namespace=NAMESPACE, agent=agent, source=Endpoint(url or self.url), pod=pod or f"{agent}-pod"
        )

    def agent(self, name: str, pod: str | None = None, url: str | None = None) -> Agent:
        """An agent that is not connected yet."""
        return Agent.connect(self.settings(name, pod, url))

    async def pending(self, consumes: Consumes, *, retries: bool = False) -> list[tuple[str, str, int, int]]:
        """What is pending in a group: id, consumer, idle ms, delivery counter."""
        key = StreamKeys(consumes.key).retry(consumes.group) if retries else consumes.key
        reply = await self.wire.call("XPENDING", key, consumes.group, "-", "+", 1000)
        return [(entry.decode(), name.decode(), idle, counter) for entry, name, idle, counter in reply]

    async def left_behind(self, consumes: Consumes, *attempts: int) -> list[str]:
        """Has a process that is gone take what is new, so that anybody may claim it at once.

        Args:
            consumes: the group.
            attempts: how many began of the first entries; one of each further one.

        Returns:
            The ids of what it took.
        """
        key, who = consumes.key, (consumes.group, "gone.1")
        await self.wire.call("XREADGROUP", "GROUP", *who, "STREAMS", key, ">")
        taken = [entry for entry, *_ in await self.pending(consumes)]
        for entry, count in zip(taken, chain(attempts, repeat(1)), strict=False):
            options = ("TIME", 0, "RETRYCOUNT", count, "JUSTID")
            await self.wire.call("XCLAIM", key, *who, 0, entry, *options)
        return taken

    async def dead_letters(self, consumes: Consumes) -> list[dict[str, bytes]]:
        """The fields of the group's dead letters."""
        reply = await self.wire.call(
            "XRANGE", StreamKeys(consumes.key).dead_letters(consumes.group), "-", "+"
        )
        return [fields_of(fields) for _, fields in reply]

    async def stats(self, consumes: Consumes) -> dict[str, int]:
        """The group's counters."""
        fields = fields_of(await self.wire.call("HGETALL", StreamKeys(consumes.key).stats(consumes.group)))
        return {name: int(value) for name, value in fields.items() if value.isdigit()}

    async def settled(self, consumes: Consumes, count: int) -> bool:
        """Whether the group settled that many of the stream's entries, and has nothing pending or delayed."""
        keys = StreamKeys(consumes.key)
        retry, delay = keys.retry(consumes.group), keys.delay(consumes.group)
        return (
            (await self.stats(consumes)).get("settled", 0) == count
            and await self.wire.call("EVAL", _LEFT, 2, retry, delay) == 0
            and not await self.pending(consumes)
        )

    async def add_raw(self, key: str, body: bytes) -> str:
        """An entry as somebody without an SDK would add it."""
        entry: bytes = await self.wire.call("XADD", key, "*", "m", body)
        return entry.decode()


def fields_of(flat: Iterable[bytes]) -> dict[str, bytes]:
    """A flat list of names and values as a dict."""
    parts = list(flat)
    return {name.decode(): value for name, value in zip(parts[::2], parts[1::2], strict=True)}


def body_of(message: Message, **changes: Any) -> bytes:
    """The JSON of a message with other values."""
    return msgspec.json.encode({**msgspec.to_builtins(message), **changes})


async def send(topology: Topology, *payloads: int) -> None:
    """Sends events with these numbers from `planner` to `coder`, at one moment and in this order."""
    async with topology.agent("planner") as planner:
        await asyncio.gather(
            *(planner.send_message(to="coder", type="event", payload={"n": n}) for n in payloads)
        )


async def numbers(deliveries: AsyncIterator[Delivery], count: int) -> list[int]:
    """Handles `count` messages and returns the numbers in their payloads."""
    seen: list[int] = []
    async with asyncio.timeout(20):
        async for delivery in deliveries:
            async with delivery:
                seen.append(delivery.message.payload["n"])
            if len(seen) == count:
                break
    return seen


async def following(deliveries: AsyncIterator[Delivery]) -> Delivery:
    """The next delivery, in time."""
    async with asyncio.timeout(10):
        return await anext(deliveries)


def started_for_nobody(monkeypatch: pytest.MonkeyPatch, asking: asyncio.Task[Delivery]) -> None:
    """Whoever asked for the next delivery is gone at the very moment when there is one."""
    wake = Dispatcher._wake

    def wake_and_cancel(dispatch: Dispatcher, count: int) -> None:
        wake(dispatch, count)
        if count:
            monkeypatch.undo()
            asking.cancel()

    monkeypatch.setattr(Dispatcher, "_wake", wake_and_cancel)
