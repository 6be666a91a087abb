"""The counters of a process's agents, as Prometheus is told them; see docs/metrics.md.

Counting needs nothing but this package. Telling needs `prometheus_client`, which is imported when somebody
asks.
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
    """What kind of metric it is, in Prometheus' words."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Family(msgspec.Struct, frozen=True):
    """One of the metrics.

    Attributes:
        counted: what it is counted as.
        kind: what kind it is.
        labels: its labels, beside those of the agent.
        text: what it says, in words.
    """

    counted: str
    kind: MetricKind
    labels: tuple[str, ...]
    text: str

    @property
    def name(self) -> str:
        """Its name, as queries have it."""
        name = f"{_PREFIX}_{self.counted}"
        return f"{name}_total" if self.kind is MetricKind.COUNTER else name


_HELD = Family("held", MetricKind.GAUGE, (*_GROUP, "state"), "Messages that are held: running or buffered")

FAMILIES: Final = (
    Family(counters.SENDING, MetricKind.HISTOGRAM, ("stream",), "Seconds from a call to the server's answer"),
    Family(counters.REFUSED, MetricKind.COUNTER, ("stream", "error"), "Answers that a message was not taken"),
    Family(counters.FAILED, MetricKind.COUNTER, ("error",), "Messages whose sending ended with an error"),
    Family(
        counters.SHED, MetricKind.COUNTER, ("stream",), "Events that were dropped, as their stream was full"
    ),
    Family(counters.REPEATED, MetricKind.COUNTER, ("stream",), "Batches sent again, as no answer had come"),
    Family(counters.RECEIVED, MetricKind.COUNTER, _GROUP, "Deliveries that came in"),
    Family(
        counters.SETTLED, MetricKind.COUNTER, (*_GROUP, "outcome", "reason"), "Deliveries that were settled"
    ),
    Family(counters.HANDLING, MetricKind.HISTOGRAM, _GROUP, "Seconds for which handlers had messages"),
    _HELD,
    Family(counters.LEASES_LOST, MetricKind.COUNTER, _GROUP, "Deliveries lost to other consumers while held"),
    Family(counters.VERIFIED, MetricKind.COUNTER, _GROUP, "Messages with a valid signature"),
    Family(
        counters.UNVERIFIED, MetricKind.COUNTER, (*_GROUP, "reason"), "Messages without a valid signature"
    ),
    Family(
        counters.ANSWERS_UNVERIFIED,
        MetricKind.COUNTER,
        ("stream", "reason"),
        "Answers without a valid signature",
    ),
    Family(
        counters.IN_DOUBT, MetricKind.COUNTER, _GROUP, "Effects of which it was not known if they came about"
    ),
    Family(
        counters.NOTIFICATIONS_DROPPED, MetricKind.COUNTER, (), "Notifications that a slow listener missed"
    ),
    Family(
        counters.RECONNECTS, MetricKind.COUNTER, ("connection",), "Connections made again after they broke"
    ),
)
"""All metrics, in the order in which they are told."""

_lock = threading.Lock()
_agents: set[Observed] = set()
_ended: dict[tuple[str, str], Counters] = {}
_registries: weakref.WeakSet[CollectorRegistry] = weakref.WeakSet()


class Observed:
    """An agent whose counters are told for as long as it is entered, and what it counted ever after.

    Args:
        namespace: of the agent.
        agent: its name.
        counted: its counters.
        holding: stream and group, how many messages handlers have and how many more are held.
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
        """Begins."""
        with _lock:
            _agents.add(self)

    def __exit__(self, *_: object) -> None:
        """Ends."""
        with _lock:
            _agents.discard(self)
            _ended.setdefault(self.key, Counters()).absorb(self.counted)


def register(registry: CollectorRegistry | None = None) -> None:
    """Has a registry tell the metrics of all agents of this process; once, however often it is called.

    Agents that answer probes see to it for the default registry.

    Args:
        registry: of `prometheus_client`; its default one if None.

    Raises:
        ImportError: `prometheus_client` is not installed.
        ValueError: the registry has metrics of these names already.
    """
    from prometheus_client import REGISTRY  # noqa: PLC0415 - only whoever wants metrics needs it

    registry = registry or REGISTRY
    with _lock:
        if registry in _registries:
            return
        _registries.add(registry)
    registry.register(_Collector())


def exposition(accept: str) -> tuple[str, bytes]:
    """What the default registry tells whoever accepts such types: its own type, and the text.

    Raises:
        ImportError: `prometheus_client` is not installed.
    """
    from prometheus_client import REGISTRY  # noqa: PLC0415 - as above
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

    register()
    encoder, content_type = choose_encoder(accept)
    return content_type, encoder(REGISTRY)


class _Collector:
    """What a registry asks."""

    def describe(self) -> Iterator[Metric]:
        """The metrics, without numbers."""
        return iter(_families({}, {}).values())

    def collect(self) -> Iterator[Metric]:
        """The metrics of all agents, as they are now."""
        totals, holding = _gathered()
        return iter(_families(totals, holding).values())


def _gathered() -> tuple[dict[tuple[str, str], Counters], dict[tuple[str, ...], int]]:
    """What each agent has counted, and what it holds; agents of one name count together."""
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
