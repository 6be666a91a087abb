"""How much there is to do: the numbers of streams and groups."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from agentstream_operator.queue_api.access import (
    NAME,
    NUMBERS,
    GroupName,
    Namespace,
    Rights,
    RightsOf,
    declared,
    of_group,
)
from agentstream_operator.queue_api.documents import GroupLagAnswer, LagAnswer
from agentstream_operator.queue_api.problems import Refusal
from agentstream_operator.queue_api.sources import Sources, SourcesOf

routes = APIRouter(prefix="/queue/lag", tags=["numbers"])


async def lag_of(
    rights: Rights,
    sources: Sources,
    namespace: str | None = None,
    stream: str | None = None,
    group: str | None = None,
) -> LagAnswer:
    """Measures what a caller may see, and asks for.

    Raises:
        Refusal: 403: that is nothing.
    """
    if namespace is None:
        seen = await rights.among(NUMBERS, sources.namespaces)
    else:
        await rights.require(NUMBERS, namespace)
        seen = frozenset((namespace,))
    index = sources.index
    groups = [
        found
        for key, found in sorted(index.groups.items())
        if key.namespace in seen
        and stream in (None, found.spec.stream_ref.name)
        and group in (None, key.name)
    ]
    read = {(found.metadata.namespace, found.spec.stream_ref.name) for found in groups}
    streams = [
        found
        for key, found in sorted(index.streams.items())
        if key.namespace in seen
        and stream in (None, key.name)
        and (group is None or (key.namespace, key.name) in read)
    ]
    return await sources.lags.lag(streams, groups)


@routes.get("", summary="All numbers", openapi_extra=declared(NUMBERS))
async def get_lag(
    rights: RightsOf,
    sources: SourcesOf,
    namespace: Annotated[str | None, Query(pattern=NAME, description="Only of this namespace.")] = None,
    stream: Annotated[str | None, Query(pattern=NAME, description="Only this AgentStream.")] = None,
    group: Annotated[str | None, Query(pattern=NAME, description="Only this ConsumerGroup.")] = None,
) -> LagAnswer:
    """Returns the numbers of all streams and groups of the namespaces whose numbers the caller may read."""
    return await lag_of(rights, sources, namespace, stream, group)


@routes.get(
    "/{namespace}/{group}",
    summary="The numbers of one group",
    dependencies=[of_group(NUMBERS)],
    openapi_extra=declared(NUMBERS),
)
async def get_group_lag(sources: SourcesOf, namespace: Namespace, group: GroupName) -> GroupLagAnswer:
    """Returns the numbers of a group, or 503 while they are unknown: what scales by them keeps its replicas.

    For the scaler `metrics-api` of KEDA: `valueLocation: backlog`.
    """
    found = sources.group(namespace, group)
    lag = await sources.lags.lag((), (found,))
    (numbers,) = lag.groups
    if not numbers.known:
        detail = f"the backlog of ConsumerGroup {namespace}/{group} is not known: {numbers.reason}"
        remedy = f"kubectl -n {namespace} describe consumergroup {group} says why, under Conditions"
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, detail, remedy, headers={"Retry-After": "5"})
    return GroupLagAnswer(at=lag.at, **dict(numbers))
