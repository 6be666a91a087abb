"""What a replay would do is counted in pages: any number of messages, of any size, by who may only read."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import Any

from agentstream.protocol.keys import StreamKeys
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.replay import PreviewScope, look_ahead, preview
from agentstream_operator.plan.replay import IdRange
from agentstream_operator.plan.selection import Selection
from agentstream_operator.resources.streamreplay import ReplaySelect
from support.resources import KEY, a_group, a_replay, a_stream
from support.servers import Server

ALL = IdRange("-", "+")
DEAD = StreamKeys(KEY).dead_letters("coder")


def body(**changes: Any) -> str:
    message = {
        "v": 1, "id": "7ec428e0-1b1c-4d8e-9f5e-0c5a3f2f4b6d", "from": "planner", "to": "coder",
        "type": "task_request", "payload": {}, "timestamp": 1.0, **changes,
    }  # fmt: skip
    return json.dumps(message)


def fill(admin: Any, bodies: list[str], key: str = KEY, **fields: str) -> list[str]:
    pipe = admin.pipeline(transaction=False)
    for each in bodies:
        pipe.xadd(key, {"m": each, **fields})
    return [str(entry) for entry in pipe.execute()]


EVENTS = Selection(ReplaySelect(types=("event",)))


async def test_everything_in_the_range_is_looked_at_once(broker: Broker, admin: Any) -> None:
    ids = fill(admin, [body(type="event" if at % 3 == 0 else "task_request") for at in range(2_000)])
    found = await preview(broker.call, PreviewScope(KEY, False, IdRange(ids[1], ids[-2])), EVENTS)
    assert (found.scanned, found.matched, found.moved, found.more) == (1_998, 666, 666, False)
    assert (found.first_scanned, found.last_scanned) == (ids[1], ids[-2])
    assert (found.first, found.last) == (ids[3], ids[1_998])
    assert [sample.id for sample in found.sample] == ids[3:33:3]
    assert found.seconds(100) == 6.66


async def test_what_is_not_there_is_nothing(broker: Broker, admin: Any) -> None:
    found = await preview(broker.call, PreviewScope(KEY, False, ALL), EVENTS)
    assert (found.scanned, found.matched, found.first, found.sample) == (0, 0, None, [])


async def test_a_flood_of_large_messages_is_read_a_few_at_a_time(broker: Broker, admin: Any) -> None:
    for _ in range(30):
        fill(admin, [body(payload={"text": "x" * 2_000_000}, type="event") for _ in range(4)])
    fill(admin, [body(payload={"text": "x" * 20_000_000}, type="event")])
    tracemalloc.start()
    found = await preview(broker.call, PreviewScope(KEY, False, ALL), EVENTS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # one that is too large to be handed over cannot be read, so it matches no type
    assert (found.scanned, found.matched) == (121, 120)
    assert peak < 60_000_000


async def test_others_of_the_event_loop_get_their_turns(broker: Broker, admin: Any) -> None:
    fill(admin, [body() for _ in range(5_000)])
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await preview(broker.call, PreviewScope(KEY, False, ALL), EVENTS)
    counting.cancel()
    assert turns >= 10


async def test_when_its_time_is_up_it_says_what_it_found(broker: Broker, admin: Any) -> None:
    fill(admin, [body(type="event") for _ in range(3_000)])
    found = await preview(broker.call, PreviewScope(KEY, False, ALL), EVENTS, seconds=0)
    assert 0 < found.scanned < 3_000
    assert found.more


async def test_a_limit_ends_it(broker: Broker, admin: Any) -> None:
    fill(admin, [body(type="event") for _ in range(100)])
    found = await preview(broker.call, PreviewScope(KEY, False, ALL, limit=7), EVENTS)
    assert (found.matched, found.moved) == (7, 7)


async def test_the_outlook_says_what_to_think_of(broker: Broker, admin: Any) -> None:
    ids = fill(admin, [body() for _ in range(20)])
    admin.xgroup_create(KEY, "coder", 0)
    admin.xreadgroup("coder", "pod.1", {KEY: ">"}, count=15)
    admin.xtrim(KEY, maxlen=18, approximate=False)
    wanted: dict[str, Any] = {"from": {"source": "Stream", "since": ids[0]}, "rate": 4}
    spec = a_replay(**wanted).spec
    found = await look_ahead(broker, spec, a_group(), a_stream(signing={"policy": "Require"}))
    assert (found.preview.matched, found.preview.moved, found.total) == (18, 13, 18)
    assert found.preview.skipped == {"undelivered": 5}
    assert found.seconds == 3.25
    said = "\n".join(found.warnings)
    assert ids[2] in said
    assert "working on 15 messages" in said
    assert "once()" in said
    assert "signed with a key" in said


async def test_dead_letters_are_looked_at_like_messages(broker: Broker, admin: Any) -> None:
    fill(admin, [body() for _ in range(5)], DEAD, reason="MaxDeliveries", origin="1-1")
    fill(admin, [body() for _ in range(2)], DEAD, reason="Malformed", origin="1-2")
    spec = a_replay(select={"reasons": ["Malformed"]}).spec
    found = await look_ahead(broker, spec, a_group(), a_stream())
    assert (found.preview.scanned, found.preview.matched) == (7, 2)
    nothing = a_replay(select={"reasons": ["Odd"]}).spec
    assert (
        "no message of the range matches"
        in (await look_ahead(broker, nothing, a_group(), a_stream())).warnings
    )


async def test_who_may_only_read_can_look_ahead(server: Server, broker: Broker, admin: Any) -> None:
    fill(admin, [body() for _ in range(30)], DEAD, reason="MaxDeliveries", origin="1-1")
    # as docs/operations/install.md has them for the queue server
    commands = "+select +fcall_ro +time +type +get +hget +hmget +hgetall +zcard +zcount +zrange +xlen +xrange"
    more = "+xrevrange +xpending +xinfo|stream +xinfo|groups +client|setname +client|setinfo"
    rights = ("reset", "on", ">secret", "%R~*", "-@all", *commands.split(), *more.split())
    admin.execute_command("ACL", "SETUSER", "reader", *rights)
    endpoint = Endpoint(f"redis://reader:secret@127.0.0.1:{server.port}")
    limited = Broker.of(endpoint, installation="agentstream")
    try:
        found = await look_ahead(limited, a_replay().spec, a_group(), a_stream())
    finally:
        await limited.close()
        admin.acl_deluser("reader")
    assert found.preview.matched == 30
