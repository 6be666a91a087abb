"""Authorizes users by SubjectAccessReviews, whose results are cached for some seconds.

https://kubernetes.io/docs/reference/access-authn-authz/authorization/#checking-api-access
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import ACCESS_REVIEWS
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.serve.flights import Flights
from agentstream_operator.serve.request_header import UserInfo

ALLOWED_FOR, DENIED_FOR = 10.0, 5.0
"""Seconds for which a decision is cached, as in the API server's own delegated authorization."""

_MASTERS = "system:masters"


class ReviewFailed(Exception):  # noqa: N818 - named after what is wrong
    """The API server did not decide; the message says why."""


class PathAccess(NamedTuple):
    """Reading a path of an API server."""

    path: str

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes in the spec of a SubjectAccessReview."""
        return {"nonResourceAttributes": {"path": self.path, "verb": "get"}}

    def __str__(self) -> str:
        return f"get path {self.path}"


class ResourceAccess(NamedTuple):
    """Doing something with a resource, or with its subresource; an empty namespace or name means any."""

    verb: str
    group: str
    version: str
    resource: str
    namespace: str
    name: str = ""
    subresource: str = ""

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes in the spec of a SubjectAccessReview."""
        return {"resourceAttributes": {name: value for name, value in self._asdict().items() if value}}

    def __str__(self) -> str:
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        where = f' in the namespace "{self.namespace}"' if self.namespace else " at the cluster scope"
        return f'{self.verb} resource "{resource}" in API group "{self.group}"{where}'


Access = PathAccess | ResourceAccess


class Authorizer:
    """Asks the API server whether users have access: once for all who ask the same at a time.

    Times are seconds on a monotonic clock. `reviews` counts by outcome: `allowed`, `denied` or `error`.
    """

    def __init__(self, api: Api, now: Callable[[], float]) -> None:
        self._api = api
        self._decisions: Flights[tuple[UserInfo, Access], bool] = Flights(
            now, lambda allowed: ALLOWED_FOR if allowed else DENIED_FOR
        )
        self.reviews: Counter[str] = Counter()

    async def allows(self, user: UserInfo, access: Access) -> bool:
        """Returns whether a user has access.

        Raises:
            ReviewFailed: the API server did not decide.
        """
        if _MASTERS in user.groups:
            return True
        return await self._decisions.answer((user, access), lambda: self._review(user, access))

    async def close(self) -> None:
        """Cancels the running reviews."""
        await self._decisions.close()

    async def _review(self, user: UserInfo, access: Access) -> bool:
        spec = {"user": user.name, "groups": list(user.groups), **access.attributes}
        if user.uid:
            spec["uid"] = user.uid
        if user.extra:
            spec["extra"] = {name: list(values) for name, values in user.extra}
        body = {"apiVersion": ACCESS_REVIEWS.api_version, "kind": ACCESS_REVIEWS.kind, "spec": spec}
        try:
            created = await self._api.create(ACCESS_REVIEWS, None, body)
            allowed = created["status"].get("allowed") is True
        except (ApiError, ClusterUnavailable, KeyError, AttributeError) as error:
            self.reviews["error"] += 1
            raise ReviewFailed(f'SubjectAccessReview of user "{user.name}" failed: {error}') from error
        self.reviews["allowed" if allowed else "denied"] += 1
        return allowed
