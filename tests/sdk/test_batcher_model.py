"""Whatever the network does to commands and replies, the stream holds what callers were told, and once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.errors import AgentStreamError, Backpressure, ConnectionLost
from agentstream.sending.batcher import Batcher
from agentstream.transport.client import Client
from agentstream.transport.retry import Backoff
from support.batcher import batcher_on, record
from support.topology import fields_of

_streams = itertools.count()


class Fate(Enum):
    """What the network does to a command."""

    ANSWERED = auto()
    COMMAND_LOST = auto()
    REPLY_LOST = auto()
    # the server gets it after a later one, though its connection broke
    LATE = auto()
    # the server refuses it before anything is done
    REFUSED = auto()


@dataclass(frozen=True)
class Burst:
    """Messages that are put at the same moment.

    Attributes:
        count: how many.
        room: how many more the stream takes; None for any number.
        fates: of the commands from now on; answered when there are none left.
        cancelled: which callers go away, and after how many turns of the event loop.
    """

    count: int
    room: int | None
    fates: tuple[Fate, ...]
    cancelled: dict[int, int]


bursts = st.builds(
    Burst,
    count=st.integers(1, 6) | st.just(70),
    room=st.none() | st.integers(0, 4),
    fates=st.lists(st.sampled_from(Fate), max_size=6).map(tuple),
    cancelled=st.dictionaries(st.integers(0, 5), st.integers(0, 12), max_size=3),
)


@dataclass
class Network:
    """Between a batcher and a real server."""

    wire: Client
    fates: list[Fate] = field(default_factory=list)
    late: list[tuple[Any, ...]] = field(default_factory=list)

    async def call(self, *command: Any) -> Any:
        fate = self.fates.pop(0) if self.fates else Fate.ANSWERED
        if fate is Fate.REFUSED:
            raise Backpressure("OOM")
        if fate is Fate.LATE:
            self.late.append(command)
        if fate in (Fate.ANSWERED, Fate.REPLY_LOST):
            reply = await self.wire.call(*command)
            await self.deliver_late()
            if fate is Fate.ANSWERED:
                return reply
        raise ConnectionLost(fate.name)

    async def deliver_late(self) -> None:
        while self.late:
            with contextlib.suppress(AgentStreamError):
                await self.wire.call(*self.late.pop())


@given(plan=st.lists(bursts, min_size=1, max_size=6))
async def test_the_stream_holds_what_callers_were_told(
    wire: Client, monkeypatch: pytest.MonkeyPatch, plan: list[Burst]
) -> None:
    monkeypatch.setattr("agentstream.sending.batcher.Backoff", lambda *_: Backoff(0.0, 0.0))
    key = f"{{model.{next(_streams)}}}"
    await wire.call("FCALL", "as1_create_stream", 1, key, f"{key}:meta", "name", "model")
    network = Network(wire)
    batcher = batcher_on(network.call, key)
    told: dict[bytes, str | BaseException] = {}
    bodies = (b"%d" % n for n in itertools.count())
    for burst in plan:
        await set_gate(wire, key, burst.room)
        network.fates = list(burst.fates)
        told |= await put(batcher, [next(bodies) for _ in range(burst.count)], burst.cancelled)
    network.fates = []
    await network.deliver_late()
    await batcher.close()

    entries = [(e.decode(), fields_of(f)["m"]) for e, f in await wire.call("XRANGE", key, "-", "+")]
    times = Counter(body for _, body in entries)
    assert not [body for body, count in times.items() if count > 1]
    answered = {entry: body for body, entry in told.items() if isinstance(entry, str)}
    assert answered.items() <= dict(entries).items()
    in_order = [body for entry, body in entries if entry in answered]
    assert in_order == sorted(in_order, key=int)
    for body, outcome in told.items():
        if isinstance(outcome, Backpressure):
            assert body not in times
        elif not isinstance(outcome, str):
            assert isinstance(outcome, asyncio.CancelledError)


async def set_gate(wire: Client, key: str, room: int | None) -> None:
    if room is None:
        await wire.call("DEL", f"{key}:gate")
    else:
        await wire.call("SET", f"{key}:gate", await wire.call("XLEN", key) + room)


async def put(
    batcher: Batcher, bodies: list[bytes], cancelled: dict[int, int]
) -> dict[bytes, str | BaseException]:
    """What the callers are told."""
    entries = [batcher.put(record(body)) for body in bodies]
    for turn in range(max(cancelled.values(), default=-1) + 1):
        for index, when in cancelled.items():
            if when == turn and index < len(entries):
                entries[index].cancel()
        await asyncio.sleep(0)
    results = await asyncio.gather(*entries, return_exceptions=True)
    return dict(zip(bodies, results, strict=True))
