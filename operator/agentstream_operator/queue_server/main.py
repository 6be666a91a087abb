"""`agentstream queue-server`: wires the HTTP API to a cluster, starts it and stops it in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

from prometheus_client import Counter
from prometheus_client.core import Metric

from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.api import Api
from agentstream_operator.cluster.connect import connect
from agentstream_operator.cluster.events import EventWriter
from agentstream_operator.console.app import Console
from agentstream_operator.queue_api.app import application
from agentstream_operator.queue_api.events import LiveViews
from agentstream_operator.queue_api.lag import LagReader
from agentstream_operator.queue_api.reading import sources_of_server
from agentstream_operator.queue_server.access import ReviewedAccess
from agentstream_operator.queue_server.authenticator import ClusterAuthenticator
from agentstream_operator.queue_server.proxies import TrustedProxies
from agentstream_operator.queue_server.replays import ClusterReplays
from agentstream_operator.queue_server.tokens import TokenReviews
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.serve.authorizer import Authorizer
from agentstream_operator.serve.certificates import ServingCertificates
from agentstream_operator.serve.exposition import Exposition, api_requests, counters, round_trips
from agentstream_operator.serve.http import HttpServer, listening, probe_reply, serving
from agentstream_operator.serve.reflector import Reflector
from agentstream_operator.serve.request_header import RequestHeaderConfig
from agentstream_operator.serve.service import serve_until, stop_signals
from agentstream_operator.settings import QueueOptions

_COMPONENT = "agentstream-queue-server"


class QueueMetrics(Exposition):
    """Counts responses; reads everything else at a scrape."""

    def __init__(self, tokens: TokenReviews, authorizer: Authorizer, api: Api, broker: Broker) -> None:
        self._tokens = tokens
        self._authorizer = authorizer
        self._api = api
        self._broker = broker
        super().__init__()
        self._responses = Counter(
            "agentstream_queue_answers",
            "Responses of the HTTP API, by HTTP status.",
            ("code",),
            registry=self._registry,
        )

    def count_response(self, code: int) -> None:
        """Counts a response."""
        self._responses.labels(str(code)).inc()

    def collect(self) -> Iterator[Metric]:
        """Reads the present numbers."""
        text = "TokenReviews, by outcome."
        yield counters("agentstream_token_reviews", text, ("outcome",), self._tokens.reviews)
        text = "SubjectAccessReviews, by outcome."
        yield counters("agentstream_access_reviews", text, ("outcome",), self._authorizer.reviews)
        yield api_requests(self._api.requests)
        yield round_trips(self._broker.round_trips)


async def run(options: QueueOptions) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        NoCluster: no API server is configured.
        ListenError: a port cannot be listened on.
    """
    stop, clock = stop_signals(), asyncio.get_running_loop().time
    connection = await connect()
    api = Api(connection.client)
    index = ResourceIndex(options.allowed_keys)
    reflector = Reflector(api, options.namespaces, index, with_status=True)
    certificates = ServingCertificates(options.certificate, options.key)
    proxies = None
    if options.proxy_ca_file is not None:
        names = frozenset(options.proxy_names)
        proxies = TrustedProxies(options.proxy_ca_file, names, certificates.apply)
    else:
        # no certificate of a client is asked for
        certificates.apply(RequestHeaderConfig(""))
    broker = Broker.of(options.redis, installation=options.installation)
    tokens, authorizer = TokenReviews(api, clock), Authorizer(api, clock)
    lags, live = LagReader(index, broker), LiveViews()
    metrics = QueueMetrics(tokens, authorizer, api, broker)
    app = application(
        sources_of_server(lags),
        ClusterReplays(api, EventWriter(api, _COMPONENT, socket.gethostname()), options.namespaces),
        ClusterAuthenticator(
            tokens, frozenset(options.hosts), lambda: proxies.config if proxies is not None else None
        ),
        ReviewedAccess(authorizer),
        live,
        count=metrics.count_response,
    )
    server = HttpServer(Console(app, live) if options.console else app, tls=certificates.context)

    def unready() -> str | None:
        # an unreachable Redis is no reason: what is not known is answered as such
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
            *([proxies.watch(server.drop_connections)] if proxies is not None else []),
        ),
        (connection.close, broker.close, lags.close, authorizer.close, tokens.close),
        # answers that go on for minutes end first
        ending=live.close,
    )
