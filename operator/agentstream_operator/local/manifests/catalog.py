"""The declared resources, in place of an API server: what of them changed, and how they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from agentstream_operator.cluster.port import Event
from agentstream_operator.local.manifests.documents import Place
from agentstream_operator.local.manifests.load import DeclaredResource, Manifests, load
from agentstream_operator.local.manifests.registry import read_records, remember, stamped, write_records
from agentstream_operator.local.processes.processes import Output
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import FINALIZER, ResourceKey
from agentstream_operator.resources.parse import refused_changes
from agentstream_operator.resources.status import (
    AgentStreamStatus,
    ConditionType,
    ConsumerGroupStatus,
    find_condition,
)

Resource = AgentStream | ConsumerGroup
Status = AgentStreamStatus | ConsumerGroupStatus


class Reconciler(Protocol):
    """Who acts on resources."""

    def put(self, resource: Resource) -> None:
        """A resource is new or changed."""
        ...

    def remove(self, key: ResourceKey) -> None:
        """A resource is gone."""
        ...


class Catalog:
    """The resources that the manifests declare.

    Args:
        paths: files and directories of manifests.
        records: the file in which identities and ages are kept.
        output: where lines for the person go.
        now: the present time, with a time zone.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        records: Path,
        output: Output,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._paths = paths
        self._file = records
        self._records = read_records(records)
        self._output = output
        self._now = now
        self._declared: dict[ResourceKey, DeclaredResource] = {}
        self._places: dict[ResourceKey, Place] = {}
        self._finalizers: set[ResourceKey] = set()
        self._deleting: set[ResourceKey] = set()
        self._reasons: dict[ResourceKey, str] = {}
        self._mentioned: set[str] = set()
        self._reconciler: Reconciler | None = None

    def read(self) -> Manifests:
        """Reads the manifests, with everything that is wrong about them now, without taking them up."""
        manifests = load(self._paths)
        problems = list(manifests.problems)
        for key, declared in manifests.declared.items():
            before = self._declared.get(key)
            if before is not None:
                problems += (
                    f"{declared.place}: {key}: {problem}"
                    for problem in refused_changes(before.resource, declared.resource)
                )
        if not manifests.declared and not problems:
            problems.append(
                f"{', '.join(map(str, self._paths))}: declares no AgentStream and no ConsumerGroup"
            )
        return Manifests(manifests.declared, problems, manifests.ignored)

    def attach(self, reconciler: Reconciler) -> None:
        """Says who acts on the resources from now on, and passes on those that are declared."""
        self._reconciler = reconciler
        for declared in self._declared.values():
            reconciler.put(declared.resource)

    def take_up(self, manifests: Manifests) -> None:
        """Passes on what is new, changed or gone, and remembers it.

        Raises:
            LocalError: it cannot be remembered.
        """
        self._mention(manifests)
        resources = [declared.resource for declared in manifests.declared.values()]
        known = dict(self._records)
        gone = [key for key in self._declared if key not in manifests.declared]
        for key in gone:
            known.pop(key, None)
        records = remember(known, resources, self._now())
        if records != self._records:
            write_records(self._file, records)
            self._records = records
        for key in gone:
            self._remove(key)
        for key, declared in manifests.declared.items():
            resource = self._as_stored(declared.resource)
            self._places[key] = declared.place
            before = self._declared.get(key)
            self._declared[key] = DeclaredResource(resource, declared.place)
            self._deleting.discard(key)
            if before is None or before.resource != resource:
                self._put(resource)

    def place(self, key: ResourceKey) -> str:
        """Where a resource is, or was last, declared."""
        return str(self._places.get(key, key))

    def folder(self, key: ResourceKey) -> Path:
        """The directory of the file in which a resource is declared."""
        return self._places[key].file.parent

    def set_status(self, key: ResourceKey, status: Status) -> None:
        """Shows when a resource becomes ready, or no longer is, and why."""
        ready = find_condition(status.conditions, ConditionType.READY)
        if ready is None:
            return
        said = f"{ready.reason}: {ready.message}" if ready.message else str(ready.reason)
        if self._reasons.get(key) != said:
            self._reasons[key] = said
            self._output.say(f"{key}: {'ready' if ready.status == 'True' else f'not ready: {said}'}")

    def set_finalizer(self, key: ResourceKey, *, present: bool) -> None:
        """Notes whether the deletion of a resource has to destroy something first."""
        if present:
            self._finalizers.add(key)
        else:
            self._finalizers.discard(key)
        declared = self._declared.get(key)
        if declared is not None:
            resource = self._as_stored(declared.resource)
            self._declared[key] = DeclaredResource(resource, declared.place)
            self._put(resource)
        elif key in self._deleting and not present:
            self._forget(key)

    def record(self, event: Event) -> None:
        """Shows an event."""
        self._output.say(
            f"{'warning: ' if event.warning else ''}{event.about}: {event.reason}: {event.message}"
        )

    def _remove(self, key: ResourceKey) -> None:
        """Lets a resource go, after what its finalizer asks for."""
        resource = self._declared.pop(key).resource
        self._output.say(f"{key}: no longer declared")
        if key not in self._finalizers:
            self._forget(key)
            return
        self._deleting.add(key)
        metadata = resource.metadata.model_copy(update={"deletion_timestamp": self._now()})
        self._put(resource.model_copy(update={"metadata": metadata}))

    def _forget(self, key: ResourceKey) -> None:
        self._deleting.discard(key)
        self._reasons.pop(key, None)
        if self._reconciler is not None:
            self._reconciler.remove(key)

    def _put(self, resource: Resource) -> None:
        if self._reconciler is not None:
            self._reconciler.put(resource)

    def _as_stored(self, resource: Resource) -> Resource:
        stored = stamped(resource, self._records[resource.key])
        finalizers = (FINALIZER,) if resource.key in self._finalizers else ()
        metadata = stored.metadata.model_copy(update={"finalizers": finalizers})
        return stored.model_copy(update={"metadata": metadata})

    def _mention(self, manifests: Manifests) -> None:
        """Says once what is in the manifests and has no effect here."""
        if manifests.ignored:
            first = next(iter(manifests.ignored.values()))
            self._say_once(f"ignored here: {', '.join(sorted(manifests.ignored))} (first at {first})")
        for key, declared in manifests.declared.items():
            group = declared.resource
            if isinstance(group, ConsumerGroup) and group.spec.template is not None:
                if any(container.image for container in group.spec.template.spec.containers):
                    self._say_once("images are ignored here: commands run as processes of this machine")
                if group.leaves_replicas:
                    self._say_once("there is no autoscaler here: mode HPA is as Direct")
                if len(group.spec.template.spec.containers) > 1:
                    self._say_once(f"{declared.place}: {key}: only its first container runs here")

    def _say_once(self, text: str) -> None:
        if text not in self._mentioned:
            self._mentioned.add(text)
            self._output.say(text)
