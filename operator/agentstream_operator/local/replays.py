"""Keeps StreamReplays as files: those that manifests declare, and those that the HTTP API creates."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from agentstream_operator.cluster.port import ClusterUnavailable, Owner
from agentstream_operator.local.bindings import make_private, write_private
from agentstream_operator.local.screen.output import LocalError, Output, cannot
from agentstream_operator.plan.replay import changed_by, deleted_by
from agentstream_operator.queue_api.ports import Caller, ReplayRefused, Unavailable
from agentstream_operator.reconcile.engine import Engine
from agentstream_operator.resources.meta import GROUP, ResourceKey
from agentstream_operator.resources.parse import InvalidResource, parse_resource, refused_changes
from agentstream_operator.resources.status import ConditionType, StreamReplayStatus, find_condition
from agentstream_operator.resources.streamreplay import (
    REQUESTED_BY_ANNOTATION,
    StreamReplay,
    StreamReplaySpec,
)

_DECLARED_ANNOTATION = f"{GROUP}/declared"


class _Declared(StrEnum):
    """What a manifest has to do with a replay: without this annotation, nothing.

    One that was deleted, after its time or by hand, is kept as long as a manifest may declare it: carried out
    again at the next start, it would deliver everything twice.
    """

    YES = "true"
    DELETED = "deleted"


class LocalReplays:
    """The StreamReplays of a data directory: local mode's store for them, and the port of the HTTP API.

    Each is a file `NAMESPACE.NAME.json`, a manifest with its status, so that none is carried out twice.

    Raises:
        LocalError: a file cannot be read, or has no StreamReplay.
    """

    def __init__(
        self,
        folder: Path,
        *,
        output: Output,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._output = output
        self._now = now
        self._engine: Engine | None = None
        found = {replay.key: replay for replay in _read(folder)}
        # of the manifests of this run, or of no manifest
        self._present = {key: replay for key, replay in found.items() if _declared(replay) is None}
        # of the manifests of other runs, or deleted
        self._kept = {key: replay for key, replay in found.items() if key not in self._present}
        self._manifests: Mapping[ResourceKey, StreamReplay] = {}

    def attach(self, engine: Engine) -> None:
        """Passes the replays, and from now on their changes, to the engine."""
        self._engine = engine
        for replay in self._present.values():
            engine.put(replay)

    def refused(self, declared: StreamReplay) -> tuple[str, ...]:
        """Returns what a manifest may not change of the replay that there is."""
        before = self._present.get(declared.key)
        return refused_changes(before, declared) if before is not None else ()

    def declare(self, declared: Mapping[ResourceKey, StreamReplay]) -> None:
        """Takes the replays that the manifests declare now; those that they did before are deleted.

        Raises:
            LocalError: a file cannot be written.
        """
        try:
            for key in self._manifests.keys() - declared.keys():
                self._forget(key)
            for key, replay in declared.items():
                self._declare(key, replay)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._manifests = declared

    def _declare(self, key: ResourceKey, declared: StreamReplay) -> None:
        before = self._present.get(key) or self._kept.get(key)
        if before is None or refused_changes(before, declared):
            # what was kept of another run is another replay
            asked = {REQUESTED_BY_ANNOTATION: "a manifest", **declared.metadata.annotations}
            self._put(self._created(declared, {**asked, _DECLARED_ANNOTATION: _Declared.YES}))
        elif _declared(before) is not _Declared.DELETED:
            self._put(_changed(before, declared.spec, {_DECLARED_ANNOTATION: _Declared.YES}))

    def set_status(self, about: Owner, status: StreamReplayStatus) -> None:
        """Stores a status, unless the replay is gone or was replaced, and shows another phase.

        Raises:
            ClusterUnavailable: the file cannot be written.
        """
        before = self._present.get(about.key)
        if before is None or before.metadata.uid != about.uid:
            return
        replay = before.model_copy(update={"status": status})
        try:
            self._write(replay)
        except OSError as error:
            raise ClusterUnavailable(str(self._cannot_write(error))) from error
        self._present[about.key] = replay
        if before.status is None or before.status.phase is not status.phase:
            ready = find_condition(status.conditions, ConditionType.READY)
            why = f": {ready.message}" if ready is not None and ready.message else ""
            self._output.say(f"{about.key}: {status.phase or 'not begun'}{why}")

    def remove(self, about: Owner) -> None:
        """Deletes a replay, unless it is gone or was replaced.

        Raises:
            ClusterUnavailable: the file cannot be changed.
        """
        present = self._present.get(about.key)
        if present is None or present.metadata.uid != about.uid:
            return
        try:
            self._delete(present)
        except OSError as error:
            raise ClusterUnavailable(str(self._cannot_write(error))) from error

    async def create(self, caller: Caller, replay: StreamReplay) -> StreamReplay | None:
        """Creates a replay. Returns it with its uid; None if there is one of that name."""
        if replay.key in self._present:
            return None
        created = self._created(replay, {REQUESTED_BY_ANNOTATION: caller.name})
        try:
            self._put(created)
        except OSError as error:
            raise Unavailable(str(self._cannot_write(error))) from error
        return created

    async def get(self, key: ResourceKey) -> StreamReplay | None:
        """Returns a replay, if there is one."""
        return self._present.get(key)

    async def list(self, namespace: str) -> Sequence[StreamReplay]:
        """Returns the replays of a namespace; of all of them if it is empty."""
        found = self._present.items()
        return [replay for key, replay in sorted(found) if namespace in {"", key.namespace}]

    async def patch(
        self, caller: Caller, key: ResourceKey, spec: Mapping[str, Any], why: str | None = None
    ) -> StreamReplay | None:
        """Changes fields of a replay's spec, named as in manifests. Returns it; None if there is none."""
        before = self._present.get(key)
        if before is None:
            return None
        manifest = before.as_manifest()
        try:
            parsed = parse_resource({**manifest, "spec": {**manifest["spec"], **spec}})
        except InvalidResource as error:
            raise ReplayRefused(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(error.problems)) from None
        if not isinstance(parsed, StreamReplay):
            return None
        if problems := refused_changes(before, parsed):
            raise ReplayRefused(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(problems))
        after = _changed(before, parsed.spec, {})
        try:
            self._put(after)
        except OSError as error:
            raise Unavailable(str(self._cannot_write(error))) from error
        self._output.say(f"{key}: {changed_by(caller.name, spec, why)}")
        return after

    async def delete(self, caller: Caller, key: ResourceKey, why: str | None = None) -> bool:
        """Deletes a replay, which stops it. Returns whether there was one."""
        present = self._present.get(key)
        if present is None:
            return False
        try:
            self._delete(present)
        except OSError as error:
            raise Unavailable(str(self._cannot_write(error))) from error
        self._output.say(f"{key}: {deleted_by(caller.name, why)}")
        return True

    def _created(self, replay: StreamReplay, annotations: Mapping[str, str]) -> StreamReplay:
        known = (other.metadata.creation_timestamp for other in self._present.values())
        now = self._now()
        # of two replays of a group the older one is first: no two are of the same age
        latest = max((time for time in known if time is not None), default=now - timedelta(seconds=1))
        metadata = replay.metadata.model_copy(
            update={
                "uid": str(uuid.uuid4()),
                "generation": 1,
                "creation_timestamp": max(now, latest + timedelta(milliseconds=1)),
                "annotations": {**replay.metadata.annotations, **annotations},
            }
        )
        return replay.model_copy(update={"metadata": metadata, "status": None})

    def _put(self, replay: StreamReplay) -> None:
        key = replay.key
        if self._present.get(key) == replay:
            return
        self._write(replay)
        self._kept.pop(key, None)
        self._present[key] = replay
        if self._engine is not None:
            self._engine.put(replay)

    def _delete(self, replay: StreamReplay) -> None:
        if replay.key in self._manifests:
            deleted = _changed(replay, replay.spec, {_DECLARED_ANNOTATION: _Declared.DELETED})
            self._write(deleted)
            self._kept[replay.key] = deleted
        else:
            self._file(replay.key).unlink(missing_ok=True)
        self._drop(replay.key)

    def _forget(self, key: ResourceKey) -> None:
        self._file(key).unlink(missing_ok=True)
        self._kept.pop(key, None)
        self._drop(key)

    def _drop(self, key: ResourceKey) -> None:
        if self._present.pop(key, None) is not None and self._engine is not None:
            self._engine.remove(key)

    def _write(self, replay: StreamReplay) -> None:
        make_private(self._folder)
        write_private(self._file(replay.key), msgspec.json.encode(replay.as_manifest()).decode())

    def _file(self, key: ResourceKey) -> Path:
        return self._folder / _file_name(key)

    def _cannot_write(self, error: OSError) -> LocalError:
        return cannot(f"write to {self._folder}", error)


def _file_name(key: ResourceKey) -> str:
    return f"{key.namespace}.{key.name}.json"


def _read(folder: Path) -> Iterator[StreamReplay]:
    for file in sorted(folder.glob("*.json")):
        try:
            found = parse_resource(msgspec.json.decode(file.read_bytes()))
        except (msgspec.MsgspecError, InvalidResource) as error:
            problem = str(error).partition("\n")[0]
            raise LocalError(
                f"{file}: is not the file of a replay; delete it, or repair it: {problem}"
            ) from None
        except OSError as error:
            raise cannot(f"read {file}", error) from error
        if not isinstance(found, StreamReplay) or file.name != _file_name(found.key):
            raise LocalError(f"{file}: is not the file of {found.key}; delete it, or rename it")
        yield found


def _declared(replay: StreamReplay) -> _Declared | None:
    found = replay.metadata.annotations.get(_DECLARED_ANNOTATION)
    return _Declared(found) if found in set(_Declared) else None


def _changed(replay: StreamReplay, spec: StreamReplaySpec, annotations: Mapping[str, str]) -> StreamReplay:
    metadata = replay.metadata.model_copy(
        update={
            "generation": replay.metadata.generation + (spec != replay.spec),
            "annotations": {**replay.metadata.annotations, **annotations},
        }
    )
    return replay.model_copy(update={"metadata": metadata, "spec": spec})
