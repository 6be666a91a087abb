"""Having fewer consumers: those that hold the least go first."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from agentstream.errors import AgentStreamError
from agentstream_operator.cluster.port import ClusterRefused
from agentstream_operator.reconcile.context import Context
from agentstream_operator.reconcile.state.index import stream_of
from agentstream_operator.resources.consumergroup import ConsumerGroup

_log = logging.getLogger(__name__)


async def set_deletion_costs(context: Context, group: ConsumerGroup) -> None:
    """Lets the idle consumers of a group go first, before there are to be fewer.

    Whoever goes hands back what it holds: that this cannot be said does not keep the number as it is.

    Raises:
        ClusterUnavailable: as the port.
    """
    store = context.store
    consumed = [(store.streams.get(stream_of(other)), other) for other in store.groups_of_agent(group)]
    try:
        held = await asyncio.gather(
            *(
                context.broker.holdings(stream.stream_key, other.group_name)
                for stream, other in consumed
                if stream is not None
            )
        )
        await context.cluster.rank_pods(group, sum(held, Counter[str]()))
    except (AgentStreamError, ClusterRefused) as error:
        _log.warning("%s: any consumer may be the first to go: %s", group.key, error)
