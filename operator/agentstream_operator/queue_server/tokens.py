"""Finds out whose bearer tokens are, by TokenReviews, whose results are cached for some seconds.

https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import TOKEN_REVIEWS
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.queue_api.ports import Caller, Unauthenticated, Unavailable
from agentstream_operator.serve.bucket import Bucket
from agentstream_operator.serve.flights import Flights

KNOWN_FOR, UNKNOWN_FOR = 10.0, 5.0
"""Seconds for which it counts whose a token is, and that it is nobody's."""

AT_A_TIME: Final = 8
"""TokenReviews under way from which on a token that was not seen before has to come again."""

STRANGERS, STRANGERS_AT_ONCE = 10.0, 40
"""Unknown tokens that are looked at in a second, and at once: each costs the API server a TokenReview."""

LONGEST: Final = 16_384
"""Characters of a token; those of ServiceAccounts have about a thousand."""


class TokenReviews:
    """Asks the API server whose a token is: once for all who send the same at a time.

    Tokens are neither kept nor logged, only their digests. `reviews` counts by outcome: `known`, `unknown` or
    `error`. Times are seconds on a monotonic clock.
    """

    def __init__(self, api: Api, now: Callable[[], float]) -> None:
        self._api = api
        self._callers: Flights[bytes, Caller | None] = Flights(
            now, lambda caller: KNOWN_FOR if caller is not None else UNKNOWN_FOR
        )
        self._under_way = 0
        self._strangers = Bucket(STRANGERS, STRANGERS_AT_ONCE, now)
        self.reviews: Counter[str] = Counter()

    async def caller(self, token: str) -> Caller:
        """Returns whose a token is.

        Raises:
            Unauthenticated: nobody's.
            Unavailable: the API server did not say.
        """
        if not token or len(token) > LONGEST:
            raise Unauthenticated("the token is not one of this cluster")
        key = hashlib.sha256(token.encode()).digest()
        # what was known before is asked for again at any time: a flood of others must not keep it out
        is_stranger = not self._callers.counts(key) and self._callers.last(key) is None
        if is_stranger and (self._under_way >= AT_A_TIME or not self._strangers.take()):
            raise Unavailable("too many unknown tokens are being looked at")
        found = await self._callers.answer(key, lambda: self._ask(token))
        if found is None:
            raise Unauthenticated("the token is not one of this cluster, or has expired")
        return found

    async def close(self) -> None:
        """Cancels the running reviews."""
        await self._callers.close()

    def _ask(self, token: str) -> Coroutine[Any, Any, Caller | None]:
        # counted at once: a flood comes before the first of its questions begins
        self._under_way += 1
        return self._review(token)

    async def _review(self, token: str) -> Caller | None:
        body = {"apiVersion": TOKEN_REVIEWS.api_version, "kind": TOKEN_REVIEWS.kind, "spec": {"token": token}}
        try:
            status = (await self._api.create(TOKEN_REVIEWS, None, body))["status"]
            caller = _caller(status["user"]) if status.get("authenticated") is True else None
        except (ApiError, ClusterUnavailable, KeyError, TypeError, AttributeError) as error:
            self.reviews["error"] += 1
            # its message could quote the request
            raise Unavailable("the API server cannot say whose the token is") from error
        finally:
            self._under_way -= 1
        self.reviews["known" if caller is not None else "unknown"] += 1
        return caller


def _caller(user: dict[str, Any]) -> Caller:
    extra = {str(name): tuple(map(str, values)) for name, values in (user.get("extra") or {}).items()}
    groups = tuple(map(str, user.get("groups") or ()))
    return Caller(str(user["username"]), groups, str(user.get("uid") or ""), tuple(sorted(extra.items())))
