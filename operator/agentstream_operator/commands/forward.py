"""Reaches the API of a cluster: by a port that the API server forwards, with the token of the kubeconfig."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from agentstream_operator.cluster.api import ApiError
from agentstream_operator.cluster.connect import NoCluster, context_names
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.cluster.sender import CannotSend, declared_as, open_sender
from agentstream_operator.cluster.survey import survey
from agentstream_operator.cluster.trial import try_all
from agentstream_operator.cluster.tunnel import NoQueueServer, Tunnel, open_tunnel
from agentstream_operator.commands.failure import BAD_INPUT, UNREACHABLE, CommandFailed
from agentstream_operator.commands.options import ApiOptions, ApiTarget
from agentstream_operator.plan.changes import Trial
from agentstream_operator.plan.checkup import Finding
from agentstream_operator.resources.meta import ResourceKey

__all__ = ["context_names", "declared", "forwarded", "sending", "surveyed", "tried"]


@contextmanager
def forwarded(options: ApiOptions) -> Iterator[ApiTarget]:
    """Opens the way to the API of a cluster, and keeps it open meanwhile.

    Raises:
        CommandFailed: there is no cluster or no queue server in it, or the user may not reach it.
    """
    with start_blocking_portal() as portal:
        opened = open_tunnel(options.kubeconfig, options.context, options.api_namespace)
        with _told(), portal.wrap_async_context_manager(opened) as tunnel:
            yield _target(portal, tunnel)


def surveyed(options: ApiOptions, ours: str) -> list[Finding]:
    """Looks at the installation in a cluster; `ours` is the version of this program.

    Raises:
        CommandFailed: there is no cluster, or it does not answer.
    """
    namespace, home = "" if options.all_namespaces else options.namespace, options.api_namespace or ""
    with start_blocking_portal() as portal, _told():
        return portal.call(survey, options.kubeconfig, options.context, home, namespace, ours)


def tried(options: ApiOptions, manifests: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """Applies manifests for trial, in a cluster.

    Raises:
        CommandFailed: there is no cluster, it does not answer, or the user may not read what is there.
    """
    with start_blocking_portal() as portal, _told():
        return portal.call(try_all, options.kubeconfig, options.context, options.namespace, manifests)


def declared(options: ApiOptions, name: str) -> dict[ResourceKey, dict[str, Any]]:
    """Returns the specs of a group and a stream of this name in a cluster.

    Raises:
        CommandFailed: there is no cluster, it does not answer, or the user may not read them.
    """
    with start_blocking_portal() as portal, _told():
        return portal.call(declared_as, options.kubeconfig, options.context, options.namespace, name)


@contextmanager
def sending(options: ApiOptions, namespace: str, agent: str) -> Iterator[dict[str, str]]:
    """Opens a way to the server of a cluster, and yields the entries of an agent's Secret that lead there.

    Raises:
        CommandFailed: the user may not send as the agent, or not from here.
    """
    with start_blocking_portal() as portal:
        opened = open_sender(options.kubeconfig, options.context, namespace, agent)
        with _told(), portal.wrap_async_context_manager(opened) as entries:
            yield entries


def _target(portal: BlockingPortal, tunnel: Tunnel) -> ApiTarget:
    def token() -> str:
        with _told():
            return portal.call(tunnel.token)

    service = tunnel.service
    return ApiTarget(
        url=f"https://127.0.0.1:{tunnel.port}",
        token=token,
        namespace=tunnel.namespace,
        place=f"the queue server in {service.namespace}",
        remedy=f"kubectl -n {service.namespace} logs {service.pod}",
        verify=_unverified(),
        forwarded=True,
    )


def _unverified() -> ssl.SSLContext:
    """TLS whose certificate is not checked.

    The API server, whose certificate is, found the pod, and its kubelet connects to the port inside of the
    pod: nobody but who runs the pod or its node could answer instead. The certificate is one that the chart
    signs itself, so that it says no more than that.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def _told() -> Iterator[None]:
    """Turns what prevents the way into what ends a command."""
    try:
        yield
    except NoCluster as error:
        raise CommandFailed(
            f"{error}; or run the command in the folder of a running `agentstream dev`", code=BAD_INPUT
        ) from error
    except CannotSend as error:
        raise CommandFailed(str(error)) from error
    except (NoQueueServer, ClusterUnavailable, ApiError) as error:
        raise CommandFailed(str(error), code=UNREACHABLE) from error
