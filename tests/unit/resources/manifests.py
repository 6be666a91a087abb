"""Manifests for tests: the smallest ones, valid ones of every shape, and ones with something wrong."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

API_VERSION = "agentstream.dev/v1alpha1"


def a_stream(name: str = "tasks", **spec: Any) -> dict[str, Any]:
    """An AgentStream manifest."""
    return {"apiVersion": API_VERSION, "kind": "AgentStream", "metadata": {"name": name}, "spec": spec}


def a_group(name: str = "coder", **spec: Any) -> dict[str, Any]:
    """A ConsumerGroup manifest that reads the stream `tasks`, unless told otherwise."""
    spec = {"streamRef": {"name": "tasks"}, **spec}
    return {"apiVersion": API_VERSION, "kind": "ConsumerGroup", "metadata": {"name": name}, "spec": spec}


def a_replay(name: str = "again", **spec: Any) -> dict[str, Any]:
    """A StreamReplay manifest of the stream of the group `coder`, unless told otherwise."""
    spec = {"groupRef": {"name": "coder"}, "from": {"source": "Stream"}, **spec}
    return {"apiVersion": API_VERSION, "kind": "StreamReplay", "metadata": {"name": name}, "spec": spec}


def a_template(**container: Any) -> dict[str, Any]:
    """A pod template with one container."""
    return {"spec": {"containers": [{"name": "coder", "image": "coder:1", **container}]}}


_names = st.from_regex("[a-z0-9]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True)
_durations = st.sampled_from(
    ["1s", "999ms", "2s", "1999ms", "10s", "59m60s", "1h", "1h1ms", "24h", "87600h", "87600h1ms", "0s"]
)
_amounts = st.sampled_from([0, 1, 10, 1_000, 1_001, 1_000_000, 1_000_001, 1_000_000_000, 1_000_000_001])


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


_containers = st.fixed_dictionaries(
    {"name": _names},
    optional={
        "image": st.just("coder:1"),
        "command": st.lists(st.text(max_size=5), max_size=2),
        "args": st.lists(st.text(max_size=5), max_size=2),
        "env": st.lists(
            st.fixed_dictionaries(
                {"name": _names},
                optional={
                    "value": st.text(max_size=5),
                    "valueFrom": st.just({"fieldRef": {"fieldPath": "x"}}),
                },
            ),
            max_size=2,
        ),
        "workingDir": st.just("/app"),
        "resources": st.just({"limits": {"cpu": 1}}),
    },
)
_templates = st.fixed_dictionaries(
    {
        "spec": st.fixed_dictionaries(
            {"containers": st.lists(_containers, min_size=1, max_size=2)},
            optional={"terminationGracePeriodSeconds": st.just(60), "nodeSelector": st.just({"a": "b"})},
        )
    },
    optional={
        "metadata": _some(
            labels=st.dictionaries(_names, _names, max_size=2),
            annotations=st.dictionaries(_names, st.text(max_size=5), max_size=2),
        )
    },
)
_starts = st.sampled_from(
    [
        "Beginning",
        "End",
        "0-0",
        "1700000000000-7",
        "2024-02-29T12:00:00Z",
        "2023-02-29T12:00:00Z",
        "1970-01-01T00:00:00Z",
        "1970-01-01T00:00:00+05:30",
        "1969-12-31T23:59:59Z",
        "2026-11-22T10:00:00.123456789-08:00",
    ]
)
_keys = st.sampled_from(
    [
        *("tasks", "{team-a.tasks}", "a:{b}:c", "{a}{b}", "{}", "a}b", "a{b", "{{a}}", "a b"),
        *("{a.b}:reply:c", "{a}:b:gate", "{a}:receipts", "{a}:gated", "a:meta", "{a:once:b}"),
    ]
)

streams = st.builds(
    lambda name, spec: a_stream(name, **spec),
    _names,
    _some(
        key=_keys,
        retention=_some(
            minAge=_durations,
            maxLength=_amounts,
            maxBytes=st.sampled_from([1_048_575, 1_048_576, 10**12]),
            onFull=st.sampled_from(["TrimAcknowledged", "Backpressure", "TrimOldest"]),
        ),
        producers=st.lists(_names, max_size=4),
        broadcast=st.booleans(),
        signing=_some(
            policy=st.sampled_from(["Off", "Warn", "Require", "require"]),
            rotation=st.sampled_from([-1, 0, 1, 1_000_000, 1_000_001]),
        ),
        contracts=st.lists(
            st.fixed_dictionaries(
                {
                    "type": st.sampled_from(["task_request", "task_result", "event", "wish"]),
                    "schema": st.fixed_dictionaries(
                        {"type": st.sampled_from(["object", "object", "array"])},
                        optional={
                            "required": st.just(["doc"]),
                            "properties": st.just({"doc": {"enum": [None]}}),
                        },
                    ),
                },
                optional={"version": st.sampled_from([0, 1, 2, 1_000_000, 1_000_001])},
            ),
            max_size=3,
        ),
        deletionPolicy=st.sampled_from(["Retain", "Delete", "DeleteIfEmpty"]),
        managementPolicy=st.sampled_from(["Managed", "ObserveOnly"]),
    ),
)
groups = st.builds(
    lambda name, spec: a_group(name, **spec),
    _names,
    _some(
        group=_names,
        agent=_names,
        startFrom=_starts,
        deliver=st.sampled_from(["Addressed", "All"]),
        delivery=_some(
            lease=_durations,
            maxDeliveries=st.sampled_from([0, 1, 5, 100, 101]),
            backoff=_some(
                initial=_durations, factor=st.sampled_from([0.9, 1, 1.5, 10.0, 10.1]), max=_durations
            ),
        ),
        deadLetter=_some(enabled=st.booleans(), minAge=_durations, maxLength=_amounts),
        template=_templates,
        replicas=st.sampled_from([0, 1, 1_000, 1_001]),
        autoscaling=_some(
            minReplicas=_amounts, maxReplicas=_amounts, targetBacklog=_amounts, scaleDownAfter=_durations
        ),
        suspend=st.booleans(),
        deletionPolicy=st.sampled_from(["Retain", "Delete"]),
    ),
)
"""Manifests of which most are valid, and the others are just beyond a limit."""

_bounds = st.sampled_from(
    [
        *("0-0", "1-0", "9-10", "10-9", "10-10", "1700000000000-7", "1700000000001-0", "01-0", "1-01", "9"),
        *(f"{'9' * 19}-{'9' * 19}", f"{'9' * 19}-{'8' * 19}", f"1{'0' * 19}-0"),
        # cel-python knows microseconds, the API server nanoseconds: see cluster/test_rules.py
        *("2024-02-29T12:00:00Z", "2024-02-29T12:00:00.000001Z", "2024-02-29T12:00:00.000002Z"),
        *("2024-02-29T13:00:00+01:00", "2024-02-29T13:00:00.5+02:00", "2023-02-29T12:00:00Z"),
        *("1970-01-01T00:00:00Z", "1970-01-01T00:00:00+05:30", "1969-12-31T23:59:59Z", "End"),
    ]
)
_UUID = "7ec428e0-0c1d-4f5a-9b57-0123456789ab"
replays = st.builds(
    lambda name, source, bounds, spec: a_replay(name, **{"from": {"source": source, **bounds}}, **spec),
    _names,
    st.sampled_from(["Stream", "DeadLetters", "DeadLetters"]),
    _some(since=_bounds, until=_bounds),
    _some(
        select=_some(
            types=st.lists(st.sampled_from(["task_request", "event", "wish"]), max_size=11),
            senders=st.lists(_names, max_size=2),
            correlation=st.sampled_from(["", "a", "a" * 512, "a" * 513]),
            ids=st.lists(st.sampled_from(["1-0", _UUID, _UUID.upper(), "1"]), max_size=2),
            reasons=st.lists(st.sampled_from(["MaxDeliveries", "my own", ""]), max_size=2),
        ),
        action=st.sampled_from(["Redeliver", "Drop", "Export"]),
        limit=_amounts,
        rate=_amounts,
        window=_amounts,
        expired=st.sampled_from(["Skip", "Deliver"]),
        dryRun=st.booleans(),
        suspend=st.booleans(),
        reason=st.sampled_from(["", "INC-4711", "a" * 256, "a" * 257]),
        ttlSecondsAfterFinished=_amounts,
    ),
)
"""As the others; the ends of their ranges are of both kinds, in any order."""

_JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 5.0, 1.5, 10**12, 1e3]),
    st.sampled_from(
        ["", "a", "A", "a\n", "1", "12x", "1h", "1s\n", "1.5h", "-1s", "9" * 20 + "h", "Retain", "True"]
    ),
    st.text(max_size=8),
    st.sampled_from(["a" * 63, "a" * 64, "a" * 300, "{}", "2024-01-01", "1-", "2024-01-01T24:00:00Z"]),
    st.sampled_from([[], {}, ["a"], ["a", "a"], [None], {"a": 1}, {"name": "a"}, [{"name": "a"}], [[]]]),
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((value, key), *_places(item))]


@st.composite
def mutated(draw: st.DrawFn, manifests: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    """Manifests with one to three values replaced, fields removed or unknown fields added."""
    manifest = copy.deepcopy(draw(manifests))
    for _ in range(draw(st.integers(1, 3))):
        places = _places({"spec": manifest["spec"]})
        container, key = draw(st.sampled_from(places))
        if (
            container is not manifest["spec"]
            and "spec" in container
            and container["spec"] is manifest["spec"]
        ):
            container = manifest
        match draw(st.sampled_from(["replace", "replace", "remove", "add", "rename"])):
            case "replace":
                container[key] = copy.deepcopy(draw(_JUNK))
            case "remove":
                del container[key]
            case "add" if isinstance(container, dict):
                name = draw(st.sampled_from(["extra", "min_age", "name", "spec"]))
                container[name] = copy.deepcopy(draw(_JUNK))
            case _:
                manifest["metadata"]["name"] = draw(
                    st.sampled_from(["a", "A", "a.b", "a" * 63, "a" * 64, "", "-a"])
                )
        if not isinstance(manifest.get("spec"), dict):
            break
    return manifest
