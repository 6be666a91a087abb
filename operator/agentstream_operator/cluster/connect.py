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


async def connect(kubeconfig: Path | None = None, context: str | None = None) -> ClusterConnection:
    """Finds the API server; sends no request yet.

    Args:
        kubeconfig: the file to read; if absent, those of `KUBECONFIG`, or the usual one.
        context: of the kubeconfig; the current one if absent. With neither, a pod uses its own cluster.

    Raises:
        NoCluster: no API server is configured.
    """
    # in Python 3.11, one object that is nested deeper would end every list and watch of its kind
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _JSON_DEPTH + 1_000))
    configuration = Configuration()
    in_cluster = kubeconfig is None and context is None and _is_pod()
    try:
        if in_cluster:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            _expect_a_kubeconfig(kubeconfig)
            await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=_text(kubeconfig), context=context, client_configuration=configuration
            )
        configuration.connection_pool_maxsize = _POOL
        # else each request asks for proxies and a .netrc, which costs more than the request
        configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
        namespace = _pod_namespace() if in_cluster else _namespace(kubeconfig, context)
        return ClusterConnection(ApiClient(configuration), in_cluster, namespace)
    except _UNUSABLE as error:
        raise NoCluster(f"no cluster: run it in a pod, or set KUBECONFIG ({error})") from error


async def bearer_token(client: ApiClient) -> str | None:
    """Returns the token that identifies this process, or None if something else does, as a certificate."""
    settings = await client.configuration.auth_settings()
    scheme, _, token = str((settings.get("BearerToken") or {}).get("value") or "").partition(" ")
    return token if scheme == "Bearer" and token else None


def context_names(kubeconfig: Path | None = None) -> list[str]:
    """Returns the names of the contexts of a kubeconfig.

    Raises:
        NoCluster: it cannot be read.
    """
    try:
        every, _ = kube_config.list_kube_config_contexts(_text(kubeconfig))  # type: ignore[no-untyped-call]
        return [str(each["name"]) for each in every]
    except _UNUSABLE as error:
        raise NoCluster(f"the kubeconfig cannot be read: {error}") from error


def _is_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and _NAMESPACE.exists()


def _pod_namespace() -> str:
    return os.environ.get("POD_NAMESPACE") or _NAMESPACE.read_text(encoding="ascii").strip()


def _namespace(kubeconfig: Path | None, context: str | None) -> str:
    if named := os.environ.get("POD_NAMESPACE"):
        return named
    every, active = kube_config.list_kube_config_contexts(_text(kubeconfig))  # type: ignore[no-untyped-call]
    meant = active if context is None else next(each for each in every if each["name"] == context)
    return str((meant.get("context") or {}).get("namespace") or "default")


def _expect_a_kubeconfig(kubeconfig: Path | None) -> None:
    """Raises the error that the client only logs."""
    named = _text(kubeconfig) or str(kube_config.KUBE_CONFIG_DEFAULT_LOCATION)
    if not any(Path(each).expanduser().exists() for each in named.split(os.pathsep)):
        raise ConfigException(f"there is no file {named}")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
