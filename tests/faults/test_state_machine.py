"""Whatever senders, consumers, crashes and time do, every message is in one place until it is handled.

Hypothesis makes up what happens, one step after the other, on a real server; a model knows what may become of
each message. `AGENTSTREAM_EXAMPLES` and `AGENTSTREAM_STEPS` ask for more of it than the ordinary run does.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, TypeVar

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from agentstream import Agent
from agentstream.consuming.delivery import Delivery
from agentstream.protocol import commands
from agentstream.protocol.keys import Nudge, StreamKeys, nudge_channel
from agentstream.testing import Sandbox
from agentstream.transport.client import Client
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.plan.accounting import counters
from agentstream_operator.plan.retention import JanitorSpec
from support.entries import HOUR
from support.examples import examples
from support.waiting import until

T = TypeVar("T")

EXAMPLES = examples(20)
STEPS = int(os.environ.get("AGENTSTREAM_STEPS", "25"))
KEY, GROUP, LEASE, MAX_DELIVERIES = "{test.tasks}", "coder", 0.4, 4
KEYS = StreamKeys(KEY)
ORDERING = st.sampled_from([None, "a", "b"])
VERBS = ("ack", "ack", "ack", "retry", "release", "dead_letter")
# How long somebody waits for a message that may not be there.
PATIENCE = 0.1
LOSABLE = (
    *("as1_add", "XREADGROUP", "as1_take", "as1_sweep", "as1_begin", "as1_turn", "as1_renew"),
    *("as1_settle", "as1_retry", "as1_dead_letter", "as1_release"),
)
# The bodies of what is undelivered, pending, retrying, delayed and dead, at one moment.
PLACES = """
local function bodies(entries)
  local found = {}
  for _, entry in ipairs(entries) do found[#found + 1] = table.concat(entry[2], ' ') end
  return found
end
local group, pending = ARGV[1], {}
for _, p in ipairs(redis.call('XPENDING', KEYS[1], group, '-', '+', 10000)) do
  pending[#pending + 1] = redis.call('XRANGE', KEYS[1], p[1], p[1])[1]
end
local last = '0-0'
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  for i = 1, #flat, 2 do if flat[i] == 'last-delivered-id' then last = flat[i + 1] end end
end
return {
  bodies(redis.call('XRANGE', KEYS[1], '(' .. last, '+')), bodies(pending),
  bodies(redis.call('XRANGE', KEYS[2], '-', '+')), redis.call('ZRANGE', KEYS[3], 0, -1),
  bodies(redis.call('XRANGE', KEYS[4], '-', '+'))}
"""
NUMBER = re.compile(rb'"n":(\d+)')


class State(Enum):
    """What is known of an accepted message.

    It is open until its holder has been told what became of it. If that was told that it is not the holder
    any more, which is also said if the server did not answer in time, it may be handled, or come again.
    """

    OPEN = auto()
    IN_DOUBT = auto()
    DONE = auto()
    DEAD = auto()


@dataclass
class Sent:
    """An accepted message.

    Attributes:
        key: its ordering key.
        state: what is known of it.
        fence: the highest of its deliveries.
    """

    key: str | None
    state: State = State.OPEN
    fence: int = 0

    def has_overtaken(self, delivery: Delivery[dict[str, Any]]) -> bool:
        """Whether it is known that another delivery came later, or that the group is through with it."""
        return delivery.fence < self.fence or self.state in (State.DONE, State.DEAD)


@dataclass
class Consumer:
    """An agent that lives, and what its handlers have in hand."""

    pod: str
    agent: Agent
    deliveries: AsyncIterator[Delivery[dict[str, Any]]]
    hand: list[Delivery[dict[str, Any]]] = field(default_factory=list)


class Traffic(RuleBasedStateMachine):
    """One stream, one group, one sender, and consumers of two pods."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.sent: list[Sent] = []
        self.pods = 0
        self.disturbed = False
        self.parted = False
        self.run(self._open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Time passes for agents while something is done."""
        return self.runner.run(work)

    async def _open(self) -> None:
        self.sandbox = await Sandbox().__aenter__()
        await self.sandbox.declare_stream("tasks", producers=["planner"])
        await self.sandbox.declare_group("tasks", agent=GROUP, lease=LEASE, max_deliveries=MAX_DELIVERIES)
        self.broker = await Broker.connect(self.sandbox.server.url, installation="agentstream")
        self.wire = Client(lambda: Endpoint(self.sandbox.server.url), name="test")
        # streams are trimmed by whole nodes
        await self.wire.call("CONFIG", "SET", "stream-node-max-entries", "1")
        self.planner = self.sandbox.agent("planner")
        self.faults = [self.sandbox.more_faults(), self.sandbox.more_faults()]
        self.consumers = [self._consumer(0), self._consumer(1)]

    @initialize(keys=st.lists(ORDERING, min_size=6, max_size=15))
    def begin(self, keys: list[str | None]) -> None:
        """There is something to do."""
        self.run(self._send(keys))

    @rule(keys=st.lists(ORDERING, min_size=1, max_size=4))
    def send(self, keys: list[str | None]) -> None:
        """Messages are sent at the same moment."""
        self.run(self._send(keys))

    async def _send(self, keys: list[str | None]) -> None:
        first = len(self.sent)
        self.sent += [Sent(key) for key in keys]
        calls = (
            self.planner.send_message(stream="tasks", type="event", payload={"n": n}, key=key)
            for n, key in enumerate(keys, first)
        )
        await asyncio.gather(*calls)

    @rule(
        where=st.integers(0, 2),
        fault=st.sampled_from(["lose_reply", "lose_command", "cut"]),
        commands=st.lists(st.sampled_from(LOSABLE), min_size=1, max_size=3),
    )
    def disturb(self, where: int, fault: str, commands: list[str]) -> None:
        """The next ones of an agent's commands, or their replies, are lost; or its connections break."""
        self.disturbed = True
        faults = (*self.faults, self.sandbox.faults)[where]
        if fault == "cut":
            faults.cut()
            return
        for command in commands:
            getattr(faults, fault)(command)

    @rule(which=st.integers(0, 1), verbs=st.lists(st.sampled_from([*VERBS, None]), min_size=1, max_size=5))
    def handle(self, which: int, verbs: list[str | None]) -> None:
        """A consumer handles some messages, if there are any: settles them, or keeps them in hand."""
        self.run(self._handle(self.consumers[which], verbs))

    async def _handle(self, consumer: Consumer, verbs: list[str | None]) -> None:
        for verb in verbs:
            if not await self._deliver(consumer):
                return
            if verb is not None:
                await self._settle(consumer.hand.pop(), verb)

    async def _deliver(self, consumer: Consumer, patience: float = PATIENCE) -> bool:
        try:
            delivery = await asyncio.wait_for(anext(consumer.deliveries), patience)
        except TimeoutError:
            return False
        consumer.hand.append(delivery)
        number = delivery.payload["n"]
        message = self.sent[number]
        assert 1 <= delivery.attempt <= MAX_DELIVERIES
        if delivery.fence == message.fence or message.has_overtaken(delivery):
            # somebody read it before another one got it, and could not hear of that: it settles nothing
            assert self.parted, f"{number} was {message.state} and comes again"
            return True
        message.fence = delivery.fence
        if message.key is not None:
            earlier = [n for n in range(number) if self.sent[n].key == message.key]
            assert not [n for n in earlier if self.sent[n].state is State.OPEN and not await self._is_dead(n)]
        return True

    @rule(which=st.integers(0, 1), position=st.integers(0, 9), verb=st.sampled_from(VERBS))
    def settle(self, which: int, position: int, verb: str) -> None:
        """A handler says what is to become of a message, if it has had one in hand for a while."""
        hand = self.consumers[which].hand or self.consumers[1 - which].hand
        # no precondition: that must not depend on what the server just did
        if hand:
            self.run(self._settle(hand.pop(position % len(hand)), verb))

    async def _settle(self, delivery: Delivery[dict[str, Any]], verb: str) -> None:
        message = self.sent[delivery.payload["n"]]
        arguments = {"retry": (0.01,), "dead_letter": ("no use",)}.get(verb, ())
        if await getattr(delivery, verb)(*arguments):
            if message.has_overtaken(delivery):
                # "gone", to whom the first answer was lost, means that the lost one was "done"
                assert self.disturbed, "somebody settled what another one holds"
                return
            if verb == "ack":
                message.state = State.DONE
            elif verb == "dead_letter":
                message.state = State.DEAD
            elif message.state is State.IN_DOUBT:
                message.state = State.OPEN
        elif message.state is State.OPEN and delivery.fence == message.fence:
            message.state = State.IN_DOUBT

    @rule(
        which=st.integers(0, 1),
        same_pod=st.booleans(),
        crashes=st.booleans(),
        settling=st.none() | st.sampled_from(VERBS),
        turns=st.integers(0, 8),
    )
    def replace(
        self,
        which: int,
        same_pod: bool,  # noqa: FBT001 - drawn
        crashes: bool,  # noqa: FBT001 - drawn
        settling: str | None,
        turns: int,
    ) -> None:
        """A consumer dies as by SIGKILL, maybe in mid-settling, or ends as it should; another one starts."""
        consumer = self.consumers[which]
        if crashes:
            self.run(self._crash(consumer, settling, turns))
        else:
            self.run(consumer.agent.__aexit__(None, None, None))
        self.consumers[which] = self._consumer(which, consumer.pod if same_pod else None)

    async def _crash(self, consumer: Consumer, settling: str | None, turns: int) -> None:
        under_way: list[asyncio.Task[None]] = []
        if settling is not None and consumer.hand:
            under_way.append(asyncio.create_task(self._settle(consumer.hand.pop(), settling)))
            for _ in range(turns):
                await asyncio.sleep(0)
        await self.sandbox.kill(consumer.agent)
        await asyncio.gather(*under_way)

    @rule(which=st.integers(0, 1), verbs=st.lists(st.sampled_from([*VERBS, None]), max_size=3))
    def part(self, which: int, verbs: list[str | None]) -> None:
        """A consumer hears and says nothing for a while, and another one gets what it has in hand."""
        self.parted = True
        self.run(self._deliver(self.consumers[which]))
        with self.faults[which].hold():
            self.run(self._orphan(self.consumers[which].pod))
            self.run(self._handle(self.consumers[1 - which], verbs))

    async def _orphan(self, pod: str) -> None:
        """What the operator does about a pod that is gone, or seems to be."""
        for retries in (False, True):
            command = commands.release_pod(KEY, GROUP, (pod, None), "-", for_good=False, retries=retries)
            await self.wire.call(*command)
        await self.wire.call("PUBLISH", nudge_channel("agentstream", "test", GROUP), Nudge.SWEEP)

    @rule()
    def lapse(self) -> None:
        """The leases of the dead run out."""
        self.run(until(self._dead_hold_nothing))

    @rule()
    def janitor(self) -> None:
        """The operator's janitor passes: everything that is settled may go at once."""
        groups = ((GROUP, HOUR, HOUR),)
        self.run(self.broker.janitor(JanitorSpec(KEY, 1, 10_000, 0, "TrimAcknowledged", groups)))

    async def _dead_hold_nothing(self) -> bool:
        alive = {consumer.agent._consumer.identity.name for consumer in self.consumers}
        for key in (KEY, KEYS.retry(GROUP)):
            pending = await self.wire.call("XPENDING", key, GROUP, "-", "+", 10_000)
            if any(idle < LEASE * 1000 for _, name, idle, _ in pending if name.decode() not in alive):
                return False
        return True

    @invariant()
    def everything_is_in_one_place(self) -> None:
        """Of every message there is one entry, until it is acknowledged, and none after that."""
        self.run(self._check())

    async def _check(self) -> None:
        keys = (KEY, KEYS.retry(GROUP), KEYS.delay(GROUP), KEYS.dead_letters(GROUP))
        *open_places, dead = await self.wire.call("EVAL", PLACES, len(keys), *keys, GROUP)
        there = Counter(number for place in open_places for number in map(_number, place))
        given_up = Counter(map(_number, dead))
        assert max((there + given_up).values(), default=0) <= 1
        for number, message in enumerate(self.sent):
            if number in given_up and message.state is not State.DEAD:
                # by a settling whose answer did not arrive, or as its attempts are over
                assert message.state is State.IN_DOUBT or await self._is_dead(number)
                message.state = State.DEAD
            if message.state is State.OPEN:
                assert number in there, f"{number} has vanished"
            elif message.state is not State.IN_DOUBT:
                assert number not in there, f"{number} is {message.state}, and there again"
                assert (number in given_up) == (message.state is State.DEAD)
        await self._check_counters()

    async def _check_counters(self) -> None:
        """See docs/adr/0005."""
        seen = await self.broker.observe(KEY, [GROUP])
        counted = counters(seen, seen.groups[GROUP])
        assert counted.lost == 0
        assert counted.added == len(self.sent)
        assert counted.acked + counted.dead + counted.unsettled == len(self.sent)

    async def _is_dead(self, number: int) -> bool:
        """Whether a message was given up after its last attempt."""
        letters = await self.sandbox.dead_letters("tasks", group=GROUP)
        return any(
            letter.message is not None
            and letter.message.payload["n"] == number
            and (letter.reason, letter.attempts) == ("MaxDeliveries", MAX_DELIVERIES)
            for letter in letters
        )

    def _consumer(self, which: int, pod: str | None = None) -> Consumer:
        """A new consumer, in a pod that had others before or in a new one."""
        self.pods += 1
        pod = pod or f"coder-{self.pods}"
        agent = self.sandbox.agent(GROUP, pod=pod, through=self.faults[which])
        return Consumer(pod, agent, agent.stream_consume("tasks", concurrency=4))

    def teardown(self) -> None:
        """In the end, one consumer that nothing happens to handles everything that is left."""
        try:
            self.run(self._finish())
        finally:
            self.run(self._close())
            self.runner.close()

    async def _finish(self) -> None:
        for faults in (*self.faults, self.sandbox.faults):
            faults.heal()
        for consumer in self.consumers:
            await consumer.agent.__aexit__(None, None, None)
        self.consumers.clear()
        await until(self._dead_hold_nothing)
        agent = self.sandbox.agent(GROUP)
        last = Consumer("last", agent, agent.stream_consume("tasks"))
        async with asyncio.timeout(30):
            while not await self._is_settled():
                if await self._deliver(last):
                    await self._settle(last.hand.pop(), "ack")
        await self._check()
        unfinished = [number for number, message in enumerate(self.sent) if message.state is State.OPEN]
        assert not unfinished

    async def _is_settled(self) -> bool:
        group = (await self.broker.observe(KEY, [GROUP])).groups[GROUP]
        return not (group.backlog or group.delayed)

    async def _close(self) -> None:
        await self.wire.close()
        await self.broker.close()
        await self.sandbox.__aexit__(None, None, None)


def _number(body: bytes) -> int:
    found = NUMBER.search(body)
    assert found is not None
    return int(found[1])


def test_every_accepted_message_is_in_one_place_whatever_happens() -> None:
    run_state_machine_as_test(
        Traffic,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            # time takes part, so what failed may not fail again: it is shown as it was, and not made smaller
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )
