"""Authorizes users by SubjectAccessReviews, whose results are cached for some seconds.

https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import ACCESS_REVIEWS
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.metrics_api.documents import GROUP, VERSION, StatusError
from agentstream_operator.metrics_api.request_header import UserInfo

ALLOWED_FOR, DENIED_FOR = 10.0, 5.0
"""Seconds for which a decision is cached, as in the API server's own delegated authorization."""

_MASTERS = "system:masters"
_CACHE_SIZE = 10_000
"""Decisions that are cached; beyond that, the oldest are evicted."""


class AccessRequest(NamedTuple):
    """What a user asks to read: a metric in a namespace, or else a path."""

    path: str = ""
    namespace: str = ""
    metric: str = ""

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes in the spec of a SubjectAccessReview."""
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
    review: asyncio.Task[bool]
    until: float = float("inf")


@dataclass(slots=True, eq=False)
class Authorizer:
    """Single flight: concurrent requests of one user for one thing share one SubjectAccessReview.

    Times are seconds on a monotonic clock. `reviews` counts by outcome: `allowed`, `denied` or `error`.
    """

    api: Api
    now: Callable[[], float]
    reviews: Counter[str] = field(init=False, default_factory=Counter)
    _decisions: dict[tuple[UserInfo, AccessRequest], _Decision] = field(init=False, default_factory=dict)
    _tasks: set[asyncio.Task[bool]] = field(init=False, default_factory=set)

    async def check(self, user: UserInfo, access: AccessRequest) -> None:
        """Returns if the user has access.

        Raises:
            StatusError: 403: access is denied; 503: the review failed.
        """
        if _MASTERS in user.groups:
            return
        key = (user, access)
        decision = self._decisions.get(key)
        if decision is None or decision.until <= self.now():
            decision = self._start_review(key)
        if not await asyncio.shield(decision.review):
            raise StatusError(HTTPStatus.FORBIDDEN, f'User "{user.name}" cannot {access}')

    async def close(self) -> None:
        """Cancels the running reviews."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start_review(self, key: tuple[UserInfo, AccessRequest]) -> _Decision:
        self._decisions.pop(key, None)
        while len(self._decisions) >= _CACHE_SIZE:
            del self._decisions[next(iter(self._decisions))]
        task = asyncio.create_task(self._review(*key), name=f"review of {key[0].name}")
        decision = self._decisions[key] = _Decision(task)
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._finish(key, decision))
        return decision

    def _finish(self, key: tuple[UserInfo, AccessRequest], decision: _Decision) -> None:
        self._tasks.discard(decision.review)
        # asking for the exception also keeps asyncio from logging that it was never retrieved
        if not decision.review.cancelled() and decision.review.exception() is None:
            decision.until = self.now() + (ALLOWED_FOR if decision.review.result() else DENIED_FOR)
        elif self._decisions.get(key) is decision:
            del self._decisions[key]

    async def _review(self, user: UserInfo, access: AccessRequest) -> bool:
        spec = {"user": user.name, "groups": list(user.groups), **access.attributes}
        if user.uid:
            spec["uid"] = user.uid
        if user.extra:
            spec["extra"] = {name: list(values) for name, values in user.extra}
        body = {"apiVersion": ACCESS_REVIEWS.api_version, "kind": ACCESS_REVIEWS.kind, "spec": spec}
        try:
            created = await self.api.create(ACCESS_REVIEWS, None, body)
            allowed = created["status"].get("allowed") is True
        except (ApiError, ClusterUnavailable, KeyError, AttributeError) as error:
            self.reviews["error"] += 1
            message = f'SubjectAccessReview of user "{user.name}" failed: {error}'
            raise StatusError(HTTPStatus.SERVICE_UNAVAILABLE, message) from error
        self.reviews["allowed" if allowed else "denied"] += 1
        return allowed
