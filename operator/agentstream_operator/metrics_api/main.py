"""`agentstream metrics-server`: wires the external metrics API, starts it and stops it in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

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
from agentstream_operator.serve.service import serve_until, stop_signals
from agentstream_operator.settings import MetricsOptions


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
    stop, clock = stop_signals(), asyncio.get_running_loop().time
    connection = await connect()
    api = Api(connection.client)
    index = ResourceIndex(options.allowed_keys)
    reflector = Reflector(api, options.namespaces, index)
    certificates = ServingCertificates(options.certificate, options.key)
    broker = Broker.of(options.redis, installation=options.installation)
    backlogs = Backlogs(index, broker)
    authorizer = Authorizer(api, clock)
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
    await serve_until(
        stop,
        (
            lambda: serving(options.health_port, replies),
            lambda: server.serving(listening(options.port)),
        ),
        (
            reflector.watch(),
            certificates.watch_files(),
            certificates.watch_configmap(api, server.drop_connections),
        ),
        (connection.close, broker.close, backlogs.close, authorizer.close),
    )
