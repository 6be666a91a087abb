"""Payloads of several versions: which way leads from one to the other, and what is said where none does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentstream.errors import InvalidPayload
from agentstream.payloads.upcasting import Upcasters, message_reader
from agentstream.protocol.envelope import Message


class Plan(msgspec.Struct):
    __schema_version__ = 3
    path: list[int]


class Unversioned(msgspec.Struct):
    path: list[int]


def message(version: int | None, **payload: Any) -> Message:
    return Message(
        v=1,
        id="0b0e9d3e-4b55-4f6e-8f1c-2f6f0d6f3a11",
        sender="planner",
        to="coder",
        type="event",
        payload=payload,
        timestamp=1.0,
        schema_version=version,
    )


@pytest.fixture
def upcasters() -> Upcasters:
    """From versions 1 and 2 of events to version 3: each says that it was there."""
    steps = Upcasters()
    for version in (1, 2):
        steps.add("event", version, lambda payload, step=version: {"path": [*payload["path"], step]})
    return steps


@pytest.mark.parametrize(("version", "path"), [(None, [1, 2]), (1, [1, 2]), (2, [2]), (3, [])])
def test_a_payload_is_brought_from_its_version_step_by_step(
    upcasters: Upcasters, version: int | None, path: list[int]
) -> None:
    assert upcasters.bring(message(version, path=[]), 3) == {"path": path}


def test_the_payload_of_the_message_stays_as_it_is() -> None:
    def change(payload: dict[str, Any]) -> dict[str, Any]:
        payload["inner"]["doc"] = payload["inner"].pop("document")
        return payload

    steps, old = Upcasters(), message(1, inner={"document": 7})
    steps.add("event", 1, change)
    assert steps.bring(old, 2) == {"inner": {"doc": 7}}
    assert old.payload == {"inner": {"document": 7}}


@pytest.mark.parametrize(
    ("version", "wanted", "known"),
    [
        (4, 3, "version 4 of its payload, and versions 1 to 3 can be handled"),
        (3, 4, "version 3 of its payload, and version 4 can be handled"),
        (1, 5, "version 1 of its payload, and version 5 can be handled"),
    ],
)
def test_where_no_way_leads_it_is_said_what_is_known(
    upcasters: Upcasters, version: int, wanted: int, known: str
) -> None:
    with pytest.raises(InvalidPayload, match=f"^event has {known}$") as refused:
        upcasters.bring(message(version, path=[]), wanted)
    assert refused.value.reason == "UnknownVersion"


def test_an_upcaster_is_for_one_type_only(upcasters: Upcasters) -> None:
    result = msgspec.structs.replace(message(1, path=[]), type="task_result")
    with pytest.raises(InvalidPayload, match="task_result has version 1 of its payload, and version 2 can"):
        upcasters.bring(result, 2)


def fails(payload: dict[str, Any]) -> dict[str, Any]:
    return {"doc": payload["document"]}


def returns_a_list(payload: dict[str, Any]) -> Any:
    return [payload]


@pytest.mark.parametrize(
    ("step", "problem"),
    [(fails, "KeyError: 'document'"), (returns_a_list, "TypeError: it returned list, not a dict")],
)
def test_an_upcaster_that_fails_makes_the_payload_invalid(step: Any, problem: str) -> None:
    steps = Upcasters()
    steps.add("event", 1, step)
    with pytest.raises(InvalidPayload, match=f"upcaster for version 1 of event failed: {problem}") as refused:
        steps.bring(message(1), 2)
    assert refused.value.reason == "InvalidPayload"


async def asynchronous(payload: dict[str, Any]) -> dict[str, Any]:
    return payload


def test_what_cannot_be_an_upcaster_is_refused(upcasters: Upcasters) -> None:
    with pytest.raises(ValueError, match="an upcaster for version 1 of event already"):
        upcasters.add("event", 1, fails)
    with pytest.raises(ValueError, match="counted from 1"):
        upcasters.add("event", 0, fails)
    with pytest.raises(TypeError, match="a plain function"):
        upcasters.add("event", 7, asynchronous)


@pytest.mark.parametrize(
    ("kind", "version", "read"),
    [
        (Plan, None, Plan([1, 2])),
        (Plan, 2, Plan([1])),
        (Unversioned, None, Unversioned([])),
        (dict, None, {"path": []}),
        (dict, 2, {"path": [1]}),
        (dict[str, list[int]], None, {"path": []}),
    ],
)
def test_a_type_names_its_version_unless_the_handler_does(
    upcasters: Upcasters, kind: Any, version: int | None, read: Any
) -> None:
    assert message_reader(kind, version, upcasters)(message(1, path=[])) == read


def test_only_a_raw_payload_without_a_version_is_read_whatever_its_version(upcasters: Upcasters) -> None:
    unknown = message(9, path=[])
    assert message_reader(dict, None, upcasters)(unknown) is unknown.payload
    with pytest.raises(InvalidPayload, match="and version 1 can be handled"):
        message_reader(Unversioned, None, upcasters)(unknown)
