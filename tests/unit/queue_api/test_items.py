"""Entries as messages: what senders may have written can always be shown."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.protocol.entry import Entry, Source, parse_entry
from agentstream_operator.queue_api.documents import MessageItem
from agentstream_operator.queue_api.items import message_item, time_at, time_of

SOURCE = Source("{team.tasks}", retry=False)
ENVELOPE: dict[str, Any] = {
    "v": 1,
    "id": "7ec428e0-0000-4000-8000-000000000000",
    "from": "planner",
    "to": "coder",
    "type": "task_request",
    "payload": {"doc": 7},
    "timestamp": 1_796_040_762.5,
}


def item(body: object, entry_id: str = "1796040762366-0", **how: Any) -> MessageItem:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return message_item(parse_entry(SOURCE, entry_id, [b"m", data]), **how)


def test_the_envelope_is_shown() -> None:
    found = item({**ENVELOPE, "expires_at": 1_796_040_822, "key": "a"})
    assert found.id == ENVELOPE["id"]
    assert (found.from_, found.to, found.type, found.key) == ("planner", "coder", "task_request", "a")
    assert found.payload == {"doc": 7}
    assert found.at == datetime(2026, 11, 30, 12, 12, 42, 366_000, tzinfo=UTC)
    assert found.expires_at == datetime(2026, 11, 30, 12, 13, 42, tzinfo=UTC)
    assert (found.problem, found.signature) == (None, "Unsigned")


def test_a_payload_that_is_not_wanted_is_not_shown() -> None:
    assert item(ENVELOPE, payload=False).payload is None


def nested(levels: int) -> dict[str, Any]:
    payload: dict[str, Any] = {}
    for _ in range(levels):
        payload = {"a": [payload]}
    return payload


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "truncated"),
        (b"\xff", "cannot be read"),
        (b"{}", "missing required field"),
        ({**ENVELOPE, "v": 2}, "version 2"),
        ({**ENVELOPE, "id": "x"}, "UUID"),
        ({**ENVELOPE, "payload": nested(100)}, "nested"),
        ({**ENVELOPE, "payload": {"text": "x" * 20_000}}, "16,384 bytes"),
    ],
)
def test_what_cannot_be_shown_is_left_out_and_said(body: object, said: str) -> None:
    found = item(body)
    assert found.payload is None
    assert said in (found.problem or "")


def test_an_entry_without_a_message_is_shown_as_such() -> None:
    assert "no message" in (message_item(Entry(SOURCE, "1-0", "1-0", None)).problem or "")
    huge = message_item(Entry(SOURCE, "1-0", "1-0", None, withheld=10**9))
    assert (huge.size, huge.payload) == (10**9, None)


@pytest.mark.parametrize("entry_id", ["", "x", "0-1", "-1-0", "9999999999999999999-0", "999999999999999-0"])
def test_what_holds_no_time_has_none(entry_id: str) -> None:
    assert time_of(entry_id) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "expires_at": st.floats(min_value=0) | st.just(1e300),
        "correlation_id": st.text(max_size=600),
        "key": st.text(max_size=600),
        "schema_version": st.integers(),
        "payload": st.dictionaries(st.text(), values, max_size=4),
    },
)


@given(fields | values)
def test_whatever_the_body_it_becomes_json(found: Any) -> None:
    body = {**ENVELOPE, **found} if isinstance(found, dict) else found
    shown = json.loads(item(body).model_dump_json())
    assert shown["entry"] == "1796040762366-0"
    assert shown["problem"] is not None or shown["payload"] == body["payload"]


@given(st.binary())
def test_whatever_the_bytes_they_become_json(body: bytes) -> None:
    assert json.loads(item(body).model_dump_json())["problem"] is not None


@given(st.floats())
def test_every_time_is_one_or_none(seconds: float) -> None:
    assert time_at(seconds) is None or seconds >= 0
