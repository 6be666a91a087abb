"""Deployments that ConsumerGroups name by `deploymentRef`: the operator changes only their replicas."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import DEPLOYMENTS
from agentstream_operator.cluster.labels import GROUP_LABEL, is_ours
from agentstream_operator.cluster.owned_objects import Place
from agentstream_operator.cluster.port import ChildNotOurs, ClusterUnavailable, WorkloadSeen

_log = logging.getLogger(__name__)
_EVERY = 5.0


class DeploymentRefs:
    """Reads those Deployments again every few seconds, as long as they are asked for.

    Args:
        api: the API server.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._seen: dict[Place, WorkloadSeen | None] = {}
        self._asked: set[Place] = set()

    async def workload(self, place: Place) -> WorkloadSeen | None:
        """Returns a Deployment's workload; None if it does not exist.

        Raises:
            ChildNotOurs: it was created for another ConsumerGroup.
            ClusterUnavailable: the API server does not answer.
        """
        self._asked.add(place)
        if place not in self._seen:
            await self._look(place)
        return self._seen[place]

    async def scale(self, place: Place, replicas: int) -> None:
        """Sets the replicas of a Deployment. Raises as `Api.merge`."""
        try:
            await self._api.merge(DEPLOYMENTS, *place, {"spec": {"replicas": replicas}}, part="scale")
        finally:
            await self._look(place)

    async def watch(self) -> None:
        """Reads the Deployments until cancelled."""
        while True:
            await asyncio.sleep(_EVERY)
            for place in tuple(self._seen.keys() - self._asked):
                del self._seen[place]
            self._asked.clear()
            for place in tuple(self._seen):
                with contextlib.suppress(ClusterUnavailable, ChildNotOurs):
                    await self._look(place)

    async def _look(self, place: Place) -> None:
        try:
            found = await self._api.get(DEPLOYMENTS, *place)
        except ApiError as error:
            _log.warning("cannot read Deployment %s/%s: %s", *place, error)
            raise ClusterUnavailable(str(error)) from error
        if found is None:
            self._seen[place] = None
            return
        if is_ours(found["metadata"]):
            self._seen.pop(place, None)
            owner = found["metadata"]["labels"].get(GROUP_LABEL)
            raise ChildNotOurs(
                f"Deployment {place[1]} was created for the ConsumerGroup {owner}; name another Deployment"
            )
        status = found.get("status") or {}
        self._seen[place] = WorkloadSeen(found["spec"].get("replicas", 1), status.get("readyReplicas", 0))
