"""What is sent fits the published schema, and what does not fit is refused."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.errors import InvalidMessage
from agentstream.protocol import generate
from agentstream.protocol.envelope import Message, decode, encode, message_schema
from agentstream.sending.notifications import notification
from agentstream.sending.outgoing import new_id

SCHEMA = jsonschema.Draft202012Validator(message_schema())
PUBLISHED = Path(__file__).parents[4] / "docs" / "reference" / "message.schema.json"

agents = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
seconds = st.floats(min_value=0, max_value=1e12)
references = st.text(min_size=1, max_size=512)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
messages = st.builds(
    Message,
    v=st.just(1),
    id=st.uuids().map(str),
    sender=agents,
    to=agents,
    type=st.sampled_from(["task_request", "task_result", "event"]),
    payload=st.dictionaries(st.text(), json_values, max_size=4),
    timestamp=seconds,
    correlation_id=st.none() | references,
    reply_to=st.none() | references,
    expires_at=st.none() | seconds,
    key=st.none() | references,
    schema_version=st.none() | st.integers(1, 1_000_000),
)
GOOD: dict[str, Any] = {
    "v": 1,
    "id": "0b0e9d3e-4b55-4f6e-8f1c-2f6f0d6f3a11",
    "from": "planner",
    "to": "coder",
    "type": "task_request",
    "payload": {"doc": 7},
    "timestamp": 1.5,
}


@given(messages)
def test_every_message_that_is_sent_fits_the_schema_and_comes_back(message: Message) -> None:
    data = encode(message)
    SCHEMA.validate(json.loads(data))
    assert decode(data) == message


@given(st.sampled_from([*GOOD, "correlation_id", "reply_to", "expires_at"]), json_values)
def test_whatever_the_schema_refuses_is_refused(name: str, value: object) -> None:
    changed = {**GOOD, name: value}
    if not SCHEMA.is_valid(changed):
        with pytest.raises(InvalidMessage):
            decode(json.dumps(changed).encode())


@pytest.mark.parametrize("name", GOOD)
def test_no_required_field_may_be_missing(name: str) -> None:
    rest = {key: value for key, value in GOOD.items() if key != name}
    assert not SCHEMA.is_valid(rest)
    with pytest.raises(InvalidMessage):
        decode(json.dumps(rest).encode())


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_malformed_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode(data)
    assert caught.value.reason == "Malformed"


def test_nesting_without_end_is_malformed() -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode(b"[" * 200_000)
    assert caught.value.reason == "Malformed"


def test_a_version_to_come_is_told_from_nonsense() -> None:
    with pytest.raises(InvalidMessage, match="version 2") as caught:
        decode(json.dumps({**GOOD, "v": 2}).encode())
    assert caught.value.reason == "UnknownVersion"


def test_fields_that_a_later_release_adds_are_ignored() -> None:
    assert decode(json.dumps({**GOOD, "key": "doc-7"}).encode()).to == "coder"


@pytest.mark.parametrize("name", ["planner\n", "Planner", "-planner", "", "a" * 64])
def test_an_agent_must_be_a_dns_label(name: str) -> None:
    changed = {**GOOD, "to": name}
    assert not SCHEMA.is_valid(changed)
    with pytest.raises(InvalidMessage):
        decode(json.dumps(changed).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "order"},
        {"payload": []},
        {"payload": {"f": object()}},
        {"to": "No Agent"},
        {"expires_at": -1.0},
    ],
)
def test_what_does_not_fit_is_not_sent(changes: dict[str, Any]) -> None:
    fields = {("sender" if name == "from" else name): value for name, value in {**GOOD, **changes}.items()}
    with pytest.raises(InvalidMessage):
        encode(Message(**fields))


@dataclass
class Score:
    score: float | None


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("within", [lambda n: n, lambda n: [1.5, (n,)], lambda n: {"deep": [n]}, Score])
def test_what_is_no_number_is_not_sent_as_null(number: float, within: Callable[[Any], object]) -> None:
    for encoded in (_message, partial(notification, "planner")):
        with pytest.raises(InvalidMessage, match="holds NaN or Infinity"):
            encoded({"none": None, "p": within(number)})
        assert json.loads(encoded({"none": None, "p": within(1.5)}))["payload"]["none"] is None
        assert encoded({"json": msgspec.Raw(b"null"), "p": 1.5})


def _message(payload: dict[str, Any]) -> bytes:
    return encode(msgspec.structs.replace(decode(json.dumps(GOOD).encode()), payload=payload))


def test_the_published_schema_is_current() -> None:
    assert generate.main([str(PUBLISHED), "--check"]) == 0


def test_a_schema_that_differs_is_reported_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "message.schema.json"
    assert generate.main([str(path), "--check"]) == 1
    assert "make generate" in capsys.readouterr().err
    assert generate.main([str(path)]) == 0
    assert generate.main([str(path), "--check"]) == 0


odd_values = json_values | st.sampled_from(
    [
        float("nan"),
        float("inf"),
        b"bytes",
        msgspec.Raw(b"{"),
        msgspec.Raw(b'{"a": 1}'),
        msgspec.Raw(b'"\xff"'),
        "\ud800",
        "planner\n",
        "x" * 513,
        True,
        2**70,
        [],
        {},
    ]
)


@given(
    st.dictionaries(st.sampled_from(sorted(Message.__struct_fields__)), odd_values, min_size=1, max_size=3),
    odd_values,
)
def test_what_is_sent_can_be_read_whatever_it_is_made_of(changes: dict[str, Any], inside: object) -> None:
    fields = {("sender" if name == "from" else name): value for name, value in GOOD.items()}
    message = Message(**(fields | {"payload": {"p": inside}} | changes))
    try:
        data = encode(message)
    except InvalidMessage:
        return
    decode(data)
    data.decode()
    assert SCHEMA.is_valid(json.loads(data))


def test_ids_are_random_uuids() -> None:
    ids = [new_id() for _ in range(1_000)]
    assert len(set(ids)) == 1_000
    assert all(uuid.UUID(one).version == 4 and str(uuid.UUID(one)) == one for one in ids)
    assert all(uuid.UUID(one).variant == uuid.RFC_4122 for one in ids)
