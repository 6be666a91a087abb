"""Knows what callers may do: as Kubernetes decides, also about subresources that only this API has."""

from __future__ import annotations

from dataclasses import dataclass

from agentstream_operator.queue_api.ports import Caller, Unavailable, Verb
from agentstream_operator.resources.meta import GROUP, VERSION
from agentstream_operator.serve.authorizer import Authorizer, ResourceAccess, ReviewFailed
from agentstream_operator.serve.request_header import UserInfo


@dataclass(frozen=True, slots=True, eq=False)
class ReviewedAccess:
    """Asks the API server by SubjectAccessReviews."""

    authorizer: Authorizer

    async def allow(self, caller: Caller, verb: Verb, resource: str, namespace: str, name: str) -> bool:
        """Tells whether a caller may do this.

        Raises:
            Unavailable: the API server did not decide.
        """
        plural, _, part = resource.partition("/")
        user = UserInfo(caller.name, caller.groups, caller.uid, caller.extra)
        access = ResourceAccess(verb, GROUP, VERSION, plural, namespace, name, part)
        try:
            return await self.authorizer.allows(user, access)
        except ReviewFailed as error:
            raise Unavailable(str(error)) from error
