"""How much work groups have: asked at most once a second, together, never taken for 0, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentstream.errors import AgentStreamError, ConnectionLost
from agentstream_operator.broker.observe import Look
from agentstream_operator.metrics_api.backlog import Backlogs, BacklogUnknownError
from agentstream_operator.metrics_api.main import SelfMetrics
from agentstream_operator.plan.observed import GroupSeen, StreamSeen
from agentstream_operator.reconcile.state.index import ResourceIndex
from support.clock import run_virtually
from support.resources import TEMPLATE, a_group, a_stream

CODER = a_group(template=TEMPLATE, autoscaling={"mode": "HPA"})


class Asked:
    """The server; answers after a tenth of a second."""

    def __init__(self) -> None:
        self.looks: list[list[Look]] = []
        self.groups: dict[str, GroupSeen] = {"coder": GroupSeen(exists=True, undelivered=3, pending=2)}
        self.fails: AgentStreamError | None = None
        self.broken: set[str] = set()

    async def measure(self, looks: Sequence[Look]) -> list[StreamSeen | AgentStreamError]:
        self.looks.append(list(looks))
        await asyncio.sleep(0.1)
        if self.fails is not None:
            raise self.fails
        return [
            AgentStreamError("broken")
            if look.key in self.broken
            else StreamSeen("stream", groups=self.groups)
            for look in looks
        ]


def asking(test: Any, *resources: Any) -> None:
    """Runs a test in virtual time, with a stream, a group and more."""

    async def run() -> None:
        store = ResourceIndex()
        for resource in (a_stream(), CODER, *resources):
            store.put(resource)
        server: Any = Asked()
        backlogs = Backlogs(store, server)
        try:
            await test(backlogs, server, store)
        finally:
            await backlogs.close()

    run_virtually(run())


async def messages(backlogs: Backlogs, group: Any = CODER) -> int | str:
    """The backlog of a group, or why it is not known."""
    try:
        return (await backlogs.of(group)).messages
    except BacklogUnknownError as error:
        return str(error)


def test_an_answer_serves_all_who_ask_within_a_second() -> None:
    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        assert await asyncio.gather(*(messages(backlogs) for _ in range(100))) == [5] * 100
        await asyncio.sleep(0.85)
        assert await messages(backlogs) == 5
        assert len(server.looks) == 1
        await asyncio.sleep(0.1)
        server.groups = {"coder": GroupSeen(exists=True, undelivered=1)}
        assert await messages(backlogs) == 1
        assert len(server.looks) == 2
        # what was seen before goes along: what has not changed is not sent again
        assert server.looks[1][0].known is not None

    asking(test)


def test_streams_that_are_asked_about_together_are_asked_for_together() -> None:
    others = [a_stream("more"), a_group("planner", stream="more")]

    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        server.groups |= {"planner": GroupSeen(exists=True, retry_length=7)}
        found = await asyncio.gather(messages(backlogs), messages(backlogs, others[1]))
        assert found == [5, 7]
        assert [[look.key for look in looks] for looks in server.looks] == [["{team.tasks}", "{team.more}"]]

    asking(test, *others)


def test_a_new_group_is_asked_about_at_once() -> None:
    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        await messages(backlogs)
        new = a_group("planner")
        store.put(new)
        server.groups |= {"planner": GroupSeen(exists=True, undelivered=4)}
        assert await messages(backlogs, new) == 4
        assert [look.groups for looks in server.looks for look in looks] == [("coder",), ("coder", "planner")]

    asking(test)


def test_groups_of_the_agent_without_consumers_count_where_they_are_served() -> None:
    guest = a_group("guest", agent="coder", stream="more")

    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        # its stream is not there yet
        assert await messages(backlogs) == 5
        store.put(a_stream("more"))
        server.groups |= {"guest": GroupSeen(exists=True, undelivered=10)}
        assert await messages(backlogs) == 15

    asking(test, guest)


def test_a_group_that_nobody_is_to_make_hides_no_other() -> None:
    guest = a_group("guest", agent="coder", stream="more")

    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        server.groups |= {"guest": GroupSeen(exists=False)}
        assert await messages(backlogs) == 5
        store.put(a_stream("more"))
        assert "does not exist on its stream yet" in str(await messages(backlogs))

    asking(test, guest, a_stream("more", managementPolicy="ObserveOnly"))


@pytest.mark.parametrize("known", [GroupSeen(exists=False), None], ids=["not made", "not seen"])
def test_a_group_that_is_not_on_its_stream_is_unknown(known: GroupSeen | None) -> None:
    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        server.groups = {} if known is None else {"coder": known}
        assert (
            await messages(backlogs)
            == "the consumer group of ConsumerGroup team/coder does not exist on its stream yet"
        )

    asking(test)


def test_a_group_without_its_stream_is_unknown() -> None:
    lost = a_group("lost", stream="missing")

    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        assert (
            await messages(backlogs, lost)
            == "ConsumerGroup team/lost has no stream, or another resource claimed its place"
        )

    asking(test, lost)


def test_a_stream_that_claims_anothers_key_is_not_looked_at() -> None:
    thief = [
        a_stream("thief", namespace="other", key="{team.tasks}"),
        a_group("g", namespace="other", stream="thief"),
    ]

    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        assert "claimed its place" in str(await messages(backlogs, thief[1]))
        assert server.looks == []

    asking(test, *thief)


def test_while_the_server_is_away_everything_is_unknown_for_a_second() -> None:
    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        assert await messages(backlogs) == 5
        await asyncio.sleep(1)
        server.fails = ConnectionLost("gone")
        assert (
            await asyncio.gather(messages(backlogs), messages(backlogs))
            == ["Redis or Valkey does not answer: gone"] * 2
        )
        server.fails = None
        assert await messages(backlogs) == "Redis or Valkey does not answer: gone"
        await asyncio.sleep(1)
        assert await messages(backlogs) == 5
        assert len(server.looks) == 3

    asking(test)


def test_one_stream_that_cannot_be_read_hides_no_other() -> None:
    others = [a_stream("more"), a_group("planner", stream="more")]

    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        server.broken = {"{team.more}"}
        found = await asyncio.gather(messages(backlogs), messages(backlogs, others[1]))
        assert found == [5, "Redis or Valkey does not answer: broken"]

    asking(test, *others)


def test_who_gives_up_takes_the_answer_from_nobody() -> None:
    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        first, second = (asyncio.create_task(messages(backlogs)) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        assert await second == 5

    asking(test)


def test_streams_that_are_gone_are_forgotten() -> None:
    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        store.put(a_stream("more"))
        more = a_group("planner", stream="more")
        store.put(more)
        await asyncio.gather(messages(backlogs), messages(backlogs, more))
        store.remove(a_stream("more").key)
        await asyncio.sleep(1)
        await messages(backlogs)
        assert len(backlogs._samples) == len(backlogs._known) == 1

    asking(test)


def test_at_the_end_nobody_waits_for_ever() -> None:
    async def test(backlogs: Backlogs, server: Asked, store: ResourceIndex) -> None:
        waiting = asyncio.create_task(messages(backlogs))
        await asyncio.sleep(0.05)
        await backlogs.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asking(test)


def test_a_scrape_shows_answers_and_what_they_took() -> None:
    counting: Any = SimpleNamespace(
        groups=range(3), reviews={"allowed": 2}, requests={("list", "agentstreams", 200): 1}, round_trips=7
    )
    metrics = SelfMetrics(counting, counting, counting, counting)
    for code in (200, 200, 503):
        metrics.count_response(code)
    status, _, body = metrics.reply()
    shown = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name.startswith("agentstream_")
    }
    assert status == 200
    assert shown == {
        ("agentstream_external_answers_total", "200"): 2,
        ("agentstream_external_answers_total", "503"): 1,
        ("agentstream_external_groups",): 3,
        ("agentstream_access_reviews_total", "allowed"): 2,
        ("agentstream_api_requests_total", "200", "agentstreams", "list"): 1,
        ("agentstream_redis_round_trips_total",): 7,
    }
