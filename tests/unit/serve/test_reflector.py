"""Keeping a store as the API server has it, by lists and watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

import msgspec
import pytest

from agentstream_operator.cluster.answers import Metadata, Page
from agentstream_operator.cluster.api import ApiError
from agentstream_operator.cluster.kinds import ApiKind
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.serve.reflector import Reflector
from support.waiting import until
from unit.cluster.objects import a_resource

Json = dict[str, Any]


class There:
    """The API server: what it has, and watches that a test feeds.

    Attributes:
        objects: by kind, namespace and name.
        events: by kind; None ends a watch, an exception breaks it off.
        listed: what was listed, and where.
        fails: what the next list ends with.
    """

    def __init__(self, *objects: Json) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.events: dict[str, asyncio.Queue[Any]] = {}
        self.listed: list[tuple[str, str | None]] = []
        self.versions: list[str] = []
        self.fails: Exception | None = None
        self.put(*objects)

    def put(self, *objects: Json) -> None:
        for found in objects:
            key = (found["kind"], found["metadata"]["namespace"], found["metadata"]["name"])
            self.objects[key] = found

    async def pages(self, kind: ApiKind, namespace: str | None) -> AsyncIterator[Page]:
        self.listed.append((kind.kind, namespace))
        if self.fails is not None:
            failure, self.fails = self.fails, None
            raise failure
        found = [o for k, o in self.objects.items() if k[0] == kind.kind and namespace in {None, k[1]}]
        for items in ([], found[:1], found[1:]):
            yield Page(Metadata("100"), [msgspec.Raw(msgspec.json.encode(item)) for item in items])

    async def watch(
        self, kind: ApiKind, namespace: str | None, version: str
    ) -> AsyncIterator[tuple[str, Json]]:
        del namespace
        self.versions.append(version)
        queue = self.events.setdefault(kind.kind, asyncio.Queue())
        while True:
            event = await queue.get()
            if event is None:
                return
            if isinstance(event, Exception):
                raise event
            yield event

    def tell(self, kind: str, *events: Any) -> None:
        queue = self.events.setdefault(kind, asyncio.Queue())
        for event in events:
            queue.put_nowait(event)


class Watching:
    """A store that is kept."""

    def __init__(self, api: There, namespaces: list[str] | None = None) -> None:
        self.store = ResourceIndex()
        connection: Any = api
        self.declared = Reflector(connection, namespaces, self.store)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.declared.watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def names(self) -> set[str]:
        return {key.name for key in (*self.store.streams, *self.store.groups)}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentstream_operator.serve.reflector._RETRY", 0.01)


def a_group(name: str, version: int = 1, **more: Any) -> Json:
    return a_resource("ConsumerGroup", name, version, **more)


async def test_what_is_listed_and_told_of_is_known() -> None:
    api = There(a_resource(), a_group("coder"))
    async with Watching(api) as watching:
        assert not watching.declared.complete
        await until(lambda: watching.declared.complete)
        assert watching.names == {"tasks", "coder"}
        api.tell(
            "ConsumerGroup",
            ("ADDED", a_group("new", 101)),
            ("DELETED", a_group("coder", 102)),
            ("BOOKMARK", {"metadata": {"resourceVersion": "150"}}),
            None,
        )
        await until(lambda: watching.names == {"tasks", "new"})
        # a watch that ends is taken up where it was
        await until(lambda: "150" in api.versions)
        assert len(api.listed) == 2


async def test_a_status_changes_nothing_and_a_spec_does() -> None:
    api = There(a_resource(), a_group("coder"))
    async with Watching(api) as watching:
        await until(lambda: watching.declared.complete)
        before = watching.store.changes
        changed = a_group("coder", 102, generation=2, spec={"streamRef": {"name": "tasks"}, "group": "g"})
        api.tell("ConsumerGroup", ("MODIFIED", a_group("coder", 101)), ("MODIFIED", changed))
        await until(lambda: watching.store.changes == before + 1)
        (group,) = watching.store.groups.values()
        assert group.group_name == "g"


@pytest.mark.parametrize(
    "failure", [ClusterUnavailable("410: too old"), ApiError(403, "no")], ids=["too old", "refused"]
)
async def test_after_a_watch_that_broke_everything_is_listed_again(failure: Exception) -> None:
    api = There(a_resource(), a_group("coder"), a_group("doomed"))
    async with Watching(api) as watching:
        await until(lambda: watching.declared.complete)
        del api.objects["ConsumerGroup", "team", "doomed"]
        api.put(a_group("born"))
        api.fails = ClusterUnavailable("away")
        api.tell("ConsumerGroup", failure)
        await until(lambda: watching.names == {"tasks", "coder", "born"})
        # what was known stays known meanwhile
        assert watching.declared.complete


async def test_each_namespace_is_listed_and_none_forgets_what_is_anothers() -> None:
    api = There(a_group("coder"), a_resource("ConsumerGroup", "there", namespace="other"))
    async with Watching(api, ["team", "other"]) as watching:
        await until(lambda: watching.declared.complete)
        assert watching.names == {"coder", "there"}
        assert set(api.listed) == {
            (kind, ns) for kind in ("AgentStream", "ConsumerGroup") for ns in ("team", "other")
        }
        api.tell("ConsumerGroup", ClusterUnavailable("away"))
        await until(lambda: len(api.listed) == 5)
        assert watching.names == {"coder", "there"}


async def test_one_that_cannot_be_read_stays_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    api = There(a_resource(), a_group("coder"))
    async with Watching(api) as watching:
        await until(lambda: watching.declared.complete)
        api.tell("ConsumerGroup", ("MODIFIED", a_group("coder", 101, generation=2, spec={"zzz": 1})))
        await until(lambda: "is invalid, keeping" in caplog.text)
        assert watching.names == {"tasks", "coder"}
