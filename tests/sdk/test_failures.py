"""What the log says about handlers that fail: a line for each attempt, with what becomes of the message."""

from __future__ import annotations

import logging
import re

import pytest

from agentstream.consuming import failures
from agentstream.consuming.failures import Tracebacks
from support.topology import Topology, following, send


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kind of error has been logged yet."""
    monkeypatch.setattr(failures, "_tracebacks", Tracebacks(always=False))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a plain formatter writes, without the ids."""
    plain = logging.Formatter("%(message)s")
    uuid = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
    written = [plain.format(each) for each in caplog.records if each.levelno >= logging.WARNING]
    return [uuid.sub("ID", each) for each in written]


async def test_each_attempt_is_a_line_and_the_first_has_the_traceback(
    topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    await topology.group("tasks", "coder", max_deliveries=3, backoff_initial=1, backoff_max=1)
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        for number in range(3):
            async with await following(deliveries):
                raise ValueError(f"no {number}")
    first, second, third = lines(caplog)
    head, *traceback = first.split("\n")
    assert head.endswith("ID on tasks: attempt 1 of 3, again in 0.0 s: ValueError: no 0")
    assert traceback[0] == "Traceback (most recent call last):"
    assert second.endswith("ID on tasks: attempt 2 of 3, again in 0.0 s: ValueError: no 1")
    assert third.endswith("ID on tasks: attempt 3 of 3, now a dead letter: ValueError: no 2")


async def test_a_group_without_dead_letters_has_no_last_attempt(
    topology: Topology, caplog: pytest.LogCaptureFixture
) -> None:
    await topology.group("tasks", "coder", max_deliveries=1, dead_letters=False, backoff_max=60_000)
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries):
            raise ValueError("no")
    (line,) = lines(caplog)
    assert line.split("\n")[0].endswith("attempt 1, again after the longest delay: ValueError: no")


async def test_an_error_after_settling_says_so(topology: Topology, caplog: pytest.LogCaptureFixture) -> None:
    await topology.group("tasks", "coder")
    await send(topology, 1)
    async with topology.agent("coder") as coder, coder.stream_consume("tasks") as deliveries:
        async with await following(deliveries) as delivery:
            await delivery.ack()
            raise ValueError("no")
    (line,) = lines(caplog)
    assert line.split("\n")[0].endswith("attempt 1 of 5, after it was settled: ValueError: no")
    assert caplog.records[-1].levelno == logging.ERROR
