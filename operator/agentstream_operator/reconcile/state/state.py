"""The state that reconcilers and loops share, and the options of an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.reconcile.state.live_access import LiveAccess
from agentstream_operator.reconcile.state.loop_failures import LoopFailures
from agentstream_operator.reconcile.state.memory import Memory
from agentstream_operator.resources.parse import AnyResource


@dataclass(frozen=True, slots=True)
class LoopIntervals:
    """Seconds between two rounds of each loop."""

    measure: float = 1.0  # of a stream whose backlog scales consumers
    measure_unscaled: float = 1.0  # of any other stream
    janitor: float = 5.0  # passes over a stream
    access: float = 5.0  # listings of users and routes
    deletion_costs: float = 5.0  # of the pods of groups in mode HPA
    resync: float = 60.0  # checks of a resource, ± 10 %


@dataclass(frozen=True, slots=True)
class StatusIntervals:
    """Seconds by which status writes are delayed."""

    numbers: float = 30.0  # between two writes that only refresh numbers and messages
    progress: float = 5.0  # the same, of a replay, which changes its reasons often, too
    transient: float = 1.0  # for a state that is about to change by itself


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options of an engine."""

    installation: str = "agentstream"  # the prefix of its users and routes
    namespaces: frozenset[str] | None = None  # the watched ones; None for all
    allowed_keys: tuple[str, ...] = ()  # shell patterns of keys that any namespace may claim
    loops: LoopIntervals = LoopIntervals()
    status: StatusIntervals = StatusIntervals()
    server_timeout: float = 3.0  # seconds without an answer after which the server counts as unreachable


@dataclass(slots=True)
class Backend:
    """The server as of the latest probe."""

    outage: str | None = None  # why the server is unreachable
    run_id: str | None = None  # identifies the process that answered
    eviction: str | None = None  # its maxmemory-policy, if that may evict streams


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class State:
    """Holds everything an engine knows; `now` returns the present time, with a time zone."""

    options: EngineOptions
    resources: ResourceIndex
    access: LiveAccess
    memory: Memory = field(default_factory=Memory)
    backend: Backend = field(default_factory=Backend)
    failures: LoopFailures = field(default_factory=LoopFailures)
    now: Callable[[], datetime] = _utc_now

    def deleted_for(self, resource: AnyResource) -> float:
        """Returns the seconds since the deletion of a resource; 0 if it is not being deleted."""
        deletion = resource.metadata.deletion_timestamp
        return (self.now() - deletion).total_seconds() if deletion is not None else 0.0
