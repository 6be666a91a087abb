"""Ends a function that keeps the server busy: while one runs, the server does nothing for anybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from agentstream.errors import AgentStreamError, ServerRefused

LONGEST = 1.0
"""Seconds that a function may run: those of the library take some milliseconds."""

_TRIES, _PAUSE = 40, 0.05
_LOOK_BACK = 128


class LongFunction(NamedTuple):
    """A function that ran for too long.

    Attributes:
        name: of the function.
        keys: the keys that it was called with.
        seconds: for how long it ran when it was noticed.
        ended: whether it was ended; the server ends none that has written.
        caller: user, name and address of the connection that called it, as far as the server knows them.
    """

    name: str
    keys: tuple[str, ...]
    seconds: float
    ended: bool
    caller: str = "an unknown connection"

    def __str__(self) -> str:
        """What happened, and what is left to do."""
        what = f"function {self.name} of {', '.join(self.keys) or 'no key'}"
        if self.ended:
            return (
                f"ended {what}, which kept the server busy for {self.seconds:.1f} s: called by {self.caller}"
            )
        return (
            f"{what} has kept the server busy for {self.seconds:.1f} s and has written, so the server refuses"
            " to end it: restart the server, with SHUTDOWN NOSAVE or a signal"
        )


def is_busy(error: BaseException) -> bool:
    """Whether the server refused a command because something runs for long."""
    return isinstance(error, ServerRefused) and str(error).startswith("BUSY ")


async def end_long_function(call: Callable[..., Awaitable[Any]]) -> LongFunction | None:
    """Ends the function that runs, if it has run for too long; None if there is none.

    Servers answer these commands while a function runs, from their `busy-reply-threshold` on.

    Raises:
        AgentStreamError: as `Client.call`.
    """
    running = _fields(_fields(await call("FUNCTION", "STATS")).get("running_script") or ())
    if running.get("duration_ms", 0) < LONGEST * 1000:
        return None
    name, keys = _called(running["command"])
    found = LongFunction(name, keys, running["duration_ms"] / 1000, ended=True)
    try:
        await call("FUNCTION", "KILL")
    except ServerRefused as error:
        if "UNKILLABLE" not in str(error):
            return None
        return found._replace(ended=False)
    return found._replace(caller=await _caller(call, found) or found.caller)


async def _caller(call: Callable[..., Awaitable[Any]], ended: LongFunction) -> str:
    """Who called a function that was just ended, by the server's log of slow commands; '' if that is off."""
    for _ in range(_TRIES):
        try:
            slow = await call("SLOWLOG", "GET", _LOOK_BACK)
            connections = await call("CLIENT", "LIST")
        except AgentStreamError as error:
            if not is_busy(error):
                return ""
            slow = ()
        for _, _, microseconds, command, address, connection, *_ in slow:
            if microseconds >= ended.seconds * 1e6 and _called(command)[0] == ended.name:
                place, called = _text(address), _text(connection)
                user = _user_at(connections.decode(errors="replace"), place)
                return f"{user}{called or 'a connection'} at {place}"
        # the server notices soon that it is to end what runs
        await asyncio.sleep(_PAUSE)
    return ""


def _user_at(connections: str, address: str) -> str:
    for line in connections.splitlines():
        fields = dict(part.partition("=")[::2] for part in line.split(" "))
        if fields.get("addr") == address:
            return f"user {fields.get('user', '?')}, "
    return ""


def _called(command: Sequence[bytes]) -> tuple[str, tuple[str, ...]]:
    """The name of the function in a call, and its keys; '' if it is none."""
    how, name, count, *rest = (_text(part) for part in (*command, b"", b"", b"")[: max(len(command), 3)])
    if not how.upper().startswith("FCALL"):
        return "", ()
    return name, tuple(rest[: int(count)] if count.isdecimal() else ())


def _fields(flat: Sequence[Any]) -> dict[str, Any]:
    return {_text(name): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _text(data: bytes) -> str:
    """A name that an agent chose, as one short line."""
    return data[:200].decode(errors="replace").encode("unicode_escape").decode()
