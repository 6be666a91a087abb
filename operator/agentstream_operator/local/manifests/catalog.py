"""Keeps the declared resources: local mode's counterpart of the API server's store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from watchfiles import awatch

from agentstream_operator.cluster.port import Event
from agentstream_operator.local.manifests.documents import SourceLine
from agentstream_operator.local.manifests.loader import (
    SUFFIXES,
    Manifests,
    load_manifests,
)
from agentstream_operator.local.manifests.metadata import (
    assign_metadata,
    read_metadata,
    with_metadata,
    write_metadata,
)
from agentstream_operator.local.replays import LocalReplays
from agentstream_operator.local.screen.output import Output
from agentstream_operator.reconcile.engine import Engine
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

_DEBOUNCE_MS = 200


class Catalog:
    """The resources that the manifests declare, with uids, ages and generations from the file `metadata`.

    Replays are kept by `replays`, with those that no manifest declares.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        metadata: Path,
        replays: LocalReplays,
        output: Output,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._paths = paths
        self._file = metadata
        self._metadata = read_metadata(metadata)
        self._replays = replays
        self._output = output
        self._now = now
        self._declared: dict[ResourceKey, Resource] = {}
        self._lines: dict[ResourceKey, SourceLine] = {}
        self._finalizers: set[ResourceKey] = set()
        self._deleting: set[ResourceKey] = set()
        self._readiness: dict[ResourceKey, str] = {}
        self._shown_once: set[str] = set()
        self._engine: Engine | None = None

    def read(self) -> Manifests:
        """Loads the manifests and checks them, also against the present resources; changes nothing."""
        manifests = load_manifests(self._paths)
        for key, resource in manifests.declared.items():
            before = self._declared.get(key)
            if before is not None:
                manifests.problems += (
                    f"{manifests.lines[key]}: {key}: {problem}"
                    for problem in refused_changes(before, resource)
                )
        for key, replay in manifests.replays.items():
            manifests.problems += (
                f"{manifests.lines[key]}: {key}: {problem}" for problem in self._replays.refused(replay)
            )
        if not manifests.declared and not manifests.problems:
            paths = ", ".join(map(str, self._paths))
            manifests.problems.append(f"{paths}: declares no AgentStream and no ConsumerGroup")
        return manifests

    async def changes(self) -> AsyncIterator[None]:
        """Yields once after each burst of changes to the manifest files."""
        given = {path.resolve() for path in self._paths}
        # editors replace files: the directories are watched, also that of a file that a link leads to
        directories = {path if path.is_dir() else path.parent for path in (*self._paths, *given)}

        def is_manifest(_: object, name: str) -> bool:
            path = Path(name)
            return path.suffix in SUFFIXES and (path.resolve() in given or path.resolve().parent in given)

        async for _ in awatch(*directories, watch_filter=is_manifest, debounce=_DEBOUNCE_MS, recursive=False):
            yield

    def attach(self, engine: Engine) -> None:
        """Passes the declared resources, and from now on their changes, to the engine."""
        self._engine = engine
        for resource in self._declared.values():
            engine.put(resource)
        self._replays.attach(engine)

    def apply(self, manifests: Manifests) -> None:
        """Stores manifests, and passes new, changed and removed resources to the engine.

        Raises:
            LocalError: the metadata cannot be written.
        """
        self._explain_ignored(manifests)
        known = dict(self._metadata)
        gone = [key for key in self._declared if key not in manifests.declared]
        for key in gone:
            known.pop(key, None)
        metadata = assign_metadata(known, manifests.declared.values(), self._now())
        if metadata != self._metadata:
            write_metadata(self._file, metadata)
            self._metadata = metadata
        for key in gone:
            self._remove(key)
        self._lines.update(manifests.lines)
        for key, declared in manifests.declared.items():
            resource = self._as_stored(declared)
            before = self._declared.get(key)
            self._declared[key] = resource
            self._deleting.discard(key)
            if before != resource:
                self._put(resource)
        self._replays.declare(manifests.replays)

    def place(self, key: ResourceKey) -> str:
        """Returns file and line of a resource's declaration, the last one if it was removed."""
        return str(self._lines.get(key, key))

    def folder(self, key: ResourceKey) -> Path:
        """Returns the directory of the file that declares a resource."""
        return self._lines[key].file.parent

    def set_status(self, key: ResourceKey, status: Status) -> None:
        """Shows changes of a resource's readiness."""
        ready = find_condition(status.conditions, ConditionType.READY)
        if ready is None:
            return
        reason = f"{ready.reason}: {ready.message}" if ready.message else str(ready.reason)
        if self._readiness.get(key) != reason:
            self._readiness[key] = reason
            self._output.say(f"{key}: {'ready' if ready.status == 'True' else f'not ready: {reason}'}")

    def set_finalizer(self, key: ResourceKey, *, present: bool) -> None:
        """Sets or removes the finalizer; without one, a resource being deleted is removed."""
        if present:
            self._finalizers.add(key)
        else:
            self._finalizers.discard(key)
        declared = self._declared.get(key)
        if declared is not None:
            resource = self._declared[key] = self._as_stored(declared)
            self._put(resource)
        elif key in self._deleting and not present:
            self._forget(key)

    def record(self, event: Event) -> None:
        """Shows an event."""
        self._output.say(
            f"{'warning: ' if event.warning else ''}{event.about}: {event.reason}: {event.message}"
        )

    def _remove(self, key: ResourceKey) -> None:
        """Removes a resource, or marks it as being deleted if it has a finalizer."""
        resource = self._declared.pop(key)
        self._output.say(f"{key}: no longer declared")
        if key not in self._finalizers:
            self._forget(key)
            return
        self._deleting.add(key)
        metadata = resource.metadata.model_copy(update={"deletion_timestamp": self._now()})
        self._put(resource.model_copy(update={"metadata": metadata}))

    def _forget(self, key: ResourceKey) -> None:
        self._deleting.discard(key)
        self._readiness.pop(key, None)
        if self._engine is not None:
            self._engine.remove(key)

    def _put(self, resource: Resource) -> None:
        if self._engine is not None:
            self._engine.put(resource)

    def _as_stored(self, resource: Resource) -> Resource:
        stored = with_metadata(resource, self._metadata[resource.key])
        finalizers = (FINALIZER,) if resource.key in self._finalizers else ()
        metadata = stored.metadata.model_copy(update={"finalizers": finalizers})
        return stored.model_copy(update={"metadata": metadata})

    def _explain_ignored(self, manifests: Manifests) -> None:
        """Shows once what the manifests contain without effect in local mode."""
        if manifests.ignored:
            first = next(iter(manifests.ignored.values()))
            self._show_once(f"ignored kinds: {', '.join(sorted(manifests.ignored))} (first at {first})")
        for key, group in manifests.declared.items():
            if isinstance(group, ConsumerGroup) and group.spec.template is not None:
                if any(container.image for container in group.spec.template.spec.containers):
                    self._show_once("container images are ignored: commands run as processes on this machine")
                if group.leaves_replicas:
                    self._show_once("no HorizontalPodAutoscaler in local mode: mode HPA works as Direct")
                if len(group.spec.template.spec.containers) > 1:
                    self._show_once(
                        f"{manifests.lines[key]}: {key}: only the first container runs in local mode"
                    )

    def _show_once(self, text: str) -> None:
        if text not in self._shown_once:
            self._shown_once.add(text)
            self._output.say(text)
