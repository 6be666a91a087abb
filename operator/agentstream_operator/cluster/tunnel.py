"""Reaches the queue server of a cluster from outside: the API server forwards a port of this machine.

The frames are those of `v4.channel.k8s.io` (`k8s.io/kubelet/pkg/cri/streaming/portforward`): the first byte
is the channel, 0 for data and 1 for errors; a channel's first frame has the number of the port, no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientError, ClientWebSocketResponse, WSMsgType, WSServerHandshakeError
from kubernetes.aio.client.api_client import ApiClient

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.connect import ClusterConnection, bearer_token, connect
from agentstream_operator.cluster.kinds import PODS, SERVICES
from agentstream_operator.cluster.port import ClusterUnavailable

INSTALLED_IN: Final = "agentstream-system"
"""The namespace that the documentation installs into."""

_SELECTOR = "app.kubernetes.io/part-of=agentstream,app.kubernetes.io/component=queue-server"
_PROTOCOL = "v4.channel.k8s.io"
_DATA, _ERROR = 0, 1
_CHUNK = 65_536
_WITHIN = 15.0

_TOKEN_SECONDS = 3_600
"""For how long a token is asked for where the user has none."""

Json = dict[str, Any]


class NoQueueServer(Exception):  # noqa: N818 - named after what is wrong
    """No queue server can be reached in the cluster; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class QueueService:
    """The Service of a server, as the queue server, and the pod that answers for it."""

    namespace: str
    name: str
    pod: str
    port: int
    instead: str = "use --api URL"
    """What to do where its port may not be forwarded."""

    @property
    def account(self) -> str:
        """The ServiceAccount for people without a token of their own."""
        return f"{self.name.removesuffix('-queue-server')}-cli"


class _Login:
    """Knows the caller's token."""

    def __init__(
        self, connection: ClusterConnection, renew: Callable[[], Awaitable[ClusterConnection]]
    ) -> None:
        self._connection = connection
        self._renew = renew
        self._used = False

    async def token(self, service: QueueService) -> str:
        if token := await (self._again() if self._used else bearer_token(self._connection.client)):
            self._used = True
            return token
        try:
            api = Api(self._connection.client)
            return await api.token(service.namespace, service.account, _TOKEN_SECONDS)
        except ApiError as error:
            raise NoQueueServer(
                "the kubeconfig identifies you by a certificate, which the queue server does not see, and "
                f"you may not create a token of ServiceAccount {service.namespace}/{service.account}: "
                f"use a user with a token, or have it allowed, create on serviceaccounts/token ({error})"
            ) from error

    async def _again(self) -> str | None:
        """Runs a plugin and reads a file once more."""
        connection = await self._renew()
        try:
            return await bearer_token(connection.client)
        finally:
            await connection.close()


@dataclass(frozen=True, slots=True, eq=False)
class Tunnel:
    """The way to the queue server."""

    service: QueueService
    namespace: str
    """The namespace that the context of the kubeconfig means."""

    port: int
    """The port on 127.0.0.1 that leads there."""

    _login: _Login

    async def token(self) -> str:
        """Returns a bearer token for the queue server: the user's own, else one of the account for people.

        Called again, it asks where the first one came from for a new one.

        Raises:
            NoCluster: the kubeconfig cannot be used any more.
            NoQueueServer: the user has none and may not get one.
            ClusterUnavailable: the API server does not answer.
        """
        return await self._login.token(self.service)


@asynccontextmanager
async def open_tunnel(
    kubeconfig: Path | None, context: str | None, namespace: str | None
) -> AsyncIterator[Tunnel]:
    """Opens a way to the queue server; `namespace` is the one it runs in.

    Raises:
        NoCluster: no API server is configured.
        NoQueueServer: there is none, or the user may not reach it.
        ClusterUnavailable: the API server does not answer.
    """
    connection = await connect(kubeconfig, context)
    api = Api(connection.client)
    try:
        service = await _find(api, namespace)
        login = _Login(connection, partial(connect, kubeconfig, context))
        async with forward(connection.client, service) as port:
            yield Tunnel(service, connection.namespace, port, login)
    except ApiError as error:
        raise NoQueueServer(f"the API server refused it: {error}") from error
    finally:
        await connection.close()


@asynccontextmanager
async def forward(client: ApiClient, service: QueueService) -> AsyncIterator[int]:
    """Forwards a port of this machine to a pod. Yields the port.

    Raises:
        NoQueueServer: the caller may not.
        ClusterUnavailable: the API server does not do it.
    """
    # what is refused is said before anything is asked of the pod
    bridge = _Bridge(client, service, await _dial(client, service))
    server = await asyncio.start_server(bridge.serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await bridge.close()


async def _find(api: Api, namespace: str | None) -> QueueService:
    """Finds the Service and a pod of it that is ready.

    Whoever runs the pod gets the caller's token, so that it must not be found by its labels in any namespace:
    whoever may make Services could wait there for an administrator.
    """
    where = namespace or INSTALLED_IN
    services = [found async for found in api.list(SERVICES, where, _SELECTOR)]
    match services:
        case [service]:
            pass
        case []:
            raise NoQueueServer(await _elsewhere(api, where, named=namespace is not None))
        case _:
            names = ", ".join(each["metadata"]["name"] for each in services)
            raise NoQueueServer(f"there are several queue servers in {where} ({names}): use --api URL")
    return await find_pod(api, service, "the queue server", "use --api URL")


async def find_pod(
    api: Api, service: Json, what: str, instead: str, *, port: int | None = None
) -> QueueService:
    """Finds a pod of a Service that is ready; `port` is that of the Service, its first one if absent.

    Raises:
        NoQueueServer: none is ready.
    """
    where, name, spec = service["metadata"]["namespace"], service["metadata"]["name"], service["spec"]
    if not spec.get("selector") or not spec.get("ports"):
        # without a selector, any pod of the namespace would get the caller's token or password
        raise NoQueueServer(f"Service {where}/{name} does not select pods: {instead}")
    ports = [each for each in spec["ports"] if port in {None, each["port"]}] or spec["ports"]
    selector = ",".join(f"{label}={value}" for label, value in spec["selector"].items())
    async for pod in api.list(PODS, where, selector):
        if _is_ready(pod):
            return QueueService(where, name, pod["metadata"]["name"], _port(ports[0], pod), instead)
    raise NoQueueServer(f"no pod of {what} is ready: kubectl -n {where} get pods -l {selector}")


async def _elsewhere(api: Api, where: str, *, named: bool) -> str:
    """What to do where it is not found: names other namespaces that have one."""
    missing = f"there is no queue server in namespace {where}"
    install = "install the chart with queueServer.enabled=true"
    if not named:
        with contextlib.suppress(ApiError):
            found = sorted({s["metadata"]["namespace"] async for s in api.list(SERVICES, None, _SELECTOR)})
            if found:
                return (
                    f"{missing}, but in {', '.join(found)}: if you trust who may make Services there, "
                    f"--api-namespace {found[0]}, or set AGENTSTREAM_API_NAMESPACE"
                )
    return f"{missing}: name its namespace with --api-namespace, or {install}"


def _is_ready(pod: Json) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    ends = "deletionTimestamp" in pod["metadata"]
    return not ends and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _port(port: Json, pod: Json) -> int:
    """The number of a Service's port in a pod, where it may have a name."""
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    declared = (p for container in pod["spec"]["containers"] for p in container.get("ports") or ())
    return next((int(p["containerPort"]) for p in declared if p.get("name") == target), int(port["port"]))


async def _dial(client: ApiClient, service: QueueService) -> ClientWebSocketResponse:
    """Opens a connection to the pod's port."""
    configuration = client.configuration
    path = PODS.path(service.namespace, service.pod, "portforward")
    headers = {each["key"]: each["value"] for each in (await configuration.auth_settings()).values()}
    session = client.rest_client.pool_manager
    if session is None:
        raise ClusterUnavailable("there is no connection to the API server")
    try:
        async with asyncio.timeout(_WITHIN):
            return await session.ws_connect(
                f"{configuration.host}{path}?ports={service.port}",
                headers=headers,
                protocols=(_PROTOCOL,),
                proxy=configuration.proxy,
                server_hostname=configuration.tls_server_name,
                max_msg_size=0,
            )
    except WSServerHandshakeError as error:
        if error.status == HTTPStatus.FORBIDDEN:
            raise NoQueueServer(
                f"you may not forward ports to pod {service.namespace}/{service.pod}: have that allowed "
                f"(create on pods/portforward), or {service.instead}"
            ) from error
        raise ClusterUnavailable(
            f"the API server forwards no ports: {error.status} {error.message}"
        ) from error
    except (ClientError, TimeoutError, OSError, ssl.SSLError) as error:
        said = str(error) or type(error).__name__
        raise ClusterUnavailable(f"the API server forwards no ports: {said}") from error


class _Bridge:
    """Joins connections to the port of this machine with connections to the pod."""

    def __init__(self, client: ApiClient, service: QueueService, first: ClientWebSocketResponse) -> None:
        self._client = client
        self._service = service
        self._spare: ClientWebSocketResponse | None = first
        self._open: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves a connection until either side ends it."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        self._open.add(task)
        try:
            socket, self._spare = self._spare, None
            async with socket or await _dial(self._client, self._service) as far:
                up = asyncio.create_task(_send(reader, far))
                try:
                    await _receive(far, writer)
                finally:
                    up.cancel()
                    await asyncio.gather(up, return_exceptions=True)
        except (ClusterUnavailable, NoQueueServer, ClientError, OSError):
            # the client sees that the connection ends
            return
        except asyncio.CancelledError:
            # at the end; the server of Python 3.11 would print that its task was cancelled
            return
        finally:
            writer.close()
            self._open.discard(task)

    async def close(self) -> None:
        """Ends all connections."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._spare is not None:
            await self._spare.close()


async def _send(reader: asyncio.StreamReader, far: ClientWebSocketResponse) -> None:
    while data := await reader.read(_CHUNK):
        await far.send_bytes(bytes([_DATA]) + data)
    await far.close()


async def _receive(far: ClientWebSocketResponse, writer: asyncio.StreamWriter) -> None:
    begun = set[int]()
    async for message in far:
        if message.type is not WSMsgType.BINARY or not message.data:
            continue
        channel, data = message.data[0], message.data[1:]
        if channel not in begun:
            # the number of the port
            begun.add(channel)
            data = data[2:]
        if channel == _ERROR and data:
            return
        if channel == _DATA and data:
            writer.write(data)
            await writer.drain()
