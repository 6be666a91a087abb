"""Writes events of resources, which `kubectl describe` shows."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import EVENTS
from agentstream_operator.cluster.port import ClusterUnavailable, Event
from agentstream_operator.resources.meta import API_VERSION
from agentstream_operator.resources.status import ConditionReason

_log = logging.getLogger(__name__)
_MESSAGE = 1024

_LOG_ONLY = frozenset({ConditionReason.STREAM_CREATED, ConditionReason.GROUP_CREATED})
"""Reasons that every new resource has and its status shows: they are logged without an event."""


@dataclass(frozen=True, slots=True)
class EventWriter:
    """Logs events and writes them; `component` and `identity` report them: a program, and its pod."""

    api: Api
    component: str
    identity: str

    async def emit(self, event: Event) -> None:
        """Logs an event and writes it, unless it is for the log only; a failure to write is only logged."""
        level = logging.WARNING if event.warning else logging.INFO
        _log.log(level, "%s: %s: %s", event.about, event.reason, event.message)
        if event.reason in _LOG_ONLY:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        about = event.about
        body = {
            "metadata": {"name": f"{about.name}.{uuid.uuid4().hex[:16]}", "namespace": about.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": about.kind,
                "namespace": about.namespace,
                "name": about.name,
                "uid": event.uid,
            },
            "reason": event.reason,
            "message": event.message[:_MESSAGE],
            "type": "Warning" if event.warning else "Normal",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": self.component},
            "reportingComponent": self.component,
            "reportingInstance": self.identity,
        }
        try:
            await self.api.create(EVENTS, about.namespace, body)
        except (ApiError, ClusterUnavailable) as error:
            _log.info("could not write the event: %s", error)
