"""`agentstream operator`: from a Lease to reconciling, and in order back to the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections import Counter
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from agentstream.errors import AgentStreamError
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.children import Change, OwnedObjects
from agentstream_operator.cluster.connect import ClusterConnection, connect
from agentstream_operator.cluster.deployment_refs import DeploymentRefs
from agentstream_operator.cluster.kubernetes import KubernetesCluster
from agentstream_operator.cluster.leader import Leader
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.cluster.resource_cache import ResourceCache
from agentstream_operator.cluster.secrets import ServerAddress
from agentstream_operator.reconcile.context import Rhythm
from agentstream_operator.reconcile.engine import Engine
from agentstream_operator.serve import probes
from agentstream_operator.serve.http import serving
from agentstream_operator.serve.metrics import Metrics, MetricsSample
from agentstream_operator.settings import OperatorOptions
from agentstream_operator.watches import watching

_log = logging.getLogger(__name__)

_PATIENCE = 3.0
"""Seconds that the server gets to answer before the resources are told that it does not."""

_RETRY = 2.0
_PORT = 6379

_COLLECTED = (50_000, 20, 100)
"""When garbage is looked for: rarely in what lives long, where there is next to none. With thousands of
resources, that stops everything for some tenths of a second."""

RHYTHM = Rhythm(quiet=5.0, patience=5.0)


class Fatal(Exception):  # noqa: N818 - it says what is wrong
    """The operator cannot go on; the message says why, and what to do."""


async def run(options: OperatorOptions) -> None:
    """Runs until SIGTERM or SIGINT.

    Raises:
        Fatal: it cannot go on: what it needs is missing, or the Lease is lost.
        NoCluster: it does not find the API server.
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
        # whatever else waits for its turn, the Lease does not
        self._leader = Leader(Api(connection.client), connection.namespace, lease, self._identity)
        self._metrics = Metrics(self._numbers)
        self._engine: Engine | None = None
        self._inventory: ResourceCache | None = None
        self._watching = True
        self._departures: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        options = self._options
        health = {
            "/livez": lambda: probes.probe(probes.live(self._state())),
            "/readyz": lambda: probes.probe(probes.ready(self._state()), self._well()),
        }
        try:
            async with (
                serving(options.metrics_port, {"/metrics": self._metrics.answer}),
                serving(options.health_port, health),
            ):
                await self._until_stopped(asyncio.create_task(self._lead(), name="lead"))
        except OSError as error:
            raise Fatal(f"cannot listen: {error}") from error

    async def _until_stopped(self, work: asyncio.Task[None]) -> None:
        """Waits until the work fails, or ends it in order when we are asked to stop."""
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
            _log.info("%s leads", self._identity)
            broker = Broker.of(self._options.redis, installation=self._options.installation)
            try:
                await self._reconcile(broker, held)
            finally:
                await broker.close()

    async def _reconcile(self, broker: Broker, held: asyncio.Task[None]) -> None:
        options = self._options
        children, references = OwnedObjects(), DeploymentRefs(self._api)
        cluster = KubernetesCluster(
            self._api,
            children,
            references,
            server=server_of(options.redis),
            installation=options.installation,
            identity=self._identity,
        )
        engine = self._engine = Engine(
            broker,
            cluster,
            installation=options.installation,
            namespaces=options.namespaces,
            allowed_keys=options.allowed_keys,
            rhythm=RHYTHM,
            trouble=await _trouble(broker),
            worked=self._metrics.worked,
        )
        inventory = ResourceCache(self._api, options.namespaces, children, engine, self._wake)
        await _fill(inventory)
        engine.listed()
        self._inventory = inventory
        async with watching(inventory.tell, options.namespaces) as watched:
            work = {
                asyncio.create_task(engine.run(), name="engine"),
                asyncio.create_task(inventory.watch(), name="compare"),
                asyncio.create_task(references.watch(), name="look at references"),
            }
            try:
                await asyncio.wait({held, watched, *work}, return_when=asyncio.FIRST_COMPLETED)
                self._watching = not watched.done()
                raise _why(held, watched, work)
            finally:
                for task in {*work, *self._departures}:
                    task.cancel()
                await asyncio.gather(*work, *self._departures, return_exceptions=True)

    def _wake(self, wake: Change) -> None:
        """Passes on whom a change of a Secret, Deployment or pod concerns."""
        engine = self._engine
        if engine is None:
            return
        if wake.agent is not None:
            engine.look_at_agent(*wake.agent)
        if wake.stream is not None:
            engine.look_at_stream(wake.stream)
        if wake.group is None:
            return
        engine.look_at_group(wake.group)
        if wake.gone is not None:
            _log.info("%s: %s has ended", wake.group, wake.gone.pod)
            departure = asyncio.create_task(engine.departed(wake.group, wake.gone, for_good=wake.deleted))
            self._departures.add(departure)
            departure.add_done_callback(self._departures.discard)

    def _well(self) -> str:
        return "leads" if self._leader.leads else "stands by"

    def _state(self) -> probes.ProbeState:
        engine, inventory = self._engine, self._inventory
        return probes.ProbeState(
            leads=self._leader.leads,
            health=engine.health if engine is not None else None,
            missed=inventory.missed_lately if inventory is not None else 0,
            watching=self._watching,
        )

    def _numbers(self) -> MetricsSample:
        engine, inventory = self._engine, self._inventory
        return MetricsSample(
            leads=self._leader.leads,
            health=engine.health if engine is not None else None,
            conditions=engine.conditions if engine is not None else Counter(),
            requests=self._api.requests,
            events=inventory.events if inventory is not None else Counter(),
            missed=inventory.missed if inventory is not None else 0,
            work=engine.work if engine is not None else (),
        )


def server_of(redis: Endpoint) -> ServerAddress:
    """Where agents find the server that the operator uses: the same address, without its credentials."""
    parts = urlsplit(redis.url)
    host, port = parts.hostname or "localhost", parts.port or _PORT
    shown = f"[{host}]" if ":" in host else host
    authority = Path(redis.ca_file).read_text(encoding="ascii") if redis.ca_file is not None else None
    return ServerAddress(f"{parts.scheme}://{shown}:{port}{parts.path}", host, port, authority)


async def _trouble(broker: Broker) -> str | None:
    """What the server's silence looks like; None if it answers."""
    try:
        async with asyncio.timeout(_PATIENCE):
            await broker.server()
    except (AgentStreamError, TimeoutError) as error:
        why = str(error) or "the server does not answer"
        _log.warning("%s", why)
        return why
    return None


async def _fill(inventory: ResourceCache) -> None:
    """Lists everything, however long the API server takes.

    Raises:
        Fatal: a list is refused.
    """
    while True:
        try:
            await inventory.fill()
        except ClusterUnavailable as error:
            _log.warning("%s", error)
            await asyncio.sleep(_RETRY)
        except ApiError as error:
            hint = (
                "are the CRDs installed?" if error.code == HTTPStatus.NOT_FOUND else "is its role in place?"
            )
            raise Fatal(f"what is there cannot be listed: {error} ({hint})") from error
        else:
            return


def _why(
    held: asyncio.Task[None], watched: asyncio.Future[None], work: set[asyncio.Task[None]]
) -> BaseException:
    """Why one of these has ended."""
    if held.done():
        return Fatal("the Lease is lost: another operator may lead now; start again to stand by")
    if watched.done():
        return Fatal(f"watching the API server has ended: {watched.exception()}")
    for task in work:
        if task.done() and (failure := task.exception()) is not None:
            return failure
    return Fatal("a part of the operator has ended")
