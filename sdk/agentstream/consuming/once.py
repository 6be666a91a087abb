"""Effects outside that a group must not repeat, though a message may be handled twice: `Delivery.once`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Literal

from agentstream.errors import AccessDenied, AgentStreamError, EffectInDoubt, WireClosed
from agentstream.protocol import commands
from agentstream.protocol.keys import StreamKeys
from agentstream.protocol.routes import Consumes
from agentstream.telemetry.counters import IN_DOUBT, GroupCounters
from agentstream.transport.retry import Backoff

WEEK = 7 * 86_400.0
_PATIENCE = 10.0
_DONE, _IN_DOUBT = 0, -1


class Once:
    """An effect that must not be repeated, as an asynchronous context manager; see `Delivery.once`.

    Args:
        call: sends a command and returns its reply.
        policy: of the group that must not repeat it.
        key: names the effect.
        delivery: names the delivery that is to bring it about.
        ttl: for how many seconds it is known that it came about.
        counters: where it is counted how often that is in doubt.
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
        if not key or ttl <= 0:
            raise ValueError("an effect needs a key, and a time to live that is positive")
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
        """Whether the effect is still to be brought about.

        Raises:
            EffectInDoubt: an earlier attempt began it, and whether it came about is not known.
            ConnectionLost, ServerRefused: the server did not answer, or refused, for ten seconds.
            AccessDenied: the server refuses.
        """
        # nor may the same delivery do it twice, should it not know how its first try ended
        self._token = f"{self._delivery} {secrets.token_hex(8)}"
        state = await self._note("begin")
        if state == _IN_DOUBT:
            self._counters.add(IN_DOUBT)
            raise EffectInDoubt(
                f"another delivery began {self._key!r} and did not say how it ended; whether it came about is"
                " not known"
            )
        self._first = state != _DONE
        return self._first

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Notes that the effect came about; by an error, that it did not.

        Whoever is cancelled in it leaves it in doubt, as a crash does: it may have been under way.

        Raises:
            ConnectionLost, ServerRefused: the server did not answer, or refused, for ten seconds; the next
                delivery may find the effect in doubt.
            AccessDenied: the server refuses; likewise.
        """
        if self._first and error is None:
            await self._note("done")
        elif self._first and isinstance(error, Exception):
            await self._note("undone")

    async def _note(self, verb: Literal["begin", "done", "undone"]) -> int:
        """Repeated until the server answers: noting a thing twice is noting it once."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        backoff = Backoff(0.05, 1.0)
        while True:
            try:
                command = commands.once(self._stream, self._done_key, self._token, verb, self._lifetime)
                return int(await self._call(*command))
            except (AccessDenied, WireClosed):
                raise
            except AgentStreamError:
                delay = backoff.next()
                if loop.time() + delay >= deadline:
                    raise
            await asyncio.sleep(delay)
