"""`agentstream metrics-server`: from the first list to serving, and in order back to the end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.api import Api
from agentstream_operator.cluster.connect import ClusterConnection, connect
from agentstream_operator.metrics_api.app import application
from agentstream_operator.metrics_api.authorizer import Authorizer
from agentstream_operator.metrics_api.backlog import Backlogs
from agentstream_operator.metrics_api.certificates import ServingCertificates
from agentstream_operator.metrics_api.reflector import Reflector
from agentstream_operator.metrics_api.self_metrics import SelfMetrics, SelfSample
from agentstream_operator.metrics_api.server import TlsServer
from agentstream_operator.reconcile.state.index import Store
from agentstream_operator.serve.http import listening, serving
from agentstream_operator.serve.probes import probe
from agentstream_operator.settings import MetricsOptions

_log = logging.getLogger(__name__)


async def run(options: MetricsOptions) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        NoCluster: it does not find the API server.
        OSError: a port is taken.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    connection = await connect()
    try:
        async with _MetricsService(options, connection).serving() as ended:
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if ended.done():
                ended.result()
            _log.info("stopping")
    finally:
        await connection.close()


class _MetricsService:
    def __init__(self, options: MetricsOptions, connection: ClusterConnection) -> None:
        self._options = options
        self._api = Api(connection.client)
        self._store = Store(options.allowed_keys)
        self._declared = Reflector(self._api, options.namespaces, self._store)
        self._identity = ServingCertificates(options.certificate, options.key)
        self._broker = Broker.of(options.redis, installation=options.installation)
        self._backlogs = Backlogs(self._store, self._broker)
        self._authorizer = Authorizer(self._api, asyncio.get_running_loop().time)
        self._meters = SelfMetrics(self._numbers)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[asyncio.Future[Any]]:
        """Serves. Yields a future that is done only if something fails."""
        app = application(
            self._store,
            self._backlogs,
            self._authorizer,
            lambda: self._identity.trust,
            self._meters.answered,
        )
        server = TlsServer(app, self._identity.context)
        async with AsyncExitStack() as stack:
            for close in (self._broker.close, self._backlogs.close, self._authorizer.close):
                stack.push_async_callback(close)
            work = asyncio.gather(
                self._declared.watch(),
                self._identity.watch_files(),
                self._identity.watch_trust(self._api, server.drop_connections),
            )
            stack.push_async_callback(_end, work)
            answers = {
                "/livez": lambda: probe(None),
                "/readyz": lambda: probe(self._missing()),
                "/metrics": self._meters.answer,
            }
            await stack.enter_async_context(serving(self._options.health_port, answers))
            await stack.enter_async_context(server.serving(listening(self._options.port)))
            yield work

    def _missing(self) -> str | None:
        """Why it is not ready. That Redis is away is no reason: an API that is not there hinders others."""
        if not self._declared.complete:
            return "listing what is there"
        return self._identity.missing

    def _numbers(self) -> SelfSample:
        return SelfSample(
            groups=len(self._store.groups),
            reviews=self._authorizer.reviews,
            requests=self._api.requests,
            round_trips=self._broker.round_trips,
        )


async def _end(work: asyncio.Future[Any]) -> None:
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
