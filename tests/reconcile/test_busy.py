"""A function that keeps the server busy is ended, and the operator says whose it was."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

from agentstream_operator.reconcile.loops import server as loop
from support.agents import PASSWORD
from support.operator import operator
from support.resources import KEY, a_group, a_stream
from support.servers import Server
from support.waiting import until

_LIBRARY = """#!lua name=endless
redis.register_function{function_name = 'endless', flags = {'no-writes'}, callback = function()
  while true do end
end}
redis.register_function{function_name = 'written', callback = function(keys)
  redis.call('SET', keys[1], 'x')
  local stop = redis.call('TIME')[1] + 3
  while tonumber(redis.call('TIME')[1]) < tonumber(stop) do end
end}
"""


@contextmanager
def called(server: Server, name: str, key: str) -> Iterator[list[str]]:
    """Has the user `test.t.bad` call a function; what it hears comes into the list."""
    heard: list[str] = []
    agent = redis.Redis(
        port=server.port, protocol=2, username="test.t.bad", password=PASSWORD, client_name="bad-pod"
    )

    def call() -> None:
        try:
            heard.append(str(agent.execute_command("FCALL", name, 1, key)))
        except redis.exceptions.RedisError as error:
            heard.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield heard
    finally:
        thread.join(30)
        agent.close()
        assert not thread.is_alive()


@pytest.fixture
def endless(server: Server, admin: redis.Redis) -> Iterator[redis.Redis]:
    """A server with functions that do not end, which everybody may call."""
    before = admin.config_get("busy-reply-threshold")
    admin.config_set("busy-reply-threshold", 1000)
    admin.function_load(_LIBRARY)
    admin.execute_command("ACL", "SETUSER", "test.t.bad", "on", f">{PASSWORD}", "~*", "+@all")
    yield admin
    admin.config_set("busy-reply-threshold", before["busy-reply-threshold"])


async def test_the_operator_ends_it_says_whose_it_was_and_goes_on(
    server: Server, endless: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger=loop.__name__)
    async with operator(server.url) as op:
        await op.put(a_stream(producers=["planner"]))
        with called(server, "endless", KEY) as heard:
            await until(lambda: heard, 20)
            assert "killed" in heard[0]
            await until(lambda: "ended function" in caplog.text)
        said = next(text for text in caplog.messages if "ended function" in text)
        assert said.startswith(f"ended function endless of {KEY}, which kept the server busy for 1.")
        assert "called by user test.t.bad, bad-pod at 127.0.0.1:" in said
        await op.put(a_group(startFrom="Beginning"))
    endless.function_flush()


async def test_of_one_that_has_written_it_says_what_to_do(
    server: Server, endless: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger=loop.__name__)
    async with operator(server.url) as op:
        await op.put(a_stream(producers=["planner"]))
        with called(server, "written", f"{KEY}:stats:x") as heard:
            await until(lambda: heard, 20)
        said = [text for text in caplog.messages if "has written" in text]
        assert len(said) == 1
        assert "restart the server" in said[0]
        await op.put(a_group(startFrom="Beginning"))
