"""The rights that docs/operations/install.md names for the metrics server's user are enough, and no more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis

from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.library import source
from agentstream.transport.endpoint import Endpoint
from agentstream_operator.broker.broker import Broker
from agentstream_operator.metrics_api.backlog import Backlogs, BacklogUnknownError
from agentstream_operator.plan.actions import CreateGroup, CreateStream
from agentstream_operator.reconcile.state.index import ResourceIndex
from support.resources import KEY, TEMPLATE, a_group, a_stream
from support.servers import Server

_PAGE = Path(__file__).parents[2] / "docs" / "operations" / "install.md"
_NAME, _PASSWORD = "agentstream-metrics", "of-the-metrics-server"
_KEYS = StreamKeys(KEY)
_GROUP = a_group(template=TEMPLATE, autoscaling={"mode": "HPA"})
_BACKLOG = 9


def _rules() -> tuple[str, ...]:
    """The arguments of ACL SETUSER on the page, the password left out."""
    found = re.search(
        rf"^ACL SETUSER {_NAME} on >PASSWORD (.+?)^```", _PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    assert found is not None
    return tuple(found[1].split())


_COMMANDS = tuple(rule for rule in _rules() if rule.startswith("+"))


@contextmanager
def limited(server: Server, admin: redis.Redis, rules: tuple[str, ...]) -> Iterator[str]:
    """The address of the server for a user with these rights."""
    admin.execute_command("ACL", "SETUSER", _NAME, "reset", "on", f">{_PASSWORD}", *rules)
    try:
        yield f"redis://{_NAME}:{_PASSWORD}@127.0.0.1:{server.port}"
    finally:
        admin.acl_deluser(_NAME)


@pytest.fixture
async def work(broker: Broker, admin: redis.Redis) -> redis.Redis:
    """Five messages of which two are pending, a retry that waits, three that are due, and one that is not."""
    await broker.apply(CreateStream(KEY, {"name": "tasks"}))
    await broker.apply(CreateGroup(KEY, "coder", "0"))
    for _ in range(5):
        admin.xadd(KEY, {"m": "{}"})
    admin.xreadgroup("coder", "pod.1", {KEY: ">"}, count=2)
    admin.xadd(_KEYS.retry("coder"), {"m": "{}"})
    admin.zadd(_KEYS.delay("coder"), {"a": 1, "b": 2, "c": 3, "later": 4e12})
    return admin


async def backlog(url: str) -> int:
    """What the metrics server would answer."""
    store, broker = ResourceIndex(), Broker.of(Endpoint(url), installation="agentstream")
    for resource in (a_stream(), _GROUP):
        store.put(resource)
    backlogs = Backlogs(store, broker)
    try:
        return (await backlogs.of(_GROUP)).messages
    finally:
        await backlogs.close()
        await broker.close()


def refusals(admin: redis.Redis) -> list[str]:
    return [entry["object"] for entry in admin.acl_log() if entry["username"] == _NAME]


async def test_with_these_rights_the_numbers_are_right_and_nothing_is_refused(
    server: Server, work: redis.Redis
) -> None:
    work.acl_log_reset()
    with limited(server, work, _rules()) as url:
        assert await backlog(url) == _BACKLOG
    assert refusals(work) == []


@pytest.mark.parametrize("command", _COMMANDS)
async def test_none_of_them_is_idle(server: Server, work: redis.Redis, command: str) -> None:
    work.acl_log_reset()
    rules = tuple(rule for rule in _rules() if rule != command)
    with limited(server, work, rules) as url:
        # in another database there is no stream, but it has to be selected
        with suppress(BacklogUnknownError):
            await backlog(f"{url}/1" if command == "+select" else url)
    assert refusals(work) == [command[1:]]


@pytest.mark.parametrize(
    "command",
    [
        ("XADD", KEY, "*", "m", "{}"),
        ("XREADGROUP", "GROUP", "coder", "c", "STREAMS", KEY, ">"),
        ("XACK", KEY, "coder", "1-1"),
        ("XDEL", KEY, "1-1"),
        ("SET", "key", "value"),
        ("DEL", KEY),
        ("HSET", _KEYS.meta, "name", "other"),
        ("ZADD", _KEYS.delay("coder"), "1", "a"),
        ("XGROUP", "SETID", KEY, "coder", "$"),
        ("FCALL", "as1_measure", "1", KEY, "0", KEY, "", "0"),
        ("FUNCTION", "LOAD", "REPLACE", "#!lua name=x"),
        ("EVAL", "return 1", "0"),
        ("CONFIG", "GET", "*"),
        ("ACL", "SETUSER", _NAME, "+@all"),
        ("ACL", "LIST"),
        ("KEYS", "*"),
        ("FLUSHALL",),
        ("PUBLISH", "agentstream:agentstream:team:nudge:coder", "sweep"),
    ],
    ids=lambda command: " ".join(command[:2]) if command[0] in {"ACL", "FUNCTION"} else command[0],
)
def test_its_user_changes_nothing_and_learns_no_more(
    server: Server, admin: redis.Redis, command: tuple[str, ...]
) -> None:
    with limited(server, admin, _rules()) as url, redis.Redis.from_url(url) as user:
        with pytest.raises(redis.exceptions.NoPermissionError):
            user.execute_command(*command)


async def test_no_function_that_writes_can_be_called(server: Server, work: redis.Redis) -> None:
    writing = re.findall(r"register\('(as1_\w+)', \w+\)", source())
    assert "as1_add" in writing
    with limited(server, work, _rules()) as url, redis.Redis.from_url(url) as user:
        for name in writing:
            with pytest.raises(redis.exceptions.ResponseError):
                user.execute_command("FCALL_RO", name, 1, KEY, "x")
    assert work.xlen(KEY) == 5


async def test_it_waits_for_the_operator_where_the_function_library_is_missing(
    server: Server, work: redis.Redis, broker: Broker
) -> None:
    work.function_flush()
    with limited(server, work, _rules()) as url:
        with pytest.raises(BacklogUnknownError, match="Redis or Valkey does not answer"):
            await backlog(url)
        # as the operator does, whatever it asks next
        await broker.observe(KEY, ())
        assert await backlog(url) == _BACKLOG
