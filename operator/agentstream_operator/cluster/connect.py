"""Finds the API server: from inside a pod, or by a kubeconfig."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.request import getproxies

from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import kube_config
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config
from yaml import YAMLError

_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_POOL = 64

_JSON_DEPTH = 10_000
"""Levels of nesting that the API server takes."""

# the client does not validate a kubeconfig: an invalid one fails wherever a field is read
_UNUSABLE = (ConfigException, YAMLError, OSError, LookupError, TypeError, ValueError)


class NoCluster(Exception):  # noqa: N818 - it says what is wrong
    """Neither the environment of a pod nor a kubeconfig names an API server; the message has the details."""


@dataclass(frozen=True, slots=True)
class ClusterConnection:
    """The API server, and this process's namespace in its cluster."""

    client: ApiClient
    in_cluster: bool
    """Whether this process runs in a pod of the cluster."""

    namespace: str

    async def close(self) -> None:
        """Ends the client's connections."""
        await self.client.close()  # type: ignore[no-untyped-call]


async def connect() -> ClusterConnection:
    """Finds the API server; sends no request yet.

    Raises:
        NoCluster: no API server is configured.
    """
    # in Python 3.11, one object that is nested deeper would end every list and watch of its kind
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _JSON_DEPTH + 1_000))
    configuration = Configuration()
    in_cluster = _is_pod()
    try:
        if in_cluster:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
                client_configuration=configuration
            )
        configuration.connection_pool_maxsize = _POOL
        # else each request asks for proxies and a .netrc, which costs more than the request
        configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
        return ClusterConnection(ApiClient(configuration), in_cluster, _namespace(in_cluster=in_cluster))
    except _UNUSABLE as error:
        raise NoCluster(f"no cluster: run it in a pod, or set KUBECONFIG ({error})") from error


def _is_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and _NAMESPACE.exists()


def _namespace(*, in_cluster: bool) -> str:
    if named := os.environ.get("POD_NAMESPACE"):
        return named
    if in_cluster:
        return _NAMESPACE.read_text(encoding="ascii").strip()
    _, active = kube_config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
    return str((active.get("context") or {}).get("namespace") or "default")
