"""What handlers give as a reason or a delay: whatever it is, the message is settled."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator

import pytest

from agentstream.consuming.delivery import Delivery
from agentstream.errors import Reject, RequestFailed, Retry
from agentstream.protocol.routes import Consumes
from support.topology import Topology, following

# as in the name of a file that is no UTF-8
ODD = "caf\udce9"


@pytest.fixture(autouse=True)
def unlogged(caplog: pytest.LogCaptureFixture) -> None:
    """No process of the tests can tell another one what is no Unicode."""
    caplog.set_level(logging.CRITICAL, "agentstream")


@pytest.fixture
async def group(topology: Topology) -> Consumes:
    """`coder` consumes `tasks`, on which there is a message."""
    group = await topology.group("tasks", "coder", max_deliveries=1)
    async with topology.agent("planner") as planner:
        await planner.send_message(to="coder", type="event", payload={"n": 1})
    return group


@pytest.fixture
async def deliveries(topology: Topology, group: Consumes) -> AsyncIterator[AsyncIterator[Delivery]]:
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        yield deliveries


@pytest.mark.parametrize(
    ("raised", "written"),
    [
        (ValueError(f"no such file: {ODD}"), (b"MaxDeliveries", rb"ValueError: no such file: caf\udce9")),
        (Retry(ODD), (b"MaxDeliveries", rb"caf\udce9")),
        (Retry(KeyError("n")), (b"MaxDeliveries", b"'n'")),  # type: ignore[arg-type] # no type checker saw it
        (Reject(ODD), (rb"caf\udce9", b"")),
        (Reject(KeyError("n")), (b"'n'", b"")),  # type: ignore[arg-type] # the same
    ],
)
async def test_a_reason_that_cannot_be_written_as_it_is_is_written_as_it_can(
    topology: Topology,
    group: Consumes,
    deliveries: AsyncIterator[Delivery],
    raised: Exception,
    written: tuple[bytes, bytes],
) -> None:
    async with asyncio.timeout(5):
        async with await following(deliveries):
            raise raised
    (record,) = await topology.dead_letters(group)
    assert (record["reason"], record["error"]) == written
    assert await topology.settled(group, 1)


async def test_who_asked_is_told_such_a_reason(topology: Topology) -> None:
    await topology.group("tasks", "coder")
    async with topology.agent("planner") as planner, topology.agent("coder") as coder:
        asking = asyncio.create_task(planner.request(to="coder", payload={}, timeout=10))
        async with coder.stream_consume("tasks") as deliveries:
            async with await following(deliveries):
                raise Reject(ODD)
            with pytest.raises(RequestFailed) as failed:
                await asking
    assert failed.value.reason == r"caf\udce9"


@pytest.mark.parametrize("after", [math.inf, math.nan, "soon"])
async def test_a_delay_that_is_none_is_a_mistake_of_the_handler(
    topology: Topology, group: Consumes, deliveries: AsyncIterator[Delivery], after: float
) -> None:
    async with asyncio.timeout(5):
        async with await following(deliveries) as delivery:
            await delivery.retry(after=after)
    (record,) = await topology.dead_letters(group)
    assert record["reason"] == b"MaxDeliveries"
    with pytest.raises((ValueError, TypeError)):
        Retry(after=after)
