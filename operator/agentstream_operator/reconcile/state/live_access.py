"""Users and routes on the server: the latest listing, with this process's changes since."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from agentstream.protocol.keys import routes_key, user_name
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.agents import AgentName
from agentstream_operator.plan.observed import UserSeen

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Listing:
    """A listing, and the agents changed since it began."""

    users: dict[str, UserSeen] = field(default_factory=dict)
    routes: dict[AgentName, bytes] = field(default_factory=dict)
    changed: set[AgentName] = field(default_factory=set)


class LiveAccess:
    """Knows the users and routes of an installation."""

    def __init__(self, broker: Broker, installation: str) -> None:
        self._broker = broker
        self._installation = installation
        self._live = _Listing()
        # set while a listing since the server's last outage or restart exists
        self.listed = asyncio.Event()
        # set when the next listing is due at once
        self.due = asyncio.Event()

    @property
    def users(self) -> Iterable[str]:
        """Names of the installation's users."""
        return self._live.users.keys()

    @property
    def routed(self) -> Iterable[AgentName]:
        """The agents with a route."""
        return self._live.routes.keys()

    def user(self, name: AgentName) -> UserSeen | None:
        """Returns what was seen of an agent's user, if it exists."""
        return self._live.users.get(user_name(self._installation, *name))

    def route(self, name: AgentName) -> bytes | None:
        """Returns the agent's field of the routes hash."""
        return self._live.routes.get(name)

    def user_set(self, name: AgentName, seen: UserSeen | None) -> None:
        """Notes that this process set an agent's user, or removed it (None)."""
        _set(self._live.users, user_name(self._installation, *name), seen)
        self._live.changed.add(name)

    def route_set(self, name: AgentName, route: bytes | None) -> None:
        """Notes that this process wrote an agent's route, or removed it (None)."""
        _set(self._live.routes, name, route)
        self._live.changed.add(name)

    async def refresh(self, namespaces: Iterable[str]) -> None:
        """Lists the users, and the routes of these namespaces and of those with users; one call at a time.

        Raises:
            AgentStreamError: as `Broker.users`.
        """
        self._live.changed.clear()
        fresh = _Listing(users=dict(await self._broker.users()))
        of_users = {user.rsplit(".", 2)[1] for user in fresh.users}
        everywhere = sorted({*namespaces, *of_users})
        tables = await asyncio.gather(
            *(self._broker.routes(routes_key(self._installation, namespace)) for namespace in everywhere)
        )
        for namespace, routes in zip(everywhere, tables, strict=True):
            fresh.routes.update((AgentName(namespace, agent), route) for agent, route in routes.items())
        for name in self._live.changed:
            # the listing may be older than changes made meanwhile
            _set(fresh.users, user_name(self._installation, *name), self.user(name))
            _set(fresh.routes, name, self.route(name))
        self._live = fresh
        self.listed.set()


def _set(mapping: dict[K, V], key: K, value: V | None) -> None:
    if value is None:
        mapping.pop(key, None)
    else:
        mapping[key] = value
