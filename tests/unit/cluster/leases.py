"""A Lease as the API server has it, and ways to it on which requests get lost."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from agentstream_operator.cluster.api import ApiError
from agentstream_operator.cluster.kinds import LEASES
from agentstream_operator.cluster.port import ClusterUnavailable

Json = dict[str, Any]
NAMESPACE, NAME = "system", "agentstream-main"


class Way(StrEnum):
    """What becomes of a request."""

    OPEN = "open"
    SLOW = "slow"
    AWAY = "away"
    HANGS = "hangs"
    REPLY_LOST = "reply lost"
    REPLY_HANGS = "reply hangs"


class Leases:
    """The one Lease, as the API server has it.

    Attributes:
        lease: as it is; None if there is none.
    """

    def __init__(self, **spec: Any) -> None:
        self.lease: Json | None = None
        self._versions = 0
        if spec:
            self.write({"metadata": {"name": NAME}, "spec": spec})

    def write(self, lease: Json) -> Json:
        self._versions += 1
        self.lease = copy.deepcopy(lease)
        self.lease["metadata"]["resourceVersion"] = str(self._versions)
        return copy.deepcopy(self.lease)

    @property
    def spec(self) -> Json:
        assert self.lease is not None
        found: Json = self.lease["spec"]
        return found


class Api:
    """A candidate's way to the API server.

    Attributes:
        way: what becomes of its requests.
        writes: how many were done.
    """

    def __init__(self, leases: Leases) -> None:
        self.leases = leases
        self.way = Way.OPEN
        self.writes = 0

    async def get(self, *place: object) -> Json | None:
        assert place == (LEASES, NAMESPACE, NAME)
        return await self._send(lambda: copy.deepcopy(self.leases.lease))

    async def create(self, *given: Any) -> Json:
        *place, body = given
        assert place == [LEASES, NAMESPACE]

        def create() -> Json:
            if self.leases.lease is not None:
                raise ApiError(409, "there is one")
            self.writes += 1
            return self.leases.write(body)

        return await self._send(create)

    async def merge(self, *given: Any) -> Json:
        *place, body = given
        assert place == [LEASES, NAMESPACE, NAME]

        def merge() -> Json:
            found = self.leases.lease
            if found is None:
                raise ApiError(404, "there is none")
            if body["metadata"]["resourceVersion"] not in {"", found["metadata"]["resourceVersion"]}:
                raise ApiError(409, "it has changed")
            self.writes += 1
            return self.leases.write({**found, "spec": {**found["spec"], **body["spec"]}})

        return await self._send(merge)

    async def _send(self, do: Callable[[], Any]) -> Any:
        way = self.way
        if way is Way.AWAY:
            raise ClusterUnavailable("away")
        if way is Way.HANGS:
            await asyncio.Event().wait()
        if way is Way.SLOW:
            await asyncio.sleep(1.2)
        done = do()
        if way is Way.SLOW:
            await asyncio.sleep(1.2)
        if way is Way.REPLY_LOST:
            raise ClusterUnavailable("the connection broke")
        if way is Way.REPLY_HANGS:
            await asyncio.Event().wait()
        return done
