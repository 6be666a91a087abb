"""The rights that docs/operations/install.md names for the queue server's user are enough, and no more."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from agentstream.errors import AccessDenied
from agentstream.protocol import library
from agentstream.protocol.keys import StreamKeys
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.broker.scan import Span
from agentstream_operator.plan.actions import CreateGroup, CreateStream
from agentstream_operator.queue_api.browser import Browser, MessagesWanted
from agentstream_operator.queue_api.consumers import ConsumersReader
from agentstream_operator.queue_api.conversations import ConversationReader
from agentstream_operator.queue_api.finder import MessageFinder
from agentstream_operator.queue_api.lag import LagReader
from agentstream_operator.queue_api.previews import PreviewReader
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.streamreplay import ReplayFrom, ReplaySource, StreamReplaySpec
from support.resources import KEY, a_group, a_stream
from support.servers import Server

_PAGE = Path(__file__).parents[2] / "docs" / "operations" / "install.md"
_NAME, _PASSWORD = "agentstream-queue", "of-the-queue-server"
_KEYS = StreamKeys(KEY)
STREAM, GROUP = a_stream(), a_group()


def _rules() -> tuple[str, ...]:
    """The arguments of ACL SETUSER on the page, the password left out."""
    found = re.search(
        rf"^ACL SETUSER {_NAME} on >PASSWORD (.+?)^```", _PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert found is not None
    return tuple(found[1].split())


@pytest.fixture
def url(server: Server, admin: redis.Redis) -> Iterator[str]:
    """The address of the server for a user with these rights."""
    admin.execute_command("ACL", "SETUSER", _NAME, "reset", "on", f">{_PASSWORD}", *_rules())
    yield f"redis://{_NAME}:{_PASSWORD}@127.0.0.1:{server.port}"
    admin.acl_deluser(_NAME)


@pytest.fixture
async def reader(broker: Broker, admin: redis.Redis, url: str) -> AsyncIterator[Broker]:
    """What reads a stream with messages, retries and dead letters as this user."""
    await broker.apply(CreateStream(KEY, {"name": "tasks"}))
    await broker.apply(CreateGroup(KEY, "coder", "0"))
    for _ in range(5):
        admin.xadd(KEY, {"m": "{}"})
    admin.xreadgroup("coder", "pod.1", {KEY: ">"}, count=2)
    admin.xadd(_KEYS.retry("coder"), {"m": "{}"})
    admin.zadd(_KEYS.delay("coder"), {"later": 4e12})
    admin.xadd(_KEYS.dead_letters("coder"), {"m": "{}", "reason": "MaxDeliveries"})
    reader = Broker.of(Endpoint(url), installation="agentstream")
    yield reader
    await reader.close()


async def test_everything_that_the_api_shows_can_be_read(reader: Broker, admin: redis.Redis) -> None:
    index = ResourceIndex()
    index.put(STREAM)
    index.put(GROUP)
    lag = await LagReader(index, reader).lag((STREAM,), (GROUP,))
    assert (lag.server.reachable, lag.streams[0].length, lag.groups[0].backlog) == (True, 5, 6)
    browser = Browser(index, reader)
    assert len((await browser.messages(STREAM, MessagesWanted(Span(), 50))).messages) == 5
    assert (await browser.letters(GROUP, 50, None)).total == 1
    assert [each.reason for each in (await browser.letter_groups(GROUP, None)).groups] == ["MaxDeliveries"]
    (first, *_) = (await browser.messages(STREAM, MessagesWanted(Span(order="forward"), 1))).messages
    states = (await MessageFinder(index, reader).message(STREAM, first.entry)).groups
    assert [each.state for each in states] == ["Held"]
    assert (await ConversationReader(index, reader).conversation("team", (STREAM,), "x", None)).streams
    assert [each.pending for each in (await ConsumersReader(index, reader).consumers(GROUP)).consumers] == [2]
    for source in ReplaySource:
        spec = StreamReplaySpec.model_validate(
            {"group_ref": {"name": "coder"}, "from": ReplayFrom(source=source)}
        )
        assert (await PreviewReader(index, reader).preview(GROUP, spec)).matched
    assert [entry["object"] for entry in admin.acl_log() if entry["username"] == _NAME] == []


async def test_the_server_tells_the_reader_what_it_is(
    reader: Broker, server: Server, admin: redis.Redis
) -> None:
    info = await reader.info()
    assert f"{info.program}-{info.version}".startswith(server.version)
    assert (info.role, info.eviction_policy, info.max_memory) == ("master", "noeviction", None)
    assert (info.append_only, info.write_failed) == (server.persistent, False)
    assert info.library == library.revision()
    assert abs(info.clock - int(float(admin.time()[0]) * 1000)) < 60_000
    admin.function_flush()
    assert (await reader.info()).library is None


@pytest.mark.parametrize(
    "command",
    [
        ("XADD", KEY, "*", "m", "{}"),
        ("XREADGROUP", "GROUP", "coder", "me", "STREAMS", KEY, ">"),
        ("XACK", KEY, "coder", "1-0"),
        ("XTRIM", KEY, "MAXLEN", "0"),
        ("DEL", KEY),
        ("HSET", _KEYS.meta, "a", "b"),
        ("PUBLISH", "agentstream:agentstream:team:notify:coder", "x"),
        ("FCALL", "as1_end_replay", 1, KEY, KEY, "coder", "a.12345678"),
        ("ACL", "LIST"),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("FLUSHALL",),
    ],
)
async def test_nothing_can_be_changed(reader: Broker, command: tuple[str, ...]) -> None:
    with pytest.raises(AccessDenied):
        await reader.call(*command)
