"""Consumers of a group."""

from __future__ import annotations

from fastapi import APIRouter

from agentstream_operator.queue_api.access import NUMBERS, GroupName, Namespace, declared, of_group
from agentstream_operator.queue_api.documents import ConsumersAnswer
from agentstream_operator.queue_api.limits import SEARCH
from agentstream_operator.queue_api.sources import SourcesOf

routes = APIRouter(prefix="/queue/consumers", tags=["numbers"])


@routes.get(
    "/{namespace}/{group}",
    summary="Consumers of a group",
    dependencies=[of_group(NUMBERS), SEARCH],
    openapi_extra=declared(NUMBERS),
)
async def get_consumers(*, sources: SourcesOf, namespace: Namespace, group: GroupName) -> ConsumersAnswer:
    """Returns the consumers of a group, those that hold most first, and which messages they hold."""
    return await sources.consumers.consumers(sources.group(namespace, group))
