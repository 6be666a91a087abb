"""`agentstream metrics-server`: wires the external metrics API, starts it and stops it in order."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

from prometheus_client import Counter
from prometheus_client.core import GaugeMetricFamily, Metric

from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.api import Api
from agentstream_operator.cluster.connect import connect
from agentstream_operator.metrics_api.app import application
from agentstream_operator.metrics_api.backlog import Backlogs
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.serve.authorizer import Authorizer
from agentstream_operator.serve.certificates import ServingCertificates
from agentstream_operator.serve.exposition import Exposition, api_requests, counters, round_trips
from agentstream_operator.serve.http import HttpServer, listening, probe_reply, serving
from agentstream_operator.serve.reflector import Reflector
from agentstream_operator.settings import MetricsOptions

_log = logging.getLogger(__name__)


class SelfMetrics(Exposition):
    """Counts responses; reads everything else at a scrape."""

    def __init__(self, store: ResourceIndex, authorizer: Authorizer, api: Api, broker: Broker) -> None:
        self._store = store
        self._authorizer = authorizer
        self._api = api
        self._broker = broker
        super().__init__()
        self._responses = Counter(
            "agentstream_external_answers",
            "Responses to requests for external metrics, by HTTP status.",
            ("code",),
            registry=self._registry,
        )

    def count_response(self, code: int) -> None:
        """Counts a response of the external metrics API."""
        self._responses.labels(str(code)).inc()

    def collect(self) -> Iterator[Metric]:
        """Reads the present numbers."""
        groups = len(self._store.groups)
        yield GaugeMetricFamily("agentstream_external_groups", "ConsumerGroups known.", value=groups)
        text = "SubjectAccessReviews, by outcome."
        yield counters("agentstream_access_reviews", text, ("outcome",), self._authorizer.reviews)
        yield api_requests(self._api.requests)
        yield round_trips(self._broker.round_trips)


async def run(options: MetricsOptions) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        NoCluster: no API server is configured.
        ListenError: a port cannot be listened on.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    connection = await connect()
    api = Api(connection.client)
    index = ResourceIndex(options.allowed_keys)
    reflector = Reflector(api, options.namespaces, index)
    certificates = ServingCertificates(options.certificate, options.key)
    broker = Broker.of(options.redis, installation=options.installation)
    backlogs = Backlogs(index, broker)
    authorizer = Authorizer(api, loop.time)
    metrics = SelfMetrics(index, authorizer, api, broker)
    app = application(index, backlogs, authorizer, lambda: certificates.config, metrics.count_response)
    server = HttpServer(app, tls=certificates.context)

    def unready() -> str | None:
        # an unreachable Redis is no reason: an APIService without endpoints fails clients of other APIs
        return certificates.missing if reflector.complete else "listing resources"

    replies = {
        "/livez": lambda: probe_reply(None),
        "/readyz": lambda: probe_reply(unready()),
        "/metrics": metrics.reply,
    }
    async with AsyncExitStack() as stack:
        for close in (connection.close, broker.close, backlogs.close, authorizer.close):
            stack.push_async_callback(close)
        watches = asyncio.gather(
            reflector.watch(),
            certificates.watch_files(),
            certificates.watch_configmap(api, server.drop_connections),
        )
        stack.push_async_callback(_cancel, watches)
        await stack.enter_async_context(serving(options.health_port, replies))
        await stack.enter_async_context(server.serving(listening(options.port)))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((stopped, watches), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if watches.done():
            # they end only by failing
            watches.result()
        _log.info("stopping")


async def _cancel(watches: asyncio.Future[Any]) -> None:
    watches.cancel()
    await asyncio.gather(watches, return_exceptions=True)
