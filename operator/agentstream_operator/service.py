"""`agentstream operator`: acquires the Lease, runs the reconcilers, and stops in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from agentstream.errors import AgentStreamError
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.connect import ClusterConnection, connect
from agentstream_operator.cluster.kinds import RESOURCES
from agentstream_operator.cluster.kubernetes import KubernetesCluster
from agentstream_operator.cluster.leader import Leader
from agentstream_operator.cluster.owned_objects import Change, OwnedObjects
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.cluster.resource_cache import ResourceCache
from agentstream_operator.cluster.secret_contents import ServerAddress
from agentstream_operator.cluster.workloads import DeploymentRefs
from agentstream_operator.reconcile.engine import Engine
from agentstream_operator.reconcile.report.figures import Figures
from agentstream_operator.reconcile.state.state import EngineOptions, LoopIntervals, StatusIntervals
from agentstream_operator.reconcile.supervision import supervised
from agentstream_operator.serve.http import probe_reply, serving
from agentstream_operator.serve.metrics import Metrics, MetricsSample
from agentstream_operator.serve.probes import ProbeState, live, ready
from agentstream_operator.settings import OperatorOptions
from agentstream_operator.watches import watching

_log = logging.getLogger(__name__)

_PATIENCE = 3.0
"""Seconds that Redis or Valkey gets to answer before resources are reported as unreachable."""

_RETRY = 2.0
_PORT = 6379

_COLLECTED = (50_000, 20, 100)
"""Thresholds of the garbage collector: with thousands of resources, a full collection blocks the event loop
for some tenths of a second, and finds next to nothing."""

LOOPS = LoopIntervals(measure_unscaled=5.0)
STATUS = StatusIntervals(transient=5.0)


class FatalError(Exception):
    """The operator cannot go on; the message names the cause and the remedy."""


async def run(options: OperatorOptions) -> None:
    """Runs until SIGTERM or SIGINT.

    Raises:
        FatalError: rights are missing, or the Lease is lost.
        ListenError: a port cannot be listened on.
        NoCluster: no API server is configured.
    """
    gc.set_threshold(*_COLLECTED)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    connection = await connect()
    try:
        await _OperatorService(options, connection, stop).run()
    finally:
        await connection.close()


class _OperatorService:
    def __init__(self, options: OperatorOptions, connection: ClusterConnection, stop: asyncio.Event) -> None:
        self._options = options
        self._connection = connection
        self._stop = stop
        self._api = Api(connection.client)
        self._identity = os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}"
        lease = f"agentstream-{options.installation}"
        # an Api of its own: renewals of the Lease do not wait for other requests
        self._leader = Leader(Api(connection.client), connection.namespace, lease, self._identity)
        self._metrics = Metrics(self._sample, self._figures, each=options.metrics_of_each)
        self._engine: Engine | None = None
        self._cache: ResourceCache | None = None
        self._unwatched: str | None = None
        self._pod_cleanups: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        options = self._options
        health = {
            "/livez": lambda: probe_reply(live(self._probe_state())),
            "/readyz": lambda: probe_reply(
                ready(self._probe_state()), "leading" if self._leader.leads else "standing by"
            ),
        }
        async with (
            serving(options.metrics_port, {"/metrics": self._metrics.scrape}),
            serving(options.health_port, health),
        ):
            await self._until_stopped(asyncio.create_task(self._lead(), name="lead"))

    async def _until_stopped(self, work: asyncio.Task[None]) -> None:
        """Waits until the work fails, or cancels it after SIGTERM or SIGINT."""
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not work.done():
            _log.info("stopping")
            work.cancel()
        with suppress(asyncio.CancelledError):
            await work

    async def _lead(self) -> None:
        async with self._leader.leading() as held:
            _log.info("%s acquired the Lease", self._identity)
            broker = Broker.of(self._options.redis, installation=self._options.installation)
            try:
                await self._reconcile(broker, held)
            finally:
                await broker.close()

    async def _reconcile(self, broker: Broker, held: asyncio.Task[None]) -> None:
        options = self._options
        owned, references = OwnedObjects(), DeploymentRefs(self._api)
        cluster = KubernetesCluster(
            self._api,
            owned,
            references,
            server=server_of(options.redis),
            installation=options.installation,
            identity=self._identity,
        )
        engine = self._engine = Engine(
            broker,
            cluster,
            EngineOptions(
                installation=options.installation,
                namespaces=frozenset(options.namespaces) if options.namespaces is not None else None,
                allowed_keys=tuple(options.allowed_keys),
                loops=LOOPS,
                status=STATUS,
            ),
            reconciled=self._metrics.reconciled,
        )
        if (outage := await _outage(broker)) is not None:
            engine.server_down(outage)
        cache = ResourceCache(self._api, options.namespaces, owned, engine, partial(self._on_change, engine))
        # until the first list is complete, only the Lease is kept
        await self._list(cache.fill)
        engine.listed()
        self._cache = cache
        work = {
            asyncio.create_task(engine.run(), name="engine"),
            asyncio.create_task(self._watch(cache), name="watch"),
            asyncio.create_task(supervised("compare with lists", cache.watch), name="compare with lists"),
            asyncio.create_task(
                supervised("watch Deployment references", references.watch),
                name="watch Deployment references",
            ),
        }
        try:
            await asyncio.wait({held, *work}, return_when=asyncio.FIRST_COMPLETED)
            raise _cause(held, work)
        finally:
            for task in {*work, *self._pod_cleanups}:
                task.cancel()
            await asyncio.gather(*work, *self._pod_cleanups, return_exceptions=True)

    async def _watch(self, cache: ResourceCache) -> NoReturn:
        """Watches, and begins again with a list whenever watches end, as they do when a CRD is deleted."""
        while True:
            async with watching(cache.tell, self._options.namespaces) as ended:
                await asyncio.wait({ended})
            self._unwatched = str(ended.exception() or "watches have ended")
            _log.warning("watches have ended, beginning again with a list: %s", self._unwatched)
            await asyncio.sleep(_RETRY)
            await self._list(cache.refill)

    async def _list(self, fill: Callable[[], Awaitable[None]]) -> None:
        """Fills the cache; retries while the API server is unreachable, or has no CRDs.

        Raises:
            FatalError: the API server rejects the request.
        """
        while True:
            self._unwatched = await self._try_to_list(fill)
            if self._unwatched is None:
                return
            _log.warning("cannot list resources, trying again in %g s: %s", _RETRY, self._unwatched)
            await asyncio.sleep(_RETRY)

    async def _try_to_list(self, fill: Callable[[], Awaitable[None]]) -> str | None:
        """Returns why not everything can be listed at present; None if it was."""
        try:
            for kind in RESOURCES.values():
                if not await self._api.discovers(kind):
                    return f"there is no CRD of {kind.kind}; install the CRDs"
            await fill()
        except ClusterUnavailable as error:
            return str(error)
        except ApiError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return f"{error}; install the CRDs"
            raise FatalError(f"cannot list resources: {error}; check the roles of the operator") from error
        return None

    def _on_change(self, engine: Engine, change: Change) -> None:
        """Reconciles the resource or agent that a changed Secret, Deployment or pod belongs to."""
        if change.agent is not None:
            engine.requeue_agent(*change.agent)
        if change.stream is not None:
            engine.requeue(change.stream)
        if change.group is None:
            return
        engine.requeue(change.group)
        if change.gone is not None:
            _log.info("%s: pod %s has ended", change.group, change.gone.pod)
            cleanup = asyncio.create_task(engine.pod_gone(change.group, change.gone, for_good=change.deleted))
            self._pod_cleanups.add(cleanup)
            cleanup.add_done_callback(self._pod_cleanups.discard)

    def _probe_state(self) -> ProbeState:
        engine, cache = self._engine, self._cache
        return ProbeState(
            leads=self._leader.leads,
            health=engine.health if engine is not None else None,
            missed=cache.missed_lately if cache is not None else 0,
            unwatched=self._unwatched,
        )

    def _sample(self) -> MetricsSample:
        engine, cache = self._engine, self._cache
        return MetricsSample(
            leads=self._leader.leads,
            health=engine.health if engine is not None else None,
            requests=self._api.requests,
            events=cache.events if cache is not None else Counter(),
            missed=cache.missed if cache is not None else 0,
        )

    async def _figures(self) -> Figures:
        return await self._engine.figures() if self._engine is not None else Figures()


def server_of(redis: Endpoint) -> ServerAddress:
    """Returns the server's address for agents: the operator's, without its credentials."""
    parts = urlsplit(redis.url)
    host, port = parts.hostname or "localhost", parts.port or _PORT
    shown = f"[{host}]" if ":" in host else host
    # comments beside the certificates may be in any encoding
    file = Path(redis.ca_file) if redis.ca_file is not None else None
    authority = file.read_text(encoding="utf-8", errors="replace") if file is not None else None
    return ServerAddress(f"{parts.scheme}://{shown}:{port}{parts.path}", host, port, authority)


async def _outage(broker: Broker) -> str | None:
    """Returns why Redis or Valkey does not answer; None if it does."""
    try:
        async with asyncio.timeout(_PATIENCE):
            await broker.server()
    except (AgentStreamError, TimeoutError) as error:
        why = str(error) or f"no answer within {_PATIENCE:g} s"
        _log.warning("Redis or Valkey does not answer: %s", why)
        return why
    return None


def _cause(held: asyncio.Task[None], work: set[asyncio.Task[Any]]) -> BaseException:
    """Returns why one of these tasks has ended."""
    if held.done():
        return FatalError("lost the Lease; another operator may hold it now. Restart to stand by")
    for task in work:
        if task.done() and (failure := task.exception()) is not None:
            return failure
    return FatalError("an internal task has ended; restart, and see the log above")
