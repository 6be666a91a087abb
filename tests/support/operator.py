"""A running operator for tests: the engine against a real server, with the cluster in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from agentstream_operator.broker.broker import Broker
from agentstream_operator.reconcile.engine import Engine
from agentstream_operator.reconcile.state.state import EngineOptions, LoopIntervals, StatusIntervals
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.status import ConditionReason
from agentstream_operator.resources.streamreplay import StreamReplay
from support.cluster import MemoryCluster
from support.waiting import until

FAST = EngineOptions(
    loops=LoopIntervals(measure=0.02, janitor=0.05, access=0.05, deletion_costs=0.05, resync=2.0),
    status=StatusIntervals(numbers=0.05, progress=0.05, transient=0.2),
    server_timeout=1.0,
)
Resource = AgentStream | ConsumerGroup | StreamReplay


@dataclass
class Operator:
    """An engine that runs.

    Attributes:
        engine: the engine.
        cluster: what it writes to.
        broker: its side of the server.
    """

    engine: Engine
    cluster: MemoryCluster
    broker: Broker

    async def put(self, *resources: Resource) -> None:
        """Declares resources, and waits until all are in effect."""
        for resource in resources:
            self.engine.put(self.cluster.as_stored(resource))
        for resource in resources:
            await self.ready(resource.key)

    def declare(self, *resources: Resource) -> None:
        """Declares resources."""
        for resource in resources:
            self.engine.put(self.cluster.as_stored(resource))

    async def delete(self, resource: Resource, annotations: dict[str, str] | None = None) -> None:
        """Deletes a resource as the API server does, and waits until it is gone."""
        self.begin_deletion(resource, annotations)
        await until(lambda: resource.key not in self.cluster.finalizers)
        await self.engine.idle()
        self.engine.remove(resource.key)
        self.cluster.forget(resource.key)
        await self.engine.idle()

    def begin_deletion(
        self, resource: Resource, annotations: dict[str, str] | None = None, *, since: datetime | None = None
    ) -> None:
        """Marks a resource as deleted."""
        metadata = resource.metadata.model_copy(
            update={"deletion_timestamp": since or datetime.now(UTC), "annotations": annotations or {}}
        )
        self.declare(resource.model_copy(update={"metadata": metadata}))

    async def ready(self, key: ResourceKey) -> None:
        """Waits until a resource is in effect."""
        await until(lambda: self.cluster.ready(key))

    async def event(self, about: ResourceKey, reason: ConditionReason) -> None:
        """Waits for an event."""
        await until(lambda: reason in self.cluster.reasons(about))


@contextlib.asynccontextmanager
async def operator(
    url: str,
    *resources: Resource,
    cluster: MemoryCluster | None = None,
    complete: bool = True,
    broker: Any = None,
    allowed_keys: Iterable[str] = (),
    namespaces: Iterable[str] | None = None,
    options: EngineOptions = FAST,
) -> AsyncIterator[Operator]:
    """Runs an operator to which these resources are declared.

    Args:
        url: the server.
        resources: declared before it starts, with the statuses that the cluster has.
        cluster: where they live; a new one if absent.
        complete: whether everything has been listed.
        broker: stands between the operator and the server.
        allowed_keys: as in `Engine`.
        namespaces: as in `Engine`.
        options: as in `Engine`, but for those two.
    """
    cluster = cluster or MemoryCluster()
    own = await Broker.connect(url, installation="agentstream")
    engine = Engine(
        broker(own) if broker is not None else own,
        cluster,
        replace(
            options,
            allowed_keys=tuple(allowed_keys),
            namespaces=frozenset(namespaces) if namespaces is not None else None,
        ),
    )
    for resource in resources:
        engine.put(cluster.as_stored(resource))
    if complete:
        engine.listed()
    running = asyncio.create_task(engine.run())
    try:
        yield Operator(engine, cluster, own)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await own.close()
