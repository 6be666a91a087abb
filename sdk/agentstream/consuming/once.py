"""Effects outside that must not be repeated, though a message may be handled twice: `Delivery.once`."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, Literal

from agentstream.errors import EffectInDoubt, check_seconds
from agentstream.protocol import commands
from agentstream.protocol.commands import Command
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream.telemetry.counters import IN_DOUBT, GroupCounters
from agentstream.transport.retry import retry_until

WEEK = 7 * 86_400.0
_PATIENCE = 10.0
_DONE, _IN_DOUBT = 0, -1


class Once:
    """Guards an effect that must not be repeated, as an asynchronous context manager; see `Delivery.once`.

    `delivery` names the delivery that brings it about; for `ttl` seconds it is remembered that it came about.
    """

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        policy: Consumes,
        key: str,
        delivery: str,
        ttl: float,
        *,
        counters: GroupCounters,
    ) -> None:
        check_seconds(ttl, "ttl")
        if not isinstance(key, str) or not key or ttl <= 0:
            raise ValueError("an effect needs a text as its key, and a time to live that is positive")
        self._call = call
        self._counters = counters
        self._stream = policy.key
        self._done_key = StreamKeys(policy.key).done(policy.group, key)
        self._key = key
        self._delivery = delivery
        self._token = ""
        self._lifetime = max(round(ttl * 1000), 1)
        self._first = False

    async def __aenter__(self) -> bool:
        """Returns whether the effect is still to be brought about.

        Raises:
            EffectInDoubt: an earlier attempt began it, and whether it came about is not known.
            ConnectionLost, AccessDenied, Backpressure, ServerRefused: the server did not answer, refused, or
                was out of memory for ten seconds; at once where waiting is of no use.
        """
        # the same delivery must not do it twice either, if it does not know how its first try ended
        self._token = f"{self._delivery} {secrets.token_hex(8)}"
        state = await self._repeat(commands.once(self._stream, self._done_key, self._token, self._lifetime))
        if state == _IN_DOUBT:
            self._counters.add(IN_DOUBT)
            raise EffectInDoubt(
                f"another delivery began {self._key!r} and was interrupted; it is not known whether the"
                " effect came about"
            )
        self._first = state != _DONE
        return self._first

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Notes that the effect came about; by an error, that it did not.

        A cancellation leaves the effect in doubt, as a crash does: it may have been under way.

        Raises:
            ConnectionLost, AccessDenied, ServerRefused: as on entering; the next delivery may find the effect
                in doubt.
        """
        if self._first and error is None:
            await self._note("done")
        elif self._first and isinstance(error, Exception):
            await self._note("undone")

    async def _note(self, verb: Literal["done", "undone"]) -> None:
        command = commands.end_once(self._stream, self._done_key, self._token, verb, self._lifetime)
        await self._repeat(command)

    async def _repeat(self, command: Command) -> int:
        """Sends a command until the server answers: a repetition changes nothing."""
        return int(await retry_until(partial(self._call, *command), _PATIENCE))
