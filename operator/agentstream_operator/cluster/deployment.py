"""Builds the Deployment of a group's consumers: its template, with defaults and what the SDK needs."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Final

from agentstream_operator.cluster.labels import GROUP_LABEL, consumer_labels, consumer_metadata, secret_name
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import GROUP

BINDING = "/var/run/secrets/agentstream.dev/binding"
"""Where the agent's Secret is mounted."""

HEALTH_PORT = 8099
"""Where the SDK answers the probes, and scrapes."""

HEALTH_PORT_NAME: Final = "agentstream"
"""The name of that port, by which a PodMonitor finds it."""

REVISION: Final = f"{GROUP}/revision"
"""Annotation with the digest of what was applied."""

_VOLUME = "agentstream-binding"
_GRACE = 30
_AFTER_LEASE = 5


def deployment(group: ConsumerGroup, replicas: int) -> dict[str, Any]:
    """Builds the Deployment of a group with a template, whose fields are kept.

    By default pods meet the `restricted` pod security standard, and get no API token.
    """
    body: dict[str, Any] = {
        "metadata": consumer_metadata(group),
        "spec": {"selector": {"matchLabels": {GROUP_LABEL: group.metadata.name}}, "template": _pod(group)},
    }
    body["metadata"]["annotations"] = {REVISION: _digest(body)}
    body["spec"]["replicas"] = replicas
    return body


def revision(body: dict[str, Any]) -> str:
    """Returns the digest of a Deployment's body without its replicas."""
    return str(body["metadata"]["annotations"][REVISION])


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def _pod(group: ConsumerGroup) -> dict[str, Any]:
    template = group.spec.template
    if template is None:
        raise ValueError(f"{group.key} has no template")
    given = template.as_manifest()
    metadata, spec = given.get("metadata") or {}, given["spec"]
    agent, *others = spec["containers"]
    lease = math.ceil(group.spec.delivery.lease.seconds)
    grace = spec.get("terminationGracePeriodSeconds", _GRACE)
    if isinstance(spec.get("initContainers"), list):
        spec["initContainers"] = [_secured(container) for container in spec["initContainers"]]
    return {
        "metadata": {**metadata, "labels": {**(metadata.get("labels") or {}), **consumer_labels(group)}},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            **spec,
            "securityContext": _completed(
                spec.get("securityContext"),
                {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            ),
            # on SIGTERM a consumer hands back its messages; if killed, they wait for the lease
            "terminationGracePeriodSeconds": (
                max(grace, lease + _AFTER_LEASE) if isinstance(grace, int) else grace
            ),
            "containers": [_secured(_agent(agent)), *map(_secured, others)],
            "volumes": _followed(
                spec.get("volumes"),
                {"name": _VOLUME, "secret": {"secretName": secret_name(group.agent_name)}},
            ),
        },
    }


def _agent(container: dict[str, Any]) -> dict[str, Any]:
    """Adds the binding, the pod's name, probes and their port to the agent's container."""
    given = container.get("env") or []
    named = {variable["name"] for variable in given}
    ours = (
        {"name": "AGENTSTREAM_BINDING", "value": BINDING},
        {"name": "AGENTSTREAM_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "AGENTSTREAM_HEALTH_PORT", "value": str(HEALTH_PORT)},
    )
    answers = (
        {} if "AGENTSTREAM_HEALTH_PORT" in named else {**_probes(container), **container, **_port(container)}
    )
    return {
        **(answers or container),
        "env": [*given, *(variable for variable in ours if variable["name"] not in named)],
        "volumeMounts": _followed(
            container.get("volumeMounts"), {"name": _VOLUME, "mountPath": BINDING, "readOnly": True}
        ),
    }


def _port(container: dict[str, Any]) -> dict[str, Any]:
    """Returns the container's ports, with the one where the SDK answers unless the template has it."""
    given = container.get("ports")
    ours = {"name": HEALTH_PORT_NAME, "containerPort": HEALTH_PORT, "protocol": "TCP"}
    taken = (
        isinstance(port, dict)
        and (port.get("name") == HEALTH_PORT_NAME or port.get("containerPort") == HEALTH_PORT)
        for port in (given if isinstance(given, list) else ())
    )
    return {} if any(taken) else {"ports": _followed(given, ours)}


def _probes(container: dict[str, Any]) -> dict[str, Any]:
    """Returns probes that the SDK answers; none if the template has any.

    Handlers may block for a while: only a container that is stuck for minutes is restarted.
    """
    if any(f"{kind}Probe" in container for kind in ("startup", "readiness", "liveness")):
        return {}

    def get(path: str, **numbers: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": HEALTH_PORT}, "timeoutSeconds": 5, **numbers}

    return {
        "startupProbe": get("/livez", periodSeconds=1, failureThreshold=600),
        "readinessProbe": get("/readyz", periodSeconds=5, failureThreshold=3),
        "livenessProbe": get("/livez", periodSeconds=30, failureThreshold=3),
    }


def _secured(container: Any) -> Any:
    defaults = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    if not isinstance(container, dict):
        return container
    return {**container, "securityContext": _completed(container.get("securityContext"), defaults)}


def _completed(given: Any, defaults: dict[str, Any]) -> Any:
    """Adds defaults to a mapping of the template; invalid values are left to the API server."""
    if given is None:
        return defaults
    return {**defaults, **given} if isinstance(given, dict) else given


def _followed(given: Any, last: dict[str, Any]) -> Any:
    """Appends an item to a list of the template; invalid values are left to the API server."""
    if given is None:
        return [last]
    return [*given, last] if isinstance(given, list) else given
