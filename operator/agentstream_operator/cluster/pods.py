"""Consumers' pods: their state, and their deletion costs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import PODS
from agentstream_operator.plan.observed import Gone
from agentstream_operator.resources.meta import ResourceKey

Json = Mapping[str, Any]

COST: Final = "controller.kubernetes.io/pod-deletion-cost"
"""Annotation by which a ReplicaSet chooses: https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/"""

_LOOPING = "CrashLoopBackOff"
_STUCK = frozenset(
    {
        _LOOPING,
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
_MESSAGE = 300
_LONGEST_COST = 32
_NOT_FOUND = 404
_SECOND = 1000


@dataclass(frozen=True, slots=True)
class PodSeen:
    """A consumer's pod."""

    version: int
    group: ResourceKey
    over: bool = False  # no process of it will run again
    down: bool = False  # no process runs
    stuck: str | None = None  # why it does not start
    since: int | None = None  # processes started before that time (ms since 1970) have ended
    again: bool = False  # there were any
    leaving: bool = False  # it is being deleted
    cost: str | None = None

    def tells(self, known: PodSeen | None) -> bool:
        """Returns whether the state of the group's consumers changed."""
        state = (self.group, self.over, self.down, self.stuck)
        return known is None or (known.group, known.over, known.down, known.stuck) != state

    def ended(self, name: str, known: PodSeen | None) -> Gone | None:
        """Returns the processes that ended since the pod was seen last; of a new pod all that ever ran."""
        if self.over:
            return Gone(name) if known is None or not known.over else None
        if self.down and (known is None or not known.down):
            return Gone(name, self.since)
        if self.since is None:
            return None
        # it restarted: before it was first seen, between two events, or after its end was reported
        before = known.since if known is not None else None
        return Gone(name, self.since) if (self.again if before is None else self.since > before) else None


def read_pod(found: Json, group: ResourceKey) -> PodSeen:
    """Reads the state of a pod."""
    metadata, status = found["metadata"], found.get("status") or {}
    seen = PodSeen(
        version=int(metadata["resourceVersion"]),
        group=group,
        leaving="deletionTimestamp" in metadata,
        cost=(metadata.get("annotations") or {}).get(COST, "")[:_LONGEST_COST] or None,
    )
    if status.get("phase") in ("Succeeded", "Failed"):
        return replace(seen, over=True, down=True)
    states = status.get("containerStatuses") or ()
    if not states:
        return seen
    agent = next((s for s in states if s.get("name") == _agent_container(found)), states[0])
    inits = status.get("initContainerStatuses") or ()
    return replace(seen, stuck=_stuck(metadata["name"], (*inits, agent)), **_process(agent))


def _process(container: Json) -> dict[str, Any]:
    """Reads whether a container's process runs, and the time before which earlier ones ended."""
    state, last = container.get("state") or {}, (container.get("lastState") or {}).get("terminated")
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or last
    looping = waiting.get("reason") == _LOOPING
    if "terminated" in state or looping or (waiting and ended):
        since = _time((ended or {}).get("finishedAt"))
        if looping and since is not None:
            # times are whole seconds: a process started in the same one is the next, unless delayed
            since += _SECOND
        return {"down": True, "since": since}
    return {"since": _time((state.get("running") or {}).get("startedAt")), "again": last is not None}


async def set_deletion_costs(
    api: Api, namespace: str, pods: Mapping[str, PodSeen], held: Mapping[str, int]
) -> None:
    """Sets the deletion costs of pods by the number of messages that each holds; writes changes only."""
    costs = {name: deletion_cost(held.get(name, 0)) for name, pod in pods.items() if not pod.leaving}
    changed = {name: cost for name, cost in costs.items() if (pods[name].cost or "0") != cost}
    await asyncio.gather(*(_set_cost(api, namespace, name, cost) for name, cost in changed.items()))


def has_deletion_cost(template: Json) -> bool:
    """Returns whether a pod template sets the deletion cost."""
    return COST in ((template.get("metadata") or {}).get("annotations") or {})


def deletion_cost(held: int) -> str:
    """Returns the deletion cost for a number of messages: 0 for none, one more for twice as many."""
    return str(held.bit_length())


async def _set_cost(api: Api, namespace: str, name: str, cost: str) -> None:
    try:
        await api.merge(PODS, namespace, name, {"metadata": {"annotations": {COST: cost}}})
    except ApiError as error:
        # the pod was deleted meanwhile
        if error.code != _NOT_FOUND:
            raise


def _stuck(name: str, states: Iterable[Json]) -> str | None:
    """Returns why the first of a pod's containers that does not start does not."""
    for found in states:
        waiting = (found.get("state") or {}).get("waiting") or {}
        reason, why = waiting.get("reason"), waiting.get("message")
        if reason == _LOOPING:
            # the end of the container says more than the back-off
            why = _end((found.get("lastState") or {}).get("terminated") or {}) or why
        if reason in _STUCK:
            return ": ".join(filter(None, (name, reason, why)))[:_MESSAGE]
    return None


def _end(last: Json) -> str | None:
    """Describes how a container ended."""
    if "exitCode" not in last:
        return None
    reason, words = last.get("reason", "Error"), str(last.get("message", "")).strip().splitlines()
    more = reason if reason not in ("Error", "Completed") else words[-1] if words else ""
    return f"exit code {last['exitCode']}" + (f" ({more})" if more else "")


def _agent_container(pod: Json) -> str | None:
    containers = (pod.get("spec") or {}).get("containers") or ()
    return containers[0]["name"] if containers else None


def _time(text: str | None) -> int | None:
    """Converts a time to ms since 1970."""
    return round(datetime.fromisoformat(text).timestamp() * 1000) if text else None
