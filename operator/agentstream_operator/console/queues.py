"""The pages of all queues, of a stream, and of a group."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from agentstream_operator.console.charts import Line, chart
from agentstream_operator.console.inner import Refused
from agentstream_operator.console.pages import ShownPage
from agentstream_operator.console.visit import Visit
from agentstream_operator.queue_api.documents import (
    ConsumersAnswer,
    GroupNumbers,
    LagAnswer,
    MessagesAnswer,
)
from agentstream_operator.queue_api.troubles import troubles

_LISTED: Final = "50"


async def overview(visit: Visit) -> ShownPage:
    """Shows what is wrong, and all streams with their groups."""
    lag = await visit.api.get("/queue/lag", LagAnswer)
    _remember(visit, lag)
    groups: defaultdict[tuple[str, str], list[GroupNumbers]] = defaultdict(list)
    for group in lag.groups:
        groups[group.namespace, group.stream].append(group)
    named = [(stream, groups.pop((stream.namespace, stream.name), [])) for stream in lag.streams]
    strays = [group for each in groups.values() for group in each]
    content = {"lag": lag, "troubles": troubles(lag), "streams": named, "strays": strays}
    return ShownPage("overview.html", "Queues", content, live=True)


async def stream(visit: Visit) -> ShownPage:
    """Shows a stream, its groups, and its messages as far as they match what is asked for."""
    namespace, name = visit.places["namespace"], visit.places["name"]
    lag = await visit.api.get("/queue/lag", LagAnswer, {"namespace": namespace, "stream": name})
    query = {
        each: visit.asked(each) for each in ("since", "type", "from", "correlation", "id", "q", "cursor")
    }
    found, problem = None, None
    try:
        path = f"/queue/messages/{namespace}/{name}"
        found = await visit.api.get(path, MessagesAnswer, {**query, "limit": _LISTED})
    except Refused as refused:
        # who may not read messages may still see numbers
        problem = refused.problem
    content = {
        "stream": next(iter(lag.streams), None),
        "troubles": troubles(lag),
        "groups": lag.groups,
        "found": found,
        "problem": problem,
        "query": query,
        "place": (namespace, name),
    }
    return ShownPage("stream.html", f"AgentStream {namespace}/{name}", content)


async def group(visit: Visit) -> ShownPage:
    """Shows a group: its numbers over time, its conditions, and what its consumers hold."""
    namespace, name = visit.places["namespace"], visit.places["name"]
    lag = await visit.api.get("/queue/lag", LagAnswer, {"namespace": namespace, "group": name})
    _remember(visit, lag)
    consumers, problem = None, None
    try:
        consumers = await visit.api.get(f"/queue/consumers/{namespace}/{name}", ConsumersAnswer)
    except Refused as refused:
        problem = refused.problem
    points = visit.history.of(namespace, name)
    times = [point.at for point in points]
    backlog = Line("backlog", "backlog", [point.backlog for point in points])
    arrivals = Line("arrivals", "added to the stream", [point.arrivals for point in points])
    settled = Line("settled", "settled", [point.settled for point in points])
    content = {
        "group": next(iter(lag.groups), None),
        "troubles": troubles(lag),
        "consumers": consumers,
        "problem": problem,
        "backlog": chart("Backlog, in messages", times, [backlog]),
        "rates": chart("Messages per second", times, [arrivals, settled]),
        "place": (namespace, name),
    }
    return ShownPage("group.html", f"ConsumerGroup {namespace}/{name}", content, live=True)


def _remember(visit: Visit, lag: LagAnswer) -> None:
    for each in lag.groups:
        visit.history.add(lag.at.timestamp(), each)
