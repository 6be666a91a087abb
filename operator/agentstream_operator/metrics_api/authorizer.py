"""Whether a caller may ask: the API server decides, and its answers count for some seconds.

https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import ACCESS_REVIEWS
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.metrics_api.documents import GROUP, VERSION, Refused
from agentstream_operator.metrics_api.request_header import UserInfo

ALLOWED_FOR, DENIED_FOR = 10.0, 5.0
"""Seconds for which an answer counts, as in the API server's own delegation."""

_MASTERS = "system:masters"
_MOST = 10_000
"""Answers that are kept; beyond that, the oldest go."""


class AccessRequest(NamedTuple):
    """What a caller wants: a metric in a namespace, or else what is at a path."""

    path: str = ""
    namespace: str = ""
    metric: str = ""

    @property
    def attributes(self) -> dict[str, Any]:
        """As a SubjectAccessReview has it."""
        if not self.metric:
            return {"nonResourceAttributes": {"path": self.path, "verb": "get"}}
        return {
            "resourceAttributes": {
                "group": GROUP,
                "version": VERSION,
                "namespace": self.namespace,
                "resource": self.metric,
                "verb": "list",
            }
        }

    def __str__(self) -> str:
        if not self.metric:
            return f"get path {self.path}"
        return f'list resource "{self.metric}" in API group "{GROUP}" in the namespace "{self.namespace}"'


@dataclass(slots=True)
class _Decision:
    allowed: asyncio.Future[bool]
    until: float = float("inf")


class Authorizer:
    """Asks the API server, once for all that want to know the same.

    Args:
        api: the API server.
        now: seconds on a steady clock.

    Attributes:
        reviews: how often it was asked, by what it answered: `allowed`, `denied` or `error`.
    """

    def __init__(self, api: Api, now: Callable[[], float]) -> None:
        self._api = api
        self._now = now
        self._answers: dict[tuple[UserInfo, AccessRequest], _Decision] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.reviews: Counter[str] = Counter()

    async def check(self, caller: UserInfo, wish: AccessRequest) -> None:
        """Returns if the caller may have the wish.

        Raises:
            Refused: it may not, or that cannot be found out.
        """
        if _MASTERS in caller.groups:
            return
        key = (caller, wish)
        answer = self._answers.get(key)
        if answer is None or answer.until <= self._now():
            answer = self._ask(key)
        if not await asyncio.shield(answer.allowed):
            raise Refused(HTTPStatus.FORBIDDEN, f'User "{caller.user}" cannot {wish}')

    async def close(self) -> None:
        """Ends what is under way."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ask(self, key: tuple[UserInfo, AccessRequest]) -> _Decision:
        self._answers.pop(key, None)
        while len(self._answers) >= _MOST:
            del self._answers[next(iter(self._answers))]
        answer = self._answers[key] = _Decision(asyncio.get_running_loop().create_future())
        task = asyncio.create_task(self._review(key, answer), name=f"review of {key[0].user}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return answer

    async def _review(self, key: tuple[UserInfo, AccessRequest], answer: _Decision) -> None:
        caller, wish = key
        spec = {"user": caller.user, "groups": list(caller.groups), **wish.attributes}
        if caller.uid:
            spec["uid"] = caller.uid
        if caller.extra:
            spec["extra"] = {name: list(found) for name, found in caller.extra}
        body = {"apiVersion": ACCESS_REVIEWS.api_version, "kind": ACCESS_REVIEWS.kind, "spec": spec}
        try:
            made = await self._api.create(ACCESS_REVIEWS, None, body)
            allowed = made["status"].get("allowed") is True
        except (ApiError, ClusterUnavailable, KeyError, AttributeError) as error:
            self.reviews["error"] += 1
            self._forget(key, answer)
            why = f"whether {caller.user} may {wish} cannot be found out: {error}"
            answer.allowed.set_exception(Refused(HTTPStatus.SERVICE_UNAVAILABLE, why))
            # nobody may be waiting any more
            answer.allowed.exception()
        except asyncio.CancelledError:
            self._forget(key, answer)
            answer.allowed.cancel()
            raise
        else:
            self.reviews["allowed" if allowed else "denied"] += 1
            answer.until = self._now() + (ALLOWED_FOR if allowed else DENIED_FOR)
            answer.allowed.set_result(allowed)

    def _forget(self, key: tuple[UserInfo, AccessRequest], answer: _Decision) -> None:
        if self._answers.get(key) is answer:
            del self._answers[key]
