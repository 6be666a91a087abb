"""Lets somebody outside of a cluster send as an agent: its credentials, and a way to the server."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.connect import connect
from agentstream_operator.cluster.kinds import AGENTSTREAMS, CONSUMERGROUPS, SECRETS, SERVICES
from agentstream_operator.cluster.labels import secret_name
from agentstream_operator.cluster.tunnel import find_pod, forward
from agentstream_operator.resources.meta import ResourceKey

_SERVICE: Final = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)\.svc(\..*)?")
_FROM_A_POD: Final = "send from a pod that mounts the agent's Secret"


class CannotSend(Exception):  # noqa: N818 - named after what is wrong
    """Nobody can send as this agent from here; the message says why, and what to do."""


async def declared_as(
    kubeconfig: Path | None, context: str | None, namespace: str | None, name: str
) -> dict[ResourceKey, dict[str, Any]]:
    """Returns the specs of the group and of the stream of a name, and that of the group's stream.

    Raises:
        NoCluster: no API server is configured.
        ApiError: the caller may not read them.
        ClusterUnavailable: the API server does not answer.
    """
    connection = await connect(kubeconfig, context)
    api, where = Api(connection.client), namespace or connection.namespace
    specs: dict[ResourceKey, dict[str, Any]] = {}
    try:
        if (group := await api.get(CONSUMERGROUPS, where, name)) is not None:
            specs[ResourceKey(CONSUMERGROUPS.kind, where, name)] = group["spec"]
        for stream in {name, group["spec"]["streamRef"]["name"] if group is not None else name}:
            if (found := await api.get(AGENTSTREAMS, where, stream)) is not None:
                specs[ResourceKey(AGENTSTREAMS.kind, where, stream)] = found["spec"]
        return specs
    finally:
        await connection.close()


@asynccontextmanager
async def open_sender(
    kubeconfig: Path | None, context: str | None, namespace: str, agent: str
) -> AsyncIterator[dict[str, str]]:
    """Yields the entries of an agent's Secret, whose `uri` leads to the server meanwhile.

    A server that is a Service of the cluster is reached by a port that the API server forwards.

    Raises:
        CannotSend: the caller may not, or the server cannot be reached so.
        NoCluster, NoQueueServer, ClusterUnavailable: as `open_tunnel`.
    """
    connection = await connect(kubeconfig, context)
    api = Api(connection.client)
    try:
        entries = await _entries(api, namespace, agent)
        address = urlsplit(entries["uri"])
        found = _SERVICE.fullmatch(address.hostname or "")
        if found is None:
            yield entries
            return
        if address.scheme != "redis":
            raise CannotSend(
                f"{found[0]} is reached by TLS under this name, and not from here: {_FROM_A_POD}"
            )
        service = await api.get(SERVICES, found[2], found[1])
        if service is None:
            raise CannotSend(f"there is no Service {found[2]}/{found[1]}, which the agent's Secret names")
        pod = await find_pod(api, service, "Redis or Valkey", _FROM_A_POD, port=address.port)
        async with forward(connection.client, pod) as port:
            yield entries | {"uri": address._replace(netloc=f"127.0.0.1:{port}").geturl()}
    except ApiError as error:
        raise CannotSend(f"the API server refused it: {error}") from error
    finally:
        await connection.close()


async def _entries(api: Api, namespace: str, agent: str) -> dict[str, str]:
    name = secret_name(agent)
    try:
        found = await api.get(SECRETS, namespace, name)
    except ApiError as error:
        if error.code == HTTPStatus.FORBIDDEN:
            text = f"you may not read Secret {namespace}/{name}, with which {agent} sends"
            raise CannotSend(f"{text}: have that allowed (get on it), or {_FROM_A_POD}") from error
        raise
    if found is None:
        text = f"there is no Secret {namespace}/{name}"
        raise CannotSend(f"{text}: `agentstream doctor` says whether the operator works, which writes it")
    try:
        entries = {part: base64.b64decode(data).decode().strip() for part, data in found["data"].items()}
        # its port is a number
        _ = urlsplit(entries["uri"]).port
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CannotSend(f"Secret {namespace}/{name} is damaged: the operator writes it again") from error
    return entries
