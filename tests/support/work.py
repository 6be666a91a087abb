"""The work of the function library, counted inside the server: no clock is involved."""

from __future__ import annotations

from typing import Any, NamedTuple

from agentstream.protocol import library
from agentstream.transport.client import Client

# counts the commands that a function calls, and what travels between it and the server
_COUNTER = """
local work = {calls = 0, parts = 0, bytes = 0}

local function weigh(value)
  if type(value) == 'table' then
    for _, part in pairs(value) do weigh(part) end
  else
    work.parts, work.bytes = work.parts + 1, work.bytes + #tostring(value)
  end
end

local function work_of(how, ...)
  work.calls = work.calls + 1
  weigh({...})
  local reply = redis[how](...)
  weigh(reply)
  return reply
end

redis.register_function{function_name = 'work_done', flags = {'no-writes'}, callback = function()
  local done = {work.calls, work.parts, work.bytes}
  work.calls, work.parts, work.bytes = 0, 0, 0
  return done
end}
"""


def counting(source: str) -> str:
    """The text of a library that counts; its function `work_done` tells what was done since it was asked."""
    head, _, body = source.partition("\n")
    body = body.replace("redis.call(", "work_of('call', ").replace("redis.pcall(", "work_of('pcall', ")
    return head + _COUNTER + body


class Work(NamedTuple):
    """What functions did: commands called, values in arguments and replies, and their bytes."""

    calls: int
    parts: int
    bytes: int


class CountedCalls:
    """Calls functions and remembers the most work that one call was.

    Attributes:
        most: the largest numbers so far, of any call each.
        made: how many calls there were.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.most: Work = Work(0, 0, 0)
        self.made: int = 0

    async def load(self, source: str = "") -> None:
        """Has the server count."""
        await self._client.call("FUNCTION", "LOAD", "REPLACE", counting(source or library.source()))

    async def __call__(self, *command: Any) -> Any:
        """Sends a command and adds up what it does."""
        await self._client.call("FCALL_RO", "work_done", 0)
        reply = await self._client.call(*command)
        done = Work(*await self._client.call("FCALL_RO", "work_done", 0))
        self.most = Work(*map(max, self.most, done))
        self.made += 1
        return reply
