"""Statuses are written when they changed, and numbers rarely; in virtual time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from agentstream_operator.plan.conditions import (
    IN_SYNC,
    NO_CONFLICT,
    REACHABLE,
    ConditionUpdate,
    unreachable,
    with_ready,
)
from agentstream_operator.reconcile.state.memory import StatusMemory
from agentstream_operator.reconcile.state.state import StatusIntervals
from agentstream_operator.reconcile.status import StatusWriter, rounded
from agentstream_operator.resources.status import ConditionReason, ConditionType
from support.clock import run_virtually
from support.cluster import MemoryCluster
from support.resources import BORN, a_group, a_stream

STREAM = a_stream()
FINE = with_ready((REACHABLE, IN_SYNC, NO_CONFLICT))
WAITING = with_ready((REACHABLE, ConditionUpdate(ConditionType.SYNCED, "False", ConditionReason.RECONCILING)))
FULL = ConditionUpdate(ConditionType.RETENTION_HEALTHY, "False", ConditionReason.ADMISSION_CLOSED, "full")


class Case:
    """A writer, what it wrote to, and what it remembers of one stream."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.reported = StatusMemory()
        self.writer = StatusWriter(self.cluster, self.now, StatusIntervals(numbers=30, transient=1))

    def now(self) -> datetime:
        return BORN + timedelta(seconds=asyncio.get_running_loop().time())

    async def write(
        self, conditions: tuple[ConditionUpdate, ...], length: int = 0, generation: int = 1
    ) -> float | None:
        stream = a_stream(meta={"generation": generation})
        return await self.writer.write(stream, self.reported, conditions, {"length": length})

    @property
    def writes(self) -> int:
        return self.cluster.writes.get("write_status", 0)


@pytest.mark.parametrize(
    ("number", "shown"), [(0, 0), (99, 99), (100, 100), (101, 100), (1234, 1200), (98765, 98000)]
)
def test_numbers_have_two_significant_digits(number: int, shown: int) -> None:
    assert rounded(number) == shown


def test_how_many_consumers_there_are_is_written_soon_and_what_they_have_to_do_rarely() -> None:
    async def scenario() -> None:
        case, group = Case(), a_group()

        async def write(replicas: int, backlog: int) -> float | None:
            numbers = {"replicas": replicas, "desired_replicas": replicas, "backlog": backlog}
            return await case.writer.write(group, case.reported, FINE, numbers)

        await write(0, 0)
        assert await write(0, 5) == 30
        assert await write(2, 5) == 1
        await asyncio.sleep(1)
        assert await write(2, 5) is None
        assert case.writes == 2

    run_virtually(scenario())


def test_what_did_not_change_is_not_written() -> None:
    async def main() -> None:
        case = Case()
        assert await case.write(FINE) is None
        assert await case.write(FINE) is None
        assert case.writes == 1
        assert case.cluster.ready(STREAM.key)

    run_virtually(main())


def test_numbers_and_messages_are_written_once_in_a_while() -> None:
    async def main() -> None:
        case = Case()
        await case.write(FINE)
        await asyncio.sleep(10)
        assert await case.write(FINE, length=5) == pytest.approx(20)
        assert case.writes == 1
        await asyncio.sleep(20)
        assert await case.write(FINE, length=6) is None
        assert case.cluster.statuses[STREAM.key].length == 6

    run_virtually(main())


def test_a_changed_condition_is_written_at_once_with_its_numbers() -> None:
    async def main() -> None:
        case = Case()
        await case.write(FINE)
        assert await case.write((*FINE, FULL), length=5) is None
        assert case.cluster.statuses[STREAM.key].length == 5

    run_virtually(main())


def test_a_new_generation_is_written_at_once() -> None:
    async def main() -> None:
        case = Case()
        await case.write(FINE)
        await case.write(FINE, generation=2)
        status = case.cluster.statuses[STREAM.key]
        assert status.observed_generation == 2
        assert {condition.observed_generation for condition in status.conditions} == {2}

    run_virtually(main())


def test_the_transition_time_moves_with_the_status_only() -> None:
    async def main() -> None:
        case = Case()
        await case.write(FINE)
        await asyncio.sleep(60)
        await case.write((FINE[0], *FINE[1:], FULL), generation=2)
        condition = case.cluster.condition(STREAM.key, ConditionType.READY)
        assert condition is not None
        assert condition.last_transition_time == datetime(2026, 1, 1, tzinfo=UTC)

    run_virtually(main())


def test_what_is_about_to_change_by_itself_is_written_only_if_it_does_not() -> None:
    async def main() -> None:
        case = Case()
        assert await case.write(WAITING) == pytest.approx(1)
        await asyncio.sleep(0.5)
        assert await case.write(WAITING) == pytest.approx(0.5)
        assert case.writes == 0
        await asyncio.sleep(0.6)
        assert await case.write(WAITING) is None
        assert case.writes == 1

    run_virtually(main())


def test_what_is_in_order_again_begins_the_waiting_anew() -> None:
    async def main() -> None:
        case = Case()
        await case.write(WAITING)
        await asyncio.sleep(0.9)
        await case.write(FINE)
        await asyncio.sleep(0.9)
        assert await case.write(WAITING) == pytest.approx(1)

    run_virtually(main())


def test_while_the_server_is_away_the_rest_stays_as_it_was() -> None:
    async def main() -> None:
        case = Case()
        await case.write(FINE, length=7)
        await case.write(unreachable("refused"), length=7)
        assert case.cluster.condition(STREAM.key, ConditionType.SYNCED).status == "True"
        assert case.cluster.condition(STREAM.key, ConditionType.READY).message == "refused"
        assert case.cluster.statuses[STREAM.key].length == 7

    run_virtually(main())


def test_conditions_that_are_no_longer_named_go() -> None:
    async def main() -> None:
        case = Case()
        await case.write((*FINE, FULL))
        await case.write(FINE)
        assert case.cluster.condition(STREAM.key, ConditionType.RETENTION_HEALTHY) is None

    run_virtually(main())


def test_an_alarm_is_an_event_once() -> None:
    async def main() -> None:
        case = Case()
        await case.write((*FINE, FULL))
        await case.write((*FINE, FULL), generation=2)
        assert case.cluster.reasons(STREAM.key) == [ConditionReason.ADMISSION_CLOSED]
        await case.write(FINE, generation=2)
        await case.write((*FINE, FULL._replace(message="")), generation=2)
        assert [event.message for event in case.cluster.events] == ["full", "RetentionHealthy"]

    run_virtually(main())
