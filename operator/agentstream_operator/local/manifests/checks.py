"""Checks the manifests of one set against each other: what the operator would only report in conditions."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from agentstream_operator.local.manifests.loader import Manifests
from agentstream_operator.plan.conflicts import claim_of
from agentstream_operator.plan.streams import invalid_contract
from agentstream_operator.reconcile.state.index import group_of
from agentstream_operator.resources.agentstream import AgentStream
from agentstream_operator.resources.consumergroup import ConsumerGroup
from agentstream_operator.resources.meta import ResourceKey

_ADD = "add it or give its file"


@dataclass(frozen=True, slots=True)
class Findings:
    """Lines about a set of manifests, each beginning with file and line.

    Attributes:
        mistakes: what the operator cannot bring into effect.
        warnings: what is allowed, and seldom meant.
    """

    mistakes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check(manifests: Manifests) -> Findings:
    """Checks manifests that were loaded together; their own mistakes come first."""
    findings = Findings([*manifests.problems])
    if not manifests.declared and not manifests.replays and not manifests.problems:
        findings.mistakes.append("no AgentStream and no ConsumerGroup is declared")
    claims: dict[Hashable, ResourceKey] = {}
    for key, resource in manifests.declared.items():
        for path, text in _mistakes(resource, manifests):
            findings.mistakes.append(f"{manifests.at(key, path)}: {key}: {path}: {text}")
        for path, what, claim in _claims(resource):
            first = claims.setdefault(claim, key)
            if first != key:
                text = f"{what} is already used by {first} at {manifests.lines[first]}"
                findings.mistakes.append(f"{manifests.at(key, path)}: {key}: {path}: {text}")
        if isinstance(resource, AgentStream) and not resource.spec.producers:
            text = "spec.producers: is empty, so that no agent may send to the stream"
            findings.warnings.append(f"{manifests.at(key, 'spec.producers')}: {key}: {text}")
    for key, replay in manifests.replays.items():
        if group_of(replay) not in manifests.declared:
            text = f"no ConsumerGroup {key.namespace}/{group_of(replay).name} is declared; {_ADD}"
            path = "spec.groupRef.name"
            findings.mistakes.append(f"{manifests.at(key, path)}: {key}: {path}: {text}")
    return findings


def _mistakes(resource: AgentStream | ConsumerGroup, manifests: Manifests) -> Iterator[tuple[str, str]]:
    """Yields the path and the text of what is wrong with a resource beside these others."""
    if isinstance(resource, ConsumerGroup):
        name = resource.spec.stream_ref.name
        if ResourceKey("AgentStream", resource.key.namespace, name) not in manifests.declared:
            text = f"no AgentStream {resource.key.namespace}/{name} is declared; {_ADD}"
            yield "spec.streamRef.name", text
    elif (invalid := invalid_contract(resource)) is not None:
        path, _, text = invalid.message.partition(": ")
        yield path, text


def _claims(resource: AgentStream | ConsumerGroup) -> Iterator[tuple[str, str, Hashable]]:
    """Yields what only one resource may use: the path of the field, its value in words, and its identity."""
    if isinstance(resource, AgentStream):
        yield "spec.key", f"the key {resource.stream_key}", claim_of(resource)
        return
    namespace, spec = resource.key.namespace, resource.spec
    group, stream = resource.group_name, spec.stream_ref.name
    yield "spec.group", f"the group {group} of the stream {stream}", ("group", namespace, stream, group)
    if spec.deployment_ref is not None:
        name = spec.deployment_ref.name
        yield "spec.deploymentRef.name", f"the Deployment {name}", ("deployment", namespace, name)
