"""Compares users and routes on the server with what was written for each agent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from dataclasses import dataclass

from agentstream_operator.cluster.port import Cluster
from agentstream_operator.plan.agents import AgentName, strays
from agentstream_operator.reconcile.loops.server import ServerWatch
from agentstream_operator.reconcile.queue import Priority, WorkQueue
from agentstream_operator.reconcile.state.index import agent_key
from agentstream_operator.reconcile.state.loop_failures import Loop
from agentstream_operator.reconcile.state.memory import AgentMemory
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.resources.meta import ResourceKey


@dataclass(slots=True)
class AccessWatch:
    """Lists users and routes, and queues the agents whose access drifted."""

    state: State
    cluster: Cluster
    queue: WorkQueue[ResourceKey]
    server: ServerWatch

    async def watch(self) -> None:
        """Lists users and routes until cancelled."""
        due = self.state.access.due
        while True:
            due.clear()
            await self.server.guard(Loop.ACCESS, self.list_access())
            with contextlib.suppress(TimeoutError):
                # not wait_for, which in Python 3.11 loses a cancellation that comes with the event
                async with asyncio.timeout(self.state.options.loops.access):
                    await due.wait()

    async def list_access(self) -> None:
        """Lists users and routes once.

        Raises:
            AgentStreamError: the server failed or refused.
        """
        state = self.state
        first = not state.access.listed.is_set()
        await state.access.refresh({name.namespace for name in state.resources.agents})
        drifted = self._drifted(await self.cluster.users())
        if first:
            self.queue.add_all(map(agent_key, state.memory.agents), Priority.RESYNC)
        self.queue.add_all(map(agent_key, drifted), Priority.EVENT)

    def _drifted(self, users: Collection[str]) -> set[AgentName]:
        """Returns the agents whose user or route differs from what was written, or should not exist.

        `users` are those with a Secret: the server may have lost the user itself.
        """
        state = self.state
        access, resources = state.access, state.resources
        found = {name for name, memory in state.memory.agents.items() if not self._in_place(name, memory)}
        if resources.complete:
            options, known = state.options, {*access.users, *users}
            unreadable = resources.unreadable_namespaces
            found.update(
                strays(known, options.installation, resources.agents, options.namespaces, unreadable)
            )
            found.update(name for name in access.routed if name not in resources.agents)
        return found

    def _in_place(self, name: AgentName, memory: AgentMemory) -> bool:
        access, written = self.state.access, memory.written
        return (
            not memory.waiting
            and name in self.state.resources.agents
            and (
                written is None or (access.user(name) == written.user and access.route(name) == written.route)
            )
        )
