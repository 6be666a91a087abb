"""Looks at an installation in a cluster, with the rights of the caller: for what can be wrong with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.connect import bearer_token, connect
from agentstream_operator.cluster.kinds import (
    AGENTSTREAMS,
    CONSUMERGROUPS,
    DEFINITIONS,
    DEPLOYMENTS,
    STREAMREPLAYS,
)
from agentstream_operator.cluster.tunnel import INSTALLED_IN
from agentstream_operator.plan import checkup
from agentstream_operator.plan.checkup import Deployed, Finding, Verdict
from agentstream_operator.resources.crd import KINDS, crd

_OPERATORS: Final = "app.kubernetes.io/part-of=agentstream,app.kubernetes.io/component=operator"
_RIGHTS: Final = (
    ("read numbers", "get", CONSUMERGROUPS, "lag"),
    ("read messages", "get", AGENTSTREAMS, "messages"),
    ("read dead letters", "get", CONSUMERGROUPS, "deadletters"),
    ("replay messages", "create", STREAMREPLAYS, ""),
)
_CERTIFICATE: Final = "your kubeconfig has a certificate, which the queue server does not see"


async def survey(
    kubeconfig: Path | None, context: str | None, home: str, namespace: str | None, ours: str
) -> list[Finding]:
    """Looks at the API server, the CRDs, the operator, and the rights of the caller.

    Args:
        kubeconfig: as `connect`.
        context: as `connect`.
        home: namespace of the installation; the usual one if empty.
        namespace: the one that the rights are for: empty for all of them; that of the context if absent.
        ours: the version of this program.

    Raises:
        NoCluster: no API server is configured.
        ApiError: it does not know the caller.
        ClusterUnavailable: it does not answer.
    """
    connection = await connect(kubeconfig, context)
    api, meant = Api(connection.client), connection.namespace if namespace is None else namespace
    try:
        version, clock = await api.version()
        found = [checkup.check_kubernetes(version)]
        if clock is not None:
            found.append(checkup.check_clock("the API server", clock, datetime.now(UTC)))
        found += [each async for each in _definitions(api)]
        found += await _operators(api, home or INSTALLED_IN, ours)
        found += [each async for each in _rights(api, meant)]
        if await bearer_token(connection.client) is None:
            remedy = "there you may what the chart's queueServer.cliMay says"
            found.append(Finding("rights", Verdict.NOTE, _CERTIFICATE, remedy))
        return found
    finally:
        await connection.close()


async def _definitions(api: Api) -> AsyncIterator[Finding]:
    for wanted in map(crd, KINDS):
        name = wanted["metadata"]["name"]
        try:
            yield checkup.check_definition(name, wanted, await api.get(DEFINITIONS, None, name))
        except ApiError as error:
            yield Finding("crd", Verdict.NOTE, f"{name}: {error}", "somebody with rights to CRDs can look")


async def _operators(api: Api, namespace: str, ours: str) -> list[Finding]:
    try:
        found = [each async for each in api.list(DEPLOYMENTS, namespace, _OPERATORS)]
    except ApiError as error:
        remedy = f"ask for list on deployments in {namespace} to see whether the operator runs"
        return [Finding("operator", Verdict.NOTE, str(error), remedy)]
    deployed = (
        Deployed(
            f"{namespace}/{each['metadata']['name']}",
            (each["metadata"].get("labels") or {}).get("app.kubernetes.io/version", ""),
            int(each["spec"].get("replicas", 1)),
            int((each.get("status") or {}).get("readyReplicas") or 0),
        )
        for each in found
    )
    return checkup.check_operator(deployed, namespace, ours)


async def _rights(api: Api, namespace: str) -> AsyncIterator[Finding]:
    where = f"namespace {namespace}" if namespace else "all namespaces"
    for what, verb, kind, part in _RIGHTS:
        need = f"{verb} on {kind.plural}{f'/{part}' if part else ''}"
        yield checkup.check_right(what, need, where, allowed=await api.may(verb, kind, namespace, part))
