"""Every bound of the CRDs' schemas on a real API server: what just keeps it is taken, what breaks it not."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.submitting import crds, create, refusals, refused_changes, schema
from support.apiserver import ApiServer
from unit.resources.manifests import a_group, a_replay, a_stream, a_template

Path = tuple[str | int, ...]

CONDITION = {
    "type": "Ready",
    "status": "True",
    "reason": "Ready",
    "message": "all is well",
    "observedGeneration": 1,
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}
STREAM = a_stream(
    key="tasks",
    retention={"minAge": "1h", "maxLength": 1, "maxBytes": 1_048_576, "onFull": "TrimOldest"},
    producers=["planner"],
    broadcast=True,
    maxMessageBytes=1_048_576,
    signing={"policy": "Require", "rotation": 1},
    contracts=[{"type": "event", "version": 1, "schema": {"type": "object"}}],
    deletionPolicy="Delete",
    managementPolicy="Managed",
) | {
    "status": {
        "observedGeneration": 1,
        "conditions": [CONDITION],
        "key": "tasks",
        "length": 1,
        "groups": 1,
        "oldestEntry": "1-0",
    }
}
GROUP = a_group(
    group="coders",
    agent="ada",
    startFrom="End",
    deliver="All",
    delivery={
        "lease": "10s",
        "deadline": "1h",
        "maxDeliveries": 5,
        "backoff": {"initial": "1s", "factor": 2, "max": "1h"},
    },
    deadLetter={"enabled": True, "minAge": "1h", "maxLength": 1},
    template={
        "metadata": {"labels": {"a": "b"}, "annotations": {"a": "b"}},
        **a_template(command=["a"], args=["b"], env=[{"name": "A", "value": "b"}], workingDir="/a"),
    },
    autoscaling={
        "mode": "HPA",
        "minReplicas": 0,
        "maxReplicas": 1_000,
        "targetBacklog": 1,
        "scaleDownAfter": "1s",
    },
    suspend=True,
    deletionPolicy="Delete",
) | {
    "status": {
        "observedGeneration": 1,
        "conditions": [CONDITION],
        "group": "coders",
        "replicas": 1,
        "desiredReplicas": 1,
        "selector": "a=b",
        "backlog": 1,
        "pending": 1,
        "deadLetters": 1,
        "oldest": "2026-01-01T00:00:00Z",
    }
}
REPLAY = a_replay(
    **{"from": {"source": "DeadLetters", "since": "0-0"}},
    select={
        "types": ["event"],
        "senders": ["planner"],
        "correlation": "a",
        "ids": ["1-0"],
    },
    limit=1,
    rate=1,
    window=1,
    expired="Skip",
    dryRun=True,
    suspend=True,
    reason="INC-4711",
    ttlSecondsAfterFinished=0,
) | {
    "status": {
        "observedGeneration": 1,
        "conditions": [CONDITION],
        "phase": "Running",
        "matched": 1,
        "moved": 1,
        "handled": 1,
        "dead": 1,
        "skipped": {"a": 1},
        "cursor": "1-0",
        "last": "5-1",
        "startedAt": "2026-01-01T00:00:00Z",
        "finishedAt": "2026-01-01T00:00:00Z",
    }
}
COMPLETE = {
    "AgentStream": (STREAM,),
    "ConsumerGroup": (
        GROUP,
        a_group(template=a_template(), replicas=1),
        a_group(template=a_template(), autoscaling={"targetAge": "1s"}),
        a_group(deploymentRef={"name": "coder"}, replicas=1),
    ),
    "StreamReplay": (
        REPLAY,
        a_replay(
            **{"from": {"source": "DeadLetters", "until": "0-0"}},
            select={"types": ["event"], "reasons": ["MaxDeliveries"]},
            action="Redeliver",
        ),
    ),
}
"""Manifests that have every field between them."""


@dataclass(frozen=True)
class Texts:
    """Texts for a pattern.

    Attributes:
        taken: the shortest, the longest and whatever else a pattern must let through.
        longer: one that is like the longest, and longer.
        refused: what is not too short or too long, and does not match.
    """

    taken: tuple[str, ...]
    longer: str
    refused: tuple[str, ...]


UUID = "7ec428e0-0c1d-4f5a-9b57-0123456789ab"
TEXTS = {
    "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$": Texts(
        ("a", "0-a", "a" * 63), "a" * 64, ("A", "-a", "a-", "a.b", "a_b", "a\n", "ä")
    ),
    "^([0-9]+(ms|s|m|h))+$": Texts(
        ("2s", "2s".rjust(32, "0"), "59m59s999ms"), "2s".rjust(33, "0"), ("12", "1.5h", "-1s", "1d", "1s\n")
    ),
    "^[A-Za-z0-9._:{}-]{1,200}$": Texts(
        ("a", "a" * 200, "{team-a.tasks}", "a:B_c.d-1"), "a" * 201, ("a b", "ä", "a/b", "a\n")
    ),
    schema("ConsumerGroup")["properties"]["spec"]["properties"]["startFrom"]["pattern"]: Texts(
        ("0-0", f"{'9' * 19}-{'9' * 19}", "Beginning", "End", "2026-11-22T10:00:00.123456789-08:00"),
        "0-0".rjust(65, "0"),
        ("beginning", "1-", "1", "2026-11-22", "2026-13-22T10:00:00Z", "2026-11-22T24:00:00Z", "End\n"),
    ),
    schema("StreamReplay")["properties"]["spec"]["properties"]["from"]["properties"]["since"][
        "pattern"
    ]: Texts(
        ("0-0", f"{'9' * 19}-{'9' * 19}", "2026-11-22T10:00:00.123456789-08:00"),
        "0-0".rjust(65, "0"),
        ("01-0", "1-00", f"1{'0' * 19}-0", "1-", "1", "End", "2026-11-22", "2026-11-22T24:00:00Z", "0-0\n"),
    ),
    schema("StreamReplay")["properties"]["spec"]["properties"]["select"]["properties"]["ids"]["items"][
        "pattern"
    ]: Texts(
        ("0-0", f"{'9' * 19}-{'9' * 19}", UUID),
        "0-0".rjust(65, "0"),
        ("01-0", UUID[:8], UUID.upper(), "*", f"{UUID}\n"),
    ),
    "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$": Texts(
        ("A", "A" * 128, "a_,:0"), "A" * 129, ("0", "a b", "a:", "a-b")
    ),
}
OTHER_TYPE: Mapping[str, Any] = {
    "object": [],
    "array": {},
    "string": 1,
    "integer": "1",
    "number": "1",
    "boolean": "true",
}


@dataclass(frozen=True)
class Bound:
    """A bound of one node of a schema.

    Attributes:
        name: the keyword of the schema.
        taken: values that just keep it.
        refused: values that break it.
        message: what the server says then.
    """

    name: str
    taken: tuple[Any, ...]
    refused: tuple[Any, ...]
    message: str


def bounds(node: Mapping[str, Any], value: Any) -> Iterator[Bound]:
    """The bounds of a node; `value` is one that it takes."""
    kind: str = node["type"]
    shown = node.get("format", kind)
    yield Bound("type", (value,), (OTHER_TYPE[kind],), f"must be of type {shown}")
    yield from {
        "object": _of_objects,
        "array": _of_arrays,
        "string": _of_texts,
        "integer": _of_numbers,
        "number": _of_numbers,
        "boolean": lambda _node, _value: (),
    }[kind](node, value)


def _of_objects(node: Mapping[str, Any], value: dict[str, Any]) -> Iterator[Bound]:
    for name in node.get("required", ()):
        yield Bound("required", (), ({k: v for k, v in value.items() if k != name},), f"{name}: Required")
    if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        yield Bound("properties", (), ({**value, "extra": 1},), 'extra"')
    if "maxProperties" in node:
        most = node["maxProperties"]
        fill = next(iter(value.values()))
        yield Bound(
            "maxProperties",
            ({f"k{n}": fill for n in range(most)},),
            ({f"k{n}": fill for n in range(most + 1)},),
            f"must have at most {most} items",
        )


def _of_arrays(node: Mapping[str, Any], value: list[Any]) -> Iterator[Bound]:
    kind = node.get("x-kubernetes-list-type", "atomic")

    def items(count: int) -> list[Any]:
        if kind == "set":
            return [f"a{n}" for n in range(count)]
        if kind == "map":
            (key,) = node["x-kubernetes-list-map-keys"]
            return [{**value[0], key: f"T{n}"} for n in range(count)]
        if isinstance(value[0], dict) and "version" in value[0]:
            return [{**value[0], "version": n} for n in range(1, count + 1)]
        return [value[0]] * count

    least, most = node.get("minItems", 0), node["maxItems"]
    yield Bound("maxItems", (items(most),), (items(most + 1),), f"must have at most {most} items")
    if least:
        yield Bound("minItems", (items(least),), (items(least - 1),), f"should have at least {least} items")
    if kind != "atomic":
        yield Bound("list-type", (items(2),), ([value[0], value[0]],), "Duplicate value")


def _of_texts(node: Mapping[str, Any], value: str) -> Iterator[Bound]:
    if "enum" in node:
        yield Bound("enum", tuple(node["enum"]), ("Other", value.upper() + "_"), "Unsupported value")
        return
    least, most = node.get("minLength", 0), node["maxLength"]
    texts = (
        TEXTS[node["pattern"]]
        if "pattern" in node
        else Texts(("a" * least, "a" * most), "a" * (most + 1), ())
    )
    if node.get("format") == "date-time":
        yield Bound("format", ("2026-11-22T10:00:00.5+01:00",), ("yesterday",), "must be of type date-time")
    else:
        yield Bound("maxLength", texts.taken, (texts.longer,), f"may not be more than {most} bytes")
    if least:
        yield Bound("minLength", (), ("1"[: least - 1],), f"should be at least {least} chars long")
    if "pattern" in node:
        yield Bound("pattern", (), texts.refused, "should match")


def _of_numbers(node: Mapping[str, Any], value: float) -> Iterator[Bound]:
    if "minimum" in node:
        least = node["minimum"]
        yield Bound("minimum", (least,), (least - 1,), f"should be greater than or equal to {least}")
    if "maximum" in node:
        most = node["maximum"]
        yield Bound("maximum", (most,), (most + 1,), f"should be less than or equal to {most}")


def places(node: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Every node of a schema with its place in the complete manifests, as far as a CRD decides about it."""
    if path and path[0] in {"apiVersion", "kind"}:
        return
    if path != ("metadata",):
        yield path, node
    for name, child in node.get("properties", {}).items():
        yield from places(child, (*path, name))
    if "items" in node:
        yield from places(node["items"], (*path, 0))
    if "additionalProperties" in node:
        yield from places(node["additionalProperties"], (*path, "a"))


def at(value: Any, path: Path) -> Any:
    """The part of a manifest there."""
    for step in path:
        value = value[step]
    return value


def complete(kind: str, path: Path) -> dict[str, Any]:
    """A valid manifest that has this field."""
    for manifest in COMPLETE[kind]:
        try:
            at(manifest, path)
        except KeyError:
            continue
        return manifest
    raise AssertionError(f"no manifest of COMPLETE has {kind} {path}")


def replaced(manifest: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy with another value there."""
    if not path:
        return value
    out = copy.deepcopy(manifest)
    at(out, path[:-1])[path[-1]] = value
    return out


def cases(*, status: bool) -> Iterator[Any]:
    """Every bound of both CRDs: either those of the status or the others."""
    for kind in crds():
        for path, node in places(schema(kind)):
            if (path[:1] == ("status",)) is not status:
                continue
            for bound in bounds(node, at(complete(kind, path), path)):
                # the server reads these itself before it looks into the schema
                if not (path in {(), ("metadata", "name")} and bound.name in {"type", "minLength"}):
                    yield pytest.param(
                        kind, path, bound, id=f"{kind}.{'.'.join(map(str, path))}-{bound.name}"
                    )


@pytest.mark.parametrize(("kind", "path", "bound"), list(cases(status=False)))
def test_what_people_write_keeps_to_a_bound(
    api_server: ApiServer, kind: str, path: Path, bound: Bound
) -> None:
    manifest = complete(kind, path)
    for value in bound.taken:
        assert refusals(api_server, replaced(manifest, path, value)) == []
    for value in bound.refused:
        found = refusals(api_server, replaced(manifest, path, value))
        assert any(bound.message in text for text in found), found


@pytest.mark.parametrize(("kind", "path", "bound"), list(cases(status=True)))
def test_what_the_operator_writes_keeps_to_a_bound(
    api_server: ApiServer, namespace: str, kind: str, path: Path, bound: Bound
) -> None:
    manifest = complete(kind, path)
    stored = create(api_server, manifest, namespace)
    for value in bound.taken:
        assert refused_changes(api_server, stored, replaced(manifest, path, value), "/status") == []
    for value in bound.refused:
        found = refused_changes(api_server, stored, replaced(manifest, path, value), "/status")
        assert any(bound.message in text for text in found), found
