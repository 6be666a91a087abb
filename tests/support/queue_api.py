"""The HTTP API without a cluster and without a server: callers, their rights, and replays in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.requests import HTTPConnection

from agentstream_operator.queue_api.browser import MessagesWanted
from agentstream_operator.queue_api.documents import (
    ConsumersAnswer,
    ConversationAnswer,
    GroupNumbers,
    LagAnswer,
    LetterGroupsAnswer,
    LettersAnswer,
    MessageAnswer,
    MessagesAnswer,
    PreviewAnswer,
    ServerNumbers,
    StreamNumbers,
)
from agentstream_operator.queue_api.ports import Caller, ReplayRefused, Unauthenticated, Verb
from agentstream_operator.queue_api.sources import Sources
from agentstream_operator.reconcile.state.index import ResourceIndex
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey
from agentstream_operator.resources.streamreplay import StreamReplay, StreamReplaySpec

JANE = {"authorization": "Bearer jane"}


class TokensAreNames:
    """Takes the token of a request for the name of who sends it."""

    async def authenticate(self, request: HTTPConnection) -> Caller:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind != "Bearer" or not token:
            raise Unauthenticated("there is no token")
        return Caller(token)


class NoLags:
    """Knows nothing of what is asked for, as if the server did not answer."""

    async def lag(self, streams: Sequence[AgentStream], groups: Sequence[ConsumerGroup]) -> LagAnswer:
        return LagAnswer(
            at=datetime.now(UTC),
            server=ServerNumbers(reachable=False),
            streams=tuple(
                StreamNumbers(
                    namespace=stream.metadata.namespace,
                    name=stream.metadata.name,
                    key=stream.stream_key,
                    known=False,
                    ready=False,
                    reason="BackendUnavailable",
                )
                for stream in streams
            ),
            groups=tuple(
                GroupNumbers(
                    namespace=group.metadata.namespace,
                    name=group.metadata.name,
                    stream=group.spec.stream_ref.name,
                    known=False,
                    ready=False,
                    reason="BackendUnavailable",
                )
                for group in groups
            ),
        )


class NoPreviews:
    """Tries nothing out, as nothing is tried out."""

    async def preview(self, group: ConsumerGroup, spec: StreamReplaySpec) -> PreviewAnswer:
        raise AssertionError(f"{group.key}: {spec}")


class NothingThere:
    """Finds nothing in streams and dead letters."""

    async def messages(self, stream: AgentStream, wish: MessagesWanted) -> MessagesAnswer:
        del wish
        where = {"namespace": stream.metadata.namespace, "stream": stream.metadata.name}
        return MessagesAnswer(**where, scanned=0, more=False, messages=())

    async def letters(self, group: ConsumerGroup, limit: int, cursor: str | None) -> LettersAnswer:
        del limit, cursor
        where = {"namespace": group.metadata.namespace, "group": group.metadata.name}
        return LettersAnswer(**where, scanned=0, more=False, letters=())

    async def letter_groups(self, group: ConsumerGroup, cursor: str | None) -> LetterGroupsAnswer:
        del cursor
        where = {"namespace": group.metadata.namespace, "group": group.metadata.name}
        return LetterGroupsAnswer(**where, scanned=0, more=False, groups=())

    async def message(self, stream: AgentStream, entry_id: str) -> MessageAnswer:
        where = {"namespace": stream.metadata.namespace, "stream": stream.metadata.name}
        return MessageAnswer(**where, entry=entry_id, size=0, groups=())

    async def conversation(
        self, namespace: str, streams: Sequence[AgentStream], correlation: str, cursor: str | None
    ) -> ConversationAnswer:
        del streams, cursor
        where = {"namespace": namespace, "correlation_id": correlation}
        return ConversationAnswer(**where, messages=(), streams=(), more=False)

    async def consumers(self, group: ConsumerGroup) -> ConsumersAnswer:
        where = {"namespace": group.metadata.namespace, "group": group.metadata.name}
        return ConsumersAnswer(**where, more=False, consumers=())


def nothing_there(index: ResourceIndex, **others: Any) -> Sources:
    """Sources that know what is declared, and nothing else but what `others` read."""
    there = NothingThere()
    found: dict[str, Any] = {"lags": NoLags(), "previews": NoPreviews(), "browser": there, "finder": there}
    found |= {"conversations": there, "consumers": there}
    return Sources(index, **(found | others))


@dataclass
class Granted:
    """Allows what is granted: to a caller, a verb and a resource in a namespace; `*` is any of them."""

    rules: Sequence[tuple[str, str, str, str]] = (("*", "*", "*", "*"),)
    asked: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    async def allow(self, caller: Caller, verb: Verb, resource: str, namespace: str, name: str) -> bool:
        self.asked.append((caller.name, verb, resource, namespace, name))
        wanted = (caller.name, verb, resource, namespace)
        return any(
            all(has in {"*", wants} for has, wants in zip(rule, wanted, strict=True)) for rule in self.rules
        )


@dataclass
class MemoryReplays:
    """Keeps replays in memory."""

    kept: dict[ResourceKey, StreamReplay] = field(default_factory=dict)
    callers: list[str] = field(default_factory=list)
    whys: list[str | None] = field(default_factory=list)

    async def create(self, caller: Caller, replay: StreamReplay) -> StreamReplay | None:
        self.callers.append(caller.name)
        if replay.key in self.kept:
            return None
        born = datetime(2026, 1, 1, minute=len(self.kept), tzinfo=UTC)
        more = {"uid": f"uid-{len(self.kept)}", "generation": 1, "creation_timestamp": born}
        metadata = replay.metadata.model_copy(update=more)
        created = replay.model_copy(update={"metadata": metadata})
        self.kept[replay.key] = created
        return created

    async def get(self, key: ResourceKey) -> StreamReplay | None:
        return self.kept.get(key)

    async def list(self, namespace: str) -> Sequence[StreamReplay]:
        return [replay for key, replay in self.kept.items() if namespace in {"", key.namespace}]

    async def patch(
        self, caller: Caller, key: ResourceKey, spec: Mapping[str, Any], why: str | None = None
    ) -> StreamReplay | None:
        self.callers.append(caller.name)
        self.whys.append(why)
        if key not in self.kept:
            return None
        if spec.get("rate") == 13:
            raise ReplayRefused(422, "a policy forbids unlucky numbers")
        fields = {**self.kept[key].spec.as_manifest(), **spec}
        parsed = StreamReplaySpec.model_validate({k: v for k, v in fields.items() if v is not None})
        self.kept[key] = self.kept[key].model_copy(update={"spec": parsed})
        return self.kept[key]

    async def delete(self, caller: Caller, key: ResourceKey, why: str | None = None) -> bool:
        self.callers.append(caller.name)
        self.whys.append(why)
        return self.kept.pop(key, None) is not None
