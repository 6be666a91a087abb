"""`agentstream metrics-server`: wires the external metrics API, starts it and stops it in order."""

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
from agentstream_operator.metrics_api.self_metrics import SelfMetrics
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.serve.http import HttpServer, listening, probe_reply, serving
from agentstream_operator.settings import MetricsOptions

_log = logging.getLogger(__name__)


async def run(options: MetricsOptions) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        NoCluster: no API server is configured.
        ListenError: a port cannot be listened on.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    connection = await connect()
    try:
        async with _MetricsService(options, connection).serving() as failed:
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if failed.done():
                failed.result()
            _log.info("stopping")
    finally:
        await connection.close()


class _MetricsService:
    def __init__(self, options: MetricsOptions, connection: ClusterConnection) -> None:
        self._options = options
        self._api = Api(connection.client)
        self._store = ResourceIndex(options.allowed_keys)
        self._reflector = Reflector(self._api, options.namespaces, self._store)
        self._certificates = ServingCertificates(options.certificate, options.key)
        self._broker = Broker.of(options.redis, installation=options.installation)
        self._backlogs = Backlogs(self._store, self._broker)
        self._authorizer = Authorizer(self._api, asyncio.get_running_loop().time)
        self._self_metrics = SelfMetrics(self._store, self._authorizer, self._api, self._broker)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[asyncio.Future[Any]]:
        """Serves. Yields a future that is done only if a part of the service fails."""
        app = application(
            self._store,
            self._backlogs,
            self._authorizer,
            lambda: self._certificates.config,
            self._self_metrics.count_response,
        )
        server = HttpServer(app, tls=self._certificates.context)
        async with AsyncExitStack() as stack:
            for close in (self._broker.close, self._backlogs.close, self._authorizer.close):
                stack.push_async_callback(close)
            watches = asyncio.gather(
                self._reflector.watch(),
                self._certificates.watch_files(),
                self._certificates.watch_configmap(self._api, server.drop_connections),
            )
            stack.push_async_callback(_cancel, watches)
            replies = {
                "/livez": lambda: probe_reply(None),
                "/readyz": lambda: probe_reply(self._unready()),
                "/metrics": self._self_metrics.reply,
            }
            await stack.enter_async_context(serving(self._options.health_port, replies))
            await stack.enter_async_context(server.serving(listening(self._options.port)))
            yield watches

    def _unready(self) -> str | None:
        """Returns why the service is not ready.

        An unreachable Redis is no reason: an APIService without endpoints makes clients of other APIs fail.
        """
        return self._certificates.missing if self._reflector.complete else "listing resources"


async def _cancel(watches: asyncio.Future[Any]) -> None:
    watches.cancel()
    await asyncio.gather(watches, return_exceptions=True)
