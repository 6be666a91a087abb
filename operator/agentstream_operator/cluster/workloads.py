"""The consumers of a group on Kubernetes: a Deployment, created or named, and an autoscaler in mode HPA."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import Any

from agentstream_operator.cluster.api import Api, ApiError, raise_refusal
from agentstream_operator.cluster.autoscaler import autoscaler, is_as_made
from agentstream_operator.cluster.deployment import deployment, revision
from agentstream_operator.cluster.kinds import AUTOSCALERS, DEPLOYMENTS, ApiKind
from agentstream_operator.cluster.labels import (
    FIELD_MANAGER,
    GROUP_LABEL,
    SCALE_MANAGER,
    deployment_name,
    is_ours,
)
from agentstream_operator.cluster.owned_objects import OwnedObjects, Place
from agentstream_operator.cluster.port import ChildNotOurs, ClusterUnavailable, WorkloadSeen
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey

_log = logging.getLogger(__name__)
_CONFLICT = 409
_READ_EVERY = 5.0


class Workloads:
    """Reads and writes the workloads of groups."""

    def __init__(self, api: Api, owned: OwnedObjects, deployment_refs: DeploymentRefs) -> None:
        self._api = api
        self._owned = owned
        self._deployment_refs = deployment_refs
        self._applied: dict[ResourceKey, tuple[str, int]] = {}

    async def seen(self, group: ConsumerGroup) -> WorkloadSeen | None:
        """Returns the Deployment of a group, created or named by deploymentRef, and its autoscaler."""
        if group.spec.deployment_ref is not None:
            place = (group.metadata.namespace, group.spec.deployment_ref.name)
            found = await self._deployment_refs.workload(place)
        else:
            found = self._owned.workload(group.key, current=self._is_current(group.key))
        if found is None or not group.leaves_replicas:
            return found
        known, ours = self._owned.autoscaler(group.key), self._owned.deployment(group.key)
        held = ours is not None and ours.ours
        as_made = known is not None and is_as_made(known, autoscaler(group))
        return replace(
            found,
            current=found.current and as_made and not held,
            autoscaler=known.seen if known is not None else None,
        )

    async def apply(self, group: ConsumerGroup, replicas: int) -> None:
        """Applies the Deployment of a group, or scales that of deploymentRef, and applies the autoscaler."""
        if group.spec.deployment_ref is None:
            await self._apply_deployment(group, replicas)
        else:
            await self._scale_reference(group, replicas)
        if group.leaves_replicas:
            await self._apply_autoscaler(group)

    async def delete(self, group: ResourceKey) -> None:
        """Deletes the Deployment of a group, if the operator created it."""
        self._applied.pop(group, None)
        place = _place(group)
        if place in self._owned.deployments:
            await self._api.delete(DEPLOYMENTS, *place)
            self._owned.deployments.pop(place, None)

    async def delete_autoscaler(self, group: ResourceKey) -> None:
        """Deletes the autoscaler of a group, if the operator created it."""
        place = _place(group)
        if place in self._owned.autoscalers:
            await self._api.delete(AUTOSCALERS, *place)
            self._owned.autoscalers.pop(place, None)

    def _is_current(self, group: ResourceKey) -> bool:
        """Returns whether the Deployment's spec is unchanged since it was applied, as far as known."""
        known = self._owned.deployment(group)
        if known is None:
            return False
        uid, generation = self._applied.get(group, ("", 0))
        return known.generation <= generation if known.uid == uid else not known.edited

    async def _apply_deployment(self, group: ConsumerGroup, replicas: int) -> None:
        body, key = deployment(group, replicas), group.key
        if self._owned.deployment(key) is None:
            await self._look(DEPLOYMENTS, key)
        known = self._owned.deployment(key)
        if known is None:
            # a new Deployment is created with replicas in any mode
            await self._write_deployment(key, body, force=False)
        elif not group.leaves_replicas:
            applied_before = (known.revision, known.replicas) == (revision(body), replicas)
            if not (applied_before and self._is_current(key)):
                await self._write_deployment(key, body, force=True)
        if group.leaves_replicas:
            await self._leave_replicas(key, body, replicas)

    async def _leave_replicas(self, key: ResourceKey, body: dict[str, Any], replicas: int) -> None:
        """Applies a Deployment without its replicas; another manager owns them, or they would fall to 1."""
        known = self._owned.deployment(key)
        if known is not None and (known.ours or known.replicas != replicas):
            await self._hold(key, body["metadata"], replicas)
            known = self._owned.deployment(key)
        if known is None:
            return
        if known.ours or known.revision != revision(body) or not self._is_current(key):
            del body["spec"]["replicas"]
            await self._write_deployment(key, body, force=True)

    async def _hold(self, key: ResourceKey, metadata: dict[str, Any], replicas: int) -> None:
        """Sets the replicas as the manager that owns them while an autoscaler changes them."""
        current = self._is_current(key)
        body = {
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
            "spec": {"replicas": replicas},
        }
        applied = await self._write(DEPLOYMENTS, key, body, force=True, manager=SCALE_MANAGER)
        if current:
            self._note(key, applied)

    async def _write_deployment(self, key: ResourceKey, body: dict[str, Any], *, force: bool) -> None:
        self._note(key, await self._write(DEPLOYMENTS, key, body, force=force))

    def _note(self, key: ResourceKey, applied: dict[str, Any] | None) -> None:
        """Notes that a Deployment is as applied."""
        if applied is not None:
            self._applied[key] = (applied["metadata"]["uid"], applied["metadata"]["generation"])

    async def _scale_reference(self, group: ConsumerGroup, replicas: int) -> None:
        reference = group.spec.deployment_ref
        if reference is None:
            raise ValueError(f"{group.key} names no Deployment")
        place = (group.metadata.namespace, reference.name)
        known = await self._deployment_refs.workload(place)
        if known is not None and known.replicas == replicas and group.leaves_replicas:
            return
        try:
            await self._deployment_refs.scale(place, replicas)
        except ApiError as error:
            raise_refusal(error, f"Deployment {reference.name}")

    async def _apply_autoscaler(self, group: ConsumerGroup) -> None:
        body, key = autoscaler(group), group.key
        if self._owned.autoscaler(key) is None:
            await self._look(AUTOSCALERS, key)
        known = self._owned.autoscaler(key)
        if known is None or not is_as_made(known, body):
            await self._write(AUTOSCALERS, key, body, force=known is not None)

    async def _write(
        self,
        kind: ApiKind,
        group: ResourceKey,
        body: dict[str, Any],
        *,
        force: bool,
        manager: str = FIELD_MANAGER,
    ) -> dict[str, Any] | None:
        """Applies an object; returns it, or None in a namespace that is being deleted.

        Raises `ClusterRefused`, and `ChildNotOurs` if another manager owns fields of it.
        """
        what = f"{kind.kind} {deployment_name(group.name)}"
        try:
            made = await self._api.apply(kind, body, force=force, manager=manager)
        except ApiError as error:
            if error.code == _CONFLICT:
                raise ChildNotOurs(f"{what} has fields managed by another client: {error}") from error
            raise_refusal(error, what)
            return None
        self._owned.put(made)
        return made

    async def _look(self, kind: ApiKind, group: ResourceKey) -> None:
        """Reads an object that was not known; raises `ChildNotOurs` if the operator did not create it."""
        namespace, name = _place(group)
        found = await self._api.get(kind, namespace, name)
        if found is None:
            return
        if not is_ours(found["metadata"]):
            raise ChildNotOurs(
                f"{kind.kind} {name} exists and was not created by AgentStream: rename or delete it, or"
                " rename the group"
            )
        self._owned.put(found)


def _place(group: ResourceKey) -> tuple[str, str]:
    return group.namespace, deployment_name(group.name)


class DeploymentRefs:
    """Reads the Deployments that groups name by `deploymentRef` every few seconds, while they are named.

    The operator changes only their replicas.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._seen: dict[Place, WorkloadSeen | None] = {}
        self._asked: set[Place] = set()

    async def workload(self, place: Place) -> WorkloadSeen | None:
        """Returns a Deployment's workload, if it exists; `ChildNotOurs` if another group owns it."""
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
            await asyncio.sleep(_READ_EVERY)
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
