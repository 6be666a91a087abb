"""Builders of resources for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import FORCE_DELETE_ANNOTATION, PAUSED_ANNOTATION
from agentstream_operator.resources.streamreplay import StreamReplay

BORN = datetime(2026, 1, 1, tzinfo=UTC)
KEY = "{team.tasks}"
"""The key of the stream that `a_stream` declares."""

ROUTES = "agentstream:agentstream:team:routes"
"""The routes of its namespace."""

PAUSED = {PAUSED_ANNOTATION: "true"}
FORCED = {**PAUSED, FORCE_DELETE_ANNOTATION: "true"}
TEMPLATE = {"spec": {"containers": [{"name": "agent", "command": ["agent"]}]}}


def _metadata(
    name: str, namespace: str, age: int, annotations: dict[str, str], **more: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": namespace,
        "uid": f"{namespace}-{name}",
        "generation": 1,
        "creationTimestamp": BORN - timedelta(seconds=age),
        "annotations": annotations,
        **more,
    }


def a_stream(
    name: str = "tasks",
    namespace: str = "team",
    *,
    age: int = 0,
    annotations: dict[str, str] | None = None,
    meta: dict[str, Any] | None = None,
    **spec: Any,
) -> AgentStream:
    """An AgentStream; `age` in seconds decides conflicts, `spec` has the fields as in a manifest."""
    return AgentStream.model_validate(
        {"metadata": _metadata(name, namespace, age, annotations or {}, **(meta or {})), "spec": spec}
    )


def a_group(
    name: str = "coder",
    namespace: str = "team",
    *,
    stream: str = "tasks",
    age: int = 0,
    annotations: dict[str, str] | None = None,
    meta: dict[str, Any] | None = None,
    **spec: Any,
) -> ConsumerGroup:
    """A ConsumerGroup; `age` in seconds decides conflicts, `spec` has the fields as in a manifest."""
    return ConsumerGroup.model_validate(
        {
            "metadata": _metadata(name, namespace, age, annotations or {}, **(meta or {})),
            "spec": {"streamRef": {"name": stream}, **spec},
        }
    )


def a_replay(
    name: str = "again",
    namespace: str = "team",
    *,
    group: str = "coder",
    age: int = 0,
    annotations: dict[str, str] | None = None,
    meta: dict[str, Any] | None = None,
    **spec: Any,
) -> StreamReplay:
    """A StreamReplay of the group's dead letters, unless `spec` says otherwise."""
    return StreamReplay.model_validate(
        {
            "metadata": _metadata(name, namespace, age, annotations or {}, **(meta or {})),
            "spec": {"groupRef": {"name": group}, "from": {"source": "DeadLetters"}, **spec},
        }
    )
