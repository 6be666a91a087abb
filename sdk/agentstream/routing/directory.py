"""The routes of a namespace, cached: read when needed, and again when they may have changed."""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from agentstream.errors import AgentStreamError, NoConsumerGroup, NoRoute
from agentstream.protocol.envelope import BROADCAST
from agentstream.protocol.routes import Consumes, Produces, Route, decode_route
from agentstream.routing.choose import consumed_group, target
from agentstream.transport.client import Client
from agentstream.transport.retry import Backoff
from agentstream.transport.single_flight import SingleFlight

_GOOD_FOR = 30.0
# Seconds after which the log says that a declaration is waited for.
_SAID_AFTER = 0.5
_MOST_NAMES = 2_000
_log = logging.getLogger("agentstream")
_Found = TypeVar("_Found", Produces, Consumes)


class Directory:
    """Looks up routes of one namespace.

    Args:
        client: the connection to the server.
        key: the hash with the routes.
        agent: this agent.
    """

    def __init__(self, client: Client, key: str, agent: str) -> None:
        self._client = client
        self._key = key
        self._agent = agent
        self._known: dict[str, tuple[Route | None, float]] = {}
        self._reads: SingleFlight[Route | None] = SingleFlight()
        self._targets: dict[tuple[str, str | None], tuple[Produces, float]] = {}
        self._connects = 0

    def forget(self) -> None:
        """Empties the cache: a route led to an error, or has changed."""
        # a read that is under way may return the old route
        self._known = {}
        self._reads = SingleFlight()
        self._targets = {}

    def forget_older(self, seconds: float) -> None:
        """Removes routes from the cache that were read longer ago than this."""
        until = asyncio.get_running_loop().time() + _GOOD_FOR - seconds
        self._known = {agent: known for agent, known in self._known.items() if known[1] >= until}
        self._targets = {way: found for way, found in self._targets.items() if found[1] >= until}

    async def target(self, to: str, stream: str | None, patience: float) -> Produces:
        """Finds the stream to add to; waits up to `patience` seconds for its declaration.

        Raises:
            NoRoute: there is none, or more than one.
            ConnectionLost, AccessDenied, ServerRefused: as `Client.call`.
        """
        meant: str | None = None

        async def find() -> Produces:
            nonlocal meant
            own = await self._route(self._agent)
            other = None if to == BROADCAST else await self._route(to)
            try:
                produces = target(self._agent, own, to, other, stream)
            except NoRoute as error:
                if other is not None or to == BROADCAST or not patience:
                    raise
                meant = await self._meant(to) if meant is None else meant
                raise NoRoute(f"{error}{meant}") from None
            agents = {self._agent} if to == BROADCAST else {self._agent, to}
            good_until = min(self._known.get(agent, (None, 0.0))[1] for agent in agents)
            self._targets[to, stream] = produces, good_until
            return produces

        return await self._patiently(find, patience)

    def known(self, to: str, stream: str | None, now: float) -> Produces | None:
        """The result of `target` in the cache, if there is a current one."""
        if self._connects != self._client.connects:
            return None
        produces, good_until = self._targets.get((to, stream), (None, 0.0))
        return produces if now < good_until else None

    async def consumed(self, stream: str | None, group: str | None, patience: float) -> Consumes:
        """Finds the group to read; waits up to `patience` seconds for its declaration.

        Raises:
            NoConsumerGroup: there is none, or more than one.
            ConnectionLost, AccessDenied, ServerRefused: as `Client.call`.
        """

        async def find() -> Consumes:
            return consumed_group(self._agent, await self._route(self._agent), stream, group)

        return await self._patiently(find, patience)

    async def _patiently(self, find: Callable[[], Awaitable[_Found]], patience: float) -> _Found:
        loop = asyncio.get_running_loop()
        began, is_said = loop.time(), False
        deadline = began + patience
        backoff = Backoff(0.1, 1.0)
        while True:
            is_fresh = not self._known
            try:
                return await find()
            except (NoRoute, NoConsumerGroup) as error:
                self.forget()
                now = loop.time()
                if is_fresh and now >= deadline:
                    raise
                if not is_said and now >= began + _SAID_AFTER:
                    is_said = True
                    _log.warning("%s; waiting %.0f s for a declaration", error, deadline - now)
            if is_fresh:
                await asyncio.sleep(min(backoff.next(), max(deadline - loop.time(), 0)))

    async def _meant(self, to: str) -> str:
        """Looks for an agent of a similar name, for an error. Empty if there is none."""
        try:
            known = await self._client.call("HKEYS", self._key)
        except AgentStreamError:
            return ""
        names = [name.decode() for name in known[:_MOST_NAMES]]
        return "".join(f"; did you mean {name}?" for name in difflib.get_close_matches(to, names, 1))

    async def _route(self, agent: str) -> Route | None:
        if self._connects != self._client.connects:
            self.forget()
            self._connects = self._client.connects
        route, good_until = self._known.get(agent, (None, 0.0))
        if asyncio.get_running_loop().time() < good_until:
            return route
        return await self._reads.do(agent, partial(self._read, agent, self._known))

    async def _read(self, agent: str, known: dict[str, tuple[Route | None, float]]) -> Route | None:
        now = asyncio.get_running_loop().time()
        data = await self._client.call("HGET", self._key, agent)
        self._connects = self._client.connects
        route = None if data is None else decode_route(data)
        known[agent] = (route, now + _GOOD_FOR)
        return route
