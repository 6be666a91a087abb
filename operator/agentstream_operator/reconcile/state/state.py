"""The state that reconcilers and loops share, and the options of an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.reconcile.state.live_access import LiveAccess
from agentstream_operator.reconcile.state.memory import Memory
from agentstream_operator.resources.parse import AnyResource


@dataclass(frozen=True, slots=True)
class LoopIntervals:
    """Seconds between two rounds of each loop.

    Attributes:
        measure: measurements of a stream whose backlog scales consumers.
        measure_unscaled: measurements of any other stream.
        janitor: passes of the janitor over a stream.
        access: listings of users and routes.
        deletion_costs: updates of the pod deletion costs of groups in mode HPA.
        resync: checks of a resource, ± 10 %.
    """

    measure: float = 1.0
    measure_unscaled: float = 1.0
    janitor: float = 5.0
    access: float = 5.0
    deletion_costs: float = 5.0
    resync: float = 60.0


@dataclass(frozen=True, slots=True)
class StatusIntervals:
    """Seconds by which status writes are delayed.

    Attributes:
        numbers: between two writes that only refresh numbers and messages.
        transient: for a state that is about to change by itself.
    """

    numbers: float = 30.0
    transient: float = 1.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options of an engine.

    Attributes:
        installation: the prefix of the installation's users and routes.
        namespaces: the watched namespaces; None for all.
        allowed_keys: shell patterns of stream keys that any namespace may claim.
        loops: intervals of the loops.
        status: delays of status writes.
        server_timeout: seconds without an answer after which the server counts as unreachable.
    """

    installation: str = "agentstream"
    namespaces: frozenset[str] | None = None
    allowed_keys: tuple[str, ...] = ()
    loops: LoopIntervals = LoopIntervals()
    status: StatusIntervals = StatusIntervals()
    server_timeout: float = 3.0


@dataclass(slots=True)
class Backend:
    """The server as of the latest probe.

    Attributes:
        outage: why the server is unreachable; None while it answers.
        run_id: identifies the process that answered.
        eviction: its maxmemory-policy, if that may evict streams.
    """

    outage: str | None = None
    run_id: str | None = None
    eviction: str | None = None


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class State:
    """Holds everything an engine knows.

    Attributes:
        options: the engine's options.
        resources: all resources, indexed.
        access: users and routes on the server.
        memory: what is remembered of each resource.
        backend: the server.
        now: returns the present time, with a time zone.
    """

    options: EngineOptions
    resources: ResourceIndex
    access: LiveAccess
    memory: Memory = field(default_factory=Memory)
    backend: Backend = field(default_factory=Backend)
    now: Callable[[], datetime] = _utc_now

    def deleted_for(self, resource: AnyResource) -> float:
        """Returns the seconds since the deletion of a resource; 0 if it is not being deleted."""
        deletion = resource.metadata.deletion_timestamp
        return (self.now() - deletion).total_seconds() if deletion is not None else 0.0
