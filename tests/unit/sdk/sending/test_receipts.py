"""Many who wait for receipts cost no more calls than one, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.errors import ConnectionLost, QuorumMissed, ServerRefused, WireClosed
from agentstream.protocol.routes import Produces
from agentstream.sending.receipts import Receipt, ReceiptPoller
from agentstream.sent import SentMessage
from support.clock import run_virtually

GROUPS = ("coder", "tester")


@dataclass
class Groups:
    """A server on which every group acknowledges an entry at its time; a call takes `takes` seconds."""

    takes: float = 0.001
    acknowledged: dict[str, float] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    calls: list[tuple[float, str, Sequence[str]]] = field(default_factory=list)
    under_way: int = 0

    async def call(
        self, _how: str, function: str, _keys: int, stream: str, _receipts: str, groups: int, *rest: Any
    ) -> Any:
        assert function == "as1_receipt"
        assert self.under_way == 0, "one call at a time"
        entries, clock = rest[2 * groups :], asyncio.get_running_loop().time
        self.calls.append((clock(), stream, entries))
        self.under_way = 1
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.under_way = 0
        if stream in self.errors:
            raise self.errors[stream]
        now = clock()
        states = (b"acknowledged" if now >= self.acknowledged.get(e, 1e9) else b"pending" for e in entries)
        return list(chain.from_iterable([state] * groups for state in states))


def receipt(
    poller: ReceiptPoller, entry: str, stream: str = "{t.news}", groups: Sequence[str] = GROUPS
) -> Receipt:
    return Receipt(poller, SentMessage(entry, "news", entry), Produces("news", stream, True, tuple(groups)))


def virtually(test: Callable[[Groups, ReceiptPoller], Awaitable[Any]], **server: Any) -> Groups:
    """Runs a test against such a server; afterwards nobody polls."""

    async def main() -> Groups:
        groups = Groups(**server)
        await test(groups, ReceiptPoller(groups.call))
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return groups

    return run_virtually(main())


def calls_for(waiters: int, *, acknowledged: float | None) -> Groups:
    async def test(_groups: Groups, poller: ReceiptPoller) -> None:
        await asyncio.gather(
            *(receipt(poller, f"{n}-1").wait(timeout=10) for n in range(waiters)), return_exceptions=True
        )

    times = {} if acknowledged is None else {f"{n}-1": acknowledged for n in range(waiters)}
    return virtually(test, acknowledged=times)


@pytest.mark.parametrize("acknowledged", [0.0, 0.3, 5.0, None])
@pytest.mark.parametrize("waiters", [2, 50, 250])
def test_many_cost_as_many_calls_as_one(waiters: int, acknowledged: float | None) -> None:
    alone = calls_for(1, acknowledged=acknowledged)
    assert len(calls_for(waiters, acknowledged=acknowledged).calls) == len(alone.calls) <= 50


def test_what_one_call_reads_is_bounded() -> None:
    alone, many = calls_for(1, acknowledged=5.0), calls_for(2_000, acknowledged=5.0)
    assert max(len(entries) for _, _, entries in many.calls) == 250
    assert len(many.calls) == 8 * len(alone.calls)


def test_more_groups_than_one_call_may_read_are_read_nevertheless() -> None:
    async def test(_groups: Groups, poller: ReceiptPoller) -> None:
        many = [f"g{n}" for n in range(600)]
        found = await asyncio.gather(*(receipt(poller, f"{n}-1", groups=many).wait() for n in range(2)))
        assert [len(status.acknowledged) for status in found] == [600, 600]

    assert len(virtually(test, acknowledged={"0-1": 0, "1-1": 0}).calls) == 2


@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.floats(0, 3), st.sampled_from(["{t.news}", "{t.more}"])),
        min_size=1,
        max_size=20,
    )
)
def test_whoever_comes_when_learns_it_in_time(waits: list[tuple[float, float, str]]) -> None:
    async def test(groups: Groups, poller: ReceiptPoller) -> None:
        clock = asyncio.get_running_loop().time

        async def wait(n: int, start: float, lasts: float, stream: str) -> None:
            await asyncio.sleep(start)
            groups.acknowledged[f"{n}-1"] = start + lasts
            assert (await receipt(poller, f"{n}-1", stream).wait()).acknowledged == GROUPS
            # a pause at the longest, and what is under way before
            assert start + lasts <= clock() <= start + lasts + min(0.25, 0.016 + 2 * lasts) + 0.01

        await asyncio.gather(*(wait(n, *one) for n, one in enumerate(waits)))

    # a receipt alone has seven looks until it is looked at every quarter of a second
    assert len(virtually(test).calls) <= 8 * len(waits) + 2 * 6 * 8


def test_a_waiter_that_is_cancelled_leaves_the_others() -> None:
    async def test(groups: Groups, poller: ReceiptPoller) -> None:
        groups.acknowledged["0-1"] = 2.0
        stays = asyncio.create_task(receipt(poller, "0-1").wait())
        goes = asyncio.create_task(receipt(poller, "1-1").wait())
        await asyncio.sleep(1)
        goes.cancel()
        assert (await stays).acknowledged == GROUPS
        assert goes.cancelled()
        assert "1-1" not in groups.calls[-1][2]
        # the next one after the last has left is served, too
        last = asyncio.create_task(receipt(poller, "2-1").wait())
        await asyncio.sleep(0.1)
        last.cancel()
        assert (await receipt(poller, "0-1").wait()).acknowledged == GROUPS

    virtually(test)


def test_an_error_of_one_stream_is_not_that_of_others() -> None:
    async def test(groups: Groups, poller: ReceiptPoller) -> None:
        groups.acknowledged["0-1"] = 0.5
        groups.errors["{t.more}"] = ServerRefused("WRONGTYPE")
        good, bad = receipt(poller, "0-1"), receipt(poller, "0-1", "{t.more}")
        status, error = await asyncio.gather(good.wait(), bad.wait(timeout=2), return_exceptions=True)
        assert isinstance(error, ServerRefused)
        assert asyncio.get_running_loop().time() == pytest.approx(2, abs=0.01)
        assert status.acknowledged == GROUPS  # type: ignore[union-attr]

    virtually(test)


@pytest.mark.parametrize(
    ("error", "lasts"), [(WireClosed("closed"), 0), (ConnectionLost("away"), 3), (ValueError("no reply"), 0)]
)
def test_what_passes_is_waited_out_and_what_does_not_is_raised_at_once(
    error: Exception, lasts: float
) -> None:
    async def test(groups: Groups, poller: ReceiptPoller) -> None:
        groups.errors["{t.news}"] = error
        waits = (receipt(poller, f"{n}-1").wait(timeout=3) for n in range(20))
        found = await asyncio.gather(*waits, return_exceptions=True)
        assert {type(one) for one in found} == {type(error)}
        assert asyncio.get_running_loop().time() == pytest.approx(lasts, abs=0.01)

    virtually(test)


def test_at_its_deadline_each_has_a_last_look() -> None:
    async def test(groups: Groups, poller: ReceiptPoller) -> None:
        groups.acknowledged |= {"0-1": 1.0, "1-1": 3.0}
        found = await asyncio.gather(
            receipt(poller, "0-1").wait(timeout=1.0),
            receipt(poller, "1-1").wait(timeout=2.0),
            return_exceptions=True,
        )
        assert [type(one).__name__ for one in found] == ["ReceiptStatus", "QuorumMissed"]
        with pytest.raises(QuorumMissed):
            await receipt(poller, "1-1").wait(timeout=0)

    virtually(test)
