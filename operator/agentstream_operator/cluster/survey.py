"""Looks at an installation in a cluster, with the rights of the caller: for what can be wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.connect import bearer_token, connect
from agentstream_operator.cluster.kinds import (
    AGENTSTREAMS,
    CONSUMERGROUPS,
    DEFINITIONS,
    DEPLOYMENTS,
    STREAMREPLAYS,
    ApiKind,
)
from agentstream_operator.cluster.tunnel import INSTALLED_IN
from agentstream_operator.plan.checkup import Definition, Deployed
from agentstream_operator.resources.crd import KINDS, crd

_OPERATORS: Final = "app.kubernetes.io/part-of=agentstream,app.kubernetes.io/component=operator"
_VERSION: Final = "app.kubernetes.io/version"

# what it is in words, verb, kind, subresource
RIGHTS: Final = (
    ("read numbers", "get", CONSUMERGROUPS, "lag"),
    ("read messages", "get", AGENTSTREAMS, "messages"),
    ("read dead letters", "get", CONSUMERGROUPS, "deadletters"),
    ("replay messages", "create", STREAMREPLAYS, ""),
)


@dataclass(frozen=True, slots=True)
class Right:
    """What the caller may do, or may not."""

    what: str
    need: str
    allowed: bool


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found. A text in place of what was looked for says why it could not be looked at."""

    version: str
    clock: datetime | None
    definitions: tuple[Definition | str, ...]
    operators: tuple[Deployed, ...] | str
    home: str
    """The namespace in which the operator was looked for."""

    rights: tuple[Right, ...]
    namespace: str
    """The namespace that the rights are for; empty: all."""

    certificate: bool
    """Whether the caller is known by a certificate, which the queue server does not see."""


async def survey(
    kubeconfig: Path | None, context: str | None, home: str | None, namespace: str | None, *, everywhere: bool
) -> Survey:
    """Looks at the API server, the CRDs, the operator, and the rights of the caller.

    Args:
        kubeconfig: as `connect`.
        context: as `connect`.
        home: namespace of the installation.
        namespace: the one that the rights are for; that of the context if absent.
        everywhere: whether they are for all namespaces.

    Raises:
        NoCluster: no API server is configured.
        ApiError: it does not know the caller.
        ClusterUnavailable: it does not answer.
    """
    connection = await connect(kubeconfig, context)
    api, where = Api(connection.client), home or INSTALLED_IN
    meant = "" if everywhere else namespace or connection.namespace
    try:
        version, clock = await api.version()
        return Survey(
            version=version,
            clock=clock,
            definitions=tuple([await _definition(api, crd(kind)) for kind in KINDS]),
            operators=await _operators(api, where),
            home=where,
            rights=tuple([await _right(api, right, meant) for right in RIGHTS]),
            namespace=meant,
            certificate=await bearer_token(connection.client) is None,
        )
    finally:
        await connection.close()


async def _definition(api: Api, wanted: dict[str, Any]) -> Definition | str:
    name = wanted["metadata"]["name"]
    try:
        return Definition(name, wanted, await api.get(DEFINITIONS, None, name))
    except ApiError as error:
        return f"{name}: {error}"


async def _operators(api: Api, namespace: str) -> tuple[Deployed, ...] | str:
    try:
        found = [each async for each in api.list(DEPLOYMENTS, namespace, _OPERATORS)]
    except ApiError as error:
        return str(error)
    return tuple(
        Deployed(
            f"{namespace}/{each['metadata']['name']}",
            (each["metadata"].get("labels") or {}).get(_VERSION, ""),
            int(each["spec"].get("replicas", 1)),
            int((each.get("status") or {}).get("readyReplicas") or 0),
        )
        for each in found
    )


async def _right(api: Api, asked: tuple[str, str, ApiKind, str], namespace: str) -> Right:
    what, verb, kind, part = asked
    need = f"{verb} on {kind.plural}{f'/{part}' if part else ''}"
    return Right(what, need, await api.may(verb, kind, namespace, part))
