"""The ports of a reconciler, and the steps that reconcilers of all kinds share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agentstream.printable import printable
from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.port import Cluster, Event
from agentstream_operator.plan.actions import DeleteStream
from agentstream_operator.plan.agents import AgentName, agents_of
from agentstream_operator.plan.conditions import CREDENTIALS_APPLIED, EventNote, Plan
from agentstream_operator.reconcile.observer import Observer
from agentstream_operator.reconcile.queue import Priority, TryAgain, WorkQueue
from agentstream_operator.reconcile.state.index import agent_key, owner_of
from agentstream_operator.reconcile.state.state import State
from agentstream_operator.reconcile.status import StatusWriter
from agentstream_operator.resources.meta import FINALIZER, NamespaceSeen, ResourceKey
from agentstream_operator.resources.parse import AnyResource, StreamOrGroup

_ROUNDS = 3
"""Rounds in a row that may change something on the server before the next one waits for the backoff."""


@dataclass(frozen=True, slots=True)
class Context:
    """Holds the ports of a reconciler."""

    state: State
    broker: Broker
    cluster: Cluster
    queue: WorkQueue[ResourceKey]
    status: StatusWriter
    observer: Observer

    async def namespace(self, name: str) -> NamespaceSeen:
        """Returns a namespace as it was read since a resource of it was removed last.

        Raises:
            ClusterUnavailable, ClusterRefused: it cannot be read.
        """
        known = self.state.memory.namespaces
        if name not in known:
            known[name] = await self.cluster.namespace(name)
        return known[name]

    async def apply(self, stream: ResourceKey, plan: Plan) -> tuple[EventNote, ...]:
        """Applies the actions of a plan for a stream or one of its groups. Returns the events to emit.

        Raises:
            AgentStreamError: the server failed or refused an action; the later ones were not applied.
        """
        refused = False
        for action in plan.actions:
            try:
                reply = await self.broker.apply(action)
            finally:
                self.state.memory.invalidate(stream)
            # a stream that was to be deleted if empty, and is not
            refused = refused or (isinstance(action, DeleteStream) and not reply)
        return plan.refused if refused else plan.events

    def recheck(self, resource: StreamOrGroup) -> float | None:
        """Returns the delay (0) before the result of applied actions is checked.

        None if the resource is queued anyway, when its agents are written.

        Raises:
            TryAgain: the actions had to be repeated too often.
        """
        reported = self.state.memory.reported(resource)
        reported.rounds += 1
        if reported.rounds > _ROUNDS:
            raise TryAgain("changes on the server are undone repeatedly by another client")
        waiting = self.state.memory.state_of(agents_of(resource)).waiting
        return None if waiting and CREDENTIALS_APPLIED not in reported.conditions else 0.0

    def requeue_agents(self, names: Iterable[AgentName], priority: Priority = Priority.EVENT) -> None:
        """Marks agents as changed and queues them."""
        for name in names:
            self.state.memory.agents[name].changes += 1
            self.queue.add(agent_key(name), priority)

    async def emit(self, about: AnyResource, notes: Iterable[EventNote]) -> None:
        """Emits events of a resource."""
        for note in notes:
            await self.cluster.emit(
                Event(
                    about.key, note.reason, printable(note.message, 1_000), note.warning, about.metadata.uid
                )
            )

    async def set_finalizer(self, resource: AnyResource, *, present: bool) -> None:
        """Adds or removes the finalizer where that changes anything."""
        reported = self.state.memory.reported(resource)
        before = reported.finalizer
        if present != (FINALIZER in resource.metadata.finalizers if before is None else before):
            await self.cluster.set_finalizer(owner_of(resource), present=present)
            reported.finalizer = present
