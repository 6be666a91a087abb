"""Keeps StreamReplays where the operator finds them: in the API server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.events import EventWriter
from agentstream_operator.cluster.kinds import STREAMREPLAYS
from agentstream_operator.cluster.port import ClusterUnavailable, Event
from agentstream_operator.plan.replay import changed_by, deleted_by
from agentstream_operator.queue_api.ports import Caller, ReplayRefused, Unavailable
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.parse import InvalidResource, parse_resource
from agentstream_operator.resources.status import ConditionReason
from agentstream_operator.resources.streamreplay import REQUESTED_BY_ANNOTATION, StreamReplay

_TOLD = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY})


@dataclass(frozen=True, slots=True, eq=False)
class ClusterReplays:
    """Writes StreamReplays with the rights of this server, after those of the caller were checked.

    Who asked stands in an annotation, which nobody else may write in another's name; who changed or deleted
    one, in an event. `namespaces` are those that the server may read; None: all.
    """

    api: Api
    events: EventWriter
    namespaces: Sequence[str] | None

    async def create(self, caller: Caller, replay: StreamReplay) -> StreamReplay | None:
        """Creates a replay. Returns it with its uid; None if there is one of that name."""
        namespace, name = replay.metadata.namespace, replay.metadata.name
        annotations = {**replay.metadata.annotations, REQUESTED_BY_ANNOTATION: caller.name}
        body = {
            "apiVersion": STREAMREPLAYS.api_version,
            "kind": STREAMREPLAYS.kind,
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
            "spec": replay.spec.as_manifest(),
        }
        with _told():
            try:
                return _read(await self.api.create(STREAMREPLAYS, namespace, body))
            except ApiError as error:
                if error.code == HTTPStatus.CONFLICT:
                    return None
                raise

    async def get(self, key: ResourceKey) -> StreamReplay | None:
        """Returns a replay, if there is one."""
        with _told():
            found = await self.api.get(STREAMREPLAYS, key.namespace, key.name)
        return _read(found) if found is not None else None

    async def list(self, namespace: str) -> Sequence[StreamReplay]:
        """Returns the replays of a namespace; of all of them if it is empty."""
        with _told():
            return [_read(found) async for found in self._all(namespace)]

    async def patch(
        self, caller: Caller, key: ResourceKey, spec: Mapping[str, Any], why: str | None = None
    ) -> StreamReplay | None:
        """Changes fields of a replay's spec. Returns it; None if there is none."""
        with _told():
            try:
                found = await self.api.merge(STREAMREPLAYS, key.namespace, key.name, {"spec": dict(spec)})
            except ApiError as error:
                if error.code == HTTPStatus.NOT_FOUND:
                    return None
                raise
        replay = _read(found)
        await self._tell(ConditionReason.REPLAY_CHANGED, replay, changed_by(caller.name, spec, why))
        return replay

    async def delete(self, caller: Caller, key: ResourceKey, why: str | None = None) -> bool:
        """Deletes a replay, which stops it. Returns whether there was one."""
        with _told():
            found = await self.api.get(STREAMREPLAYS, key.namespace, key.name)
            if found is None:
                return False
            await self.api.delete(STREAMREPLAYS, key.namespace, key.name, found["metadata"]["uid"])
        await self._tell(ConditionReason.REPLAY_DELETED, _read(found), deleted_by(caller.name, why))
        return True

    async def _tell(self, reason: ConditionReason, replay: StreamReplay, message: str) -> None:
        await self.events.emit(Event(replay.key, reason, message, uid=replay.metadata.uid))

    async def _all(self, namespace: str) -> AsyncIterator[dict[str, Any]]:
        scopes: Sequence[str | None] = [namespace] if namespace else self.namespaces or [None]
        for scope in scopes:
            async for found in self.api.list(STREAMREPLAYS, scope):
                yield found


@contextmanager
def _told() -> Iterator[None]:
    """Passes on what the API server says of a replay; anything else is a failure of this server."""
    try:
        yield
    except ApiError as error:
        if error.code in _TOLD:
            raise ReplayRefused(error.code, str(error)) from error
        raise Unavailable(f"the API server refused it: {error}") from error
    except ClusterUnavailable as error:
        raise Unavailable(str(error)) from error


def _read(found: Mapping[str, Any]) -> StreamReplay:
    try:
        replay = parse_resource(
            {**found, "apiVersion": STREAMREPLAYS.api_version, "kind": STREAMREPLAYS.kind}
        )
    except InvalidResource as error:
        raise Unavailable(f"it was written for another version: {'; '.join(error.problems)}") from error
    if not isinstance(replay, StreamReplay):
        raise Unavailable("the API server answered with another kind of object")
    return replay
