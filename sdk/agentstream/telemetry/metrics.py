"""Exports the counters of a process's agents to Prometheus; see docs/metrics.md.

Only exporting needs `prometheus_client`, so it is imported at the first export.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import msgspec

from agentstream.telemetry import counters
from agentstream.telemetry.counters import BOUNDS, Counters

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

__all__ = ["register"]

_PREFIX = "agentstream_client"
_AGENT = ("namespace", "agent")
_GROUP = ("stream", "group")


class MetricKind(StrEnum):
    """The kind of a metric, as Prometheus calls it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Family(msgspec.Struct, frozen=True):
    """A metric.

    Attributes:
        counted: name of the counter.
        kind: the kind of metric.
        labels: its labels, beside those of the agent.
        text: the help text.
    """

    counted: str
    kind: MetricKind
    labels: tuple[str, ...]
    text: str

    @property
    def name(self) -> str:
        """The name in Prometheus."""
        name = f"{_PREFIX}_{self.counted}"
        return f"{name}_total" if self.kind is MetricKind.COUNTER else name


_COUNTER, _GAUGE, _HISTOGRAM = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM
_HELD = Family("held", _GAUGE, (*_GROUP, "state"), "Messages with a lease: running or buffered")

FAMILIES: Final = (
    Family(counters.SENDING, _HISTOGRAM, ("stream",), "Seconds from a call to the server's reply"),
    Family(counters.REFUSED, _COUNTER, ("stream", "error"), "Refusals to take a message"),
    Family(counters.FAILED, _COUNTER, ("error",), "Messages whose sending ended with an error"),
    Family(counters.SHED, _COUNTER, ("stream",), "Events dropped because the stream was full"),
    Family(counters.REPEATED, _COUNTER, ("stream",), "Batches sent again because no reply came"),
    Family(counters.RECEIVED, _COUNTER, _GROUP, "Deliveries that were read or claimed"),
    Family(counters.SETTLED, _COUNTER, (*_GROUP, "outcome", "reason"), "Deliveries that were settled"),
    Family(counters.HANDLING, _HISTOGRAM, _GROUP, "Seconds from handing a message out to settling it"),
    _HELD,
    Family(counters.LEASES_LOST, _COUNTER, _GROUP, "Deliveries that others claimed before they were settled"),
    Family(counters.VERIFIED, _COUNTER, _GROUP, "Messages with a valid signature"),
    Family(counters.UNVERIFIED, _COUNTER, (*_GROUP, "reason"), "Messages without a valid signature"),
    Family(counters.ANSWERS_UNVERIFIED, _COUNTER, ("stream", "reason"), "Answers without a valid signature"),
    Family(counters.IN_DOUBT, _COUNTER, _GROUP, "Effects that may or may not have come about"),
    Family(counters.NOTIFICATIONS_DROPPED, _COUNTER, (), "Notifications that a slow listener missed"),
    Family(counters.RECONNECTS, _COUNTER, ("connection",), "Reconnects of broken connections"),
)
"""All metrics, in the order of the exposition."""

_lock = threading.Lock()
_agents: set[Observed] = set()
_ended: dict[tuple[str, str], Counters] = {}
_registries: weakref.WeakSet[CollectorRegistry] = weakref.WeakSet()


class Observed:
    """Exports the counters of an agent from entering on; its counts stay after it has ended.

    Args:
        namespace: of the agent.
        agent: its name.
        counted: its counters.
        holding: gives stream and group, messages with handlers, and buffered messages.
    """

    def __init__(
        self,
        namespace: str,
        agent: str,
        counted: Counters,
        holding: Callable[[], Iterable[tuple[str, str, int, int]]],
    ) -> None:
        self.key: tuple[str, str] = namespace, agent
        self.counted = counted
        self.holding = holding

    def __enter__(self) -> None:
        """Starts exporting."""
        with _lock:
            _agents.add(self)

    def __exit__(self, *_: object) -> None:
        """Keeps the counts, and ends."""
        with _lock:
            _agents.discard(self)
            _ended.setdefault(self.key, Counters()).absorb(self.counted)


def register(registry: CollectorRegistry | None = None) -> None:
    """Registers the metrics of all agents of this process with a registry, once.

    Agents that answer probes do so for the default registry.

    Args:
        registry: of `prometheus_client`; its default one if None.

    Raises:
        ImportError: `prometheus_client` is not installed.
        ValueError: the registry has metrics of these names already.
    """
    from prometheus_client import REGISTRY  # noqa: PLC0415 - an extra

    registry = registry or REGISTRY
    with _lock:
        if registry in _registries:
            return
        _registries.add(registry)
    registry.register(_Collector())


def exposition(accept: str) -> tuple[str, bytes]:
    """The content type and the text of the default registry, for the `Accept` header of a request.

    Raises:
        ImportError: `prometheus_client` is not installed.
    """
    from prometheus_client import REGISTRY  # noqa: PLC0415 - as above
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

    register()
    encoder, content_type = choose_encoder(accept)
    return content_type, encoder(REGISTRY)


class _Collector:
    """Collects the metrics for a registry."""

    def describe(self) -> Iterator[Metric]:
        """The metrics without values."""
        return iter(_families({}, {}).values())

    def collect(self) -> Iterator[Metric]:
        """The metrics with current values."""
        totals, holding = _gathered()
        return iter(_families(totals, holding).values())


def _gathered() -> tuple[dict[tuple[str, str], Counters], dict[tuple[str, ...], int]]:
    """The counters and the held messages of each agent; agents of one name are added up."""
    totals: dict[tuple[str, str], Counters] = {}
    holding: dict[tuple[str, ...], int] = {}
    with _lock:
        counted = [*_ended.items(), *((agent.key, agent.counted) for agent in _agents)]
        agents = tuple(_agents)
    for key, one in counted:
        totals.setdefault(key, Counters()).absorb(one)
    for agent in agents:
        for stream, group, running, buffered in agent.holding():
            for state, count in (("running", running), ("buffered", buffered)):
                labels = (*agent.key, stream, group, state)
                holding[labels] = holding.get(labels, 0) + count
    return totals, holding


def _families(totals: dict[tuple[str, str], Counters], holding: dict[tuple[str, ...], int]) -> dict[str, Any]:
    from prometheus_client import core  # noqa: PLC0415 - as above

    make = {
        MetricKind.COUNTER: core.CounterMetricFamily,
        MetricKind.GAUGE: core.GaugeMetricFamily,
        MetricKind.HISTOGRAM: core.HistogramMetricFamily,
    }
    families: dict[str, Any] = {
        family.counted: make[family.kind](family.name, family.text, labels=(*_AGENT, *family.labels))
        for family in FAMILIES
    }
    for agent, one in totals.items():
        for (name, *labels), count in one:
            families[name].add_metric((*agent, *labels), count)
        for (name, *labels), histogram in one.histograms():
            sums = accumulate(histogram.counts)
            buckets = list(zip((*(f"{bound:g}" for bound in BOUNDS), "+Inf"), map(float, sums), strict=True))
            families[name].add_metric((*agent, *labels), buckets, histogram.total)
    for held, count in holding.items():
        families[_HELD.counted].add_metric(held, count)
    return families
