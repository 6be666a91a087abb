"""Which messages a replay selects, and which of them it leaves where they are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.errors import InvalidMessage
from agentstream.protocol.entry import Entry, Source, parse_entry
from agentstream.protocol.envelope import BROADCAST, decode
from agentstream.protocol.replaying import Selected
from agentstream_operator.plan.letters import Letter, read_letter
from agentstream_operator.plan.selection import Selection, Skipped, is_dead, selection_of
from agentstream_operator.resources.streamreplay import ReplaySelect
from support.examples import trying
from support.resources import a_group, a_replay, a_stream

KEY = "{team.tasks}"
UUID = "7ec428e0-1b1c-4d8e-9f5e-0c5a3f2f4b6d"
NOW = 1_000.0


def body(**changes: Any) -> bytes:
    message = {
        "v": 1,
        "id": UUID,
        "from": "planner",
        "to": "coder",
        "type": "task_request",
        "payload": {"doc": 7},
        "timestamp": 1.5,
        **changes,
    }
    return msgspec.json.encode({name: value for name, value in message.items() if value is not None})


def entry(entry_id: str = "10-1", data: bytes | None = None, **fields: bytes) -> Entry:
    named = {"m": body() if data is None else data, **fields}
    flat = [part for name, value in named.items() for part in (name.encode(), value)]
    return parse_entry(Source(KEY, retry=False), entry_id, flat)


def letter(
    data: bytes | None = None, *, origin: str = "10-1", reason: str = "MaxDeliveries", **fields: bytes
) -> Letter:
    named = {
        "m": body() if data is None else data,
        "origin": origin.encode(),
        "reason": reason.encode(),
        **fields,
    }
    flat = [part for name, value in named.items() for part in (name.encode(), value)]
    return read_letter(f"{KEY}:dlq:coder", "20-0", flat)


def choosing(**select: Any) -> Selection:
    return Selection(ReplaySelect.model_validate(select))


@pytest.mark.parametrize(
    ("select", "matches"),
    [
        ({}, True),
        ({"types": ["task_request"]}, True),
        ({"types": ["event", "task_request"]}, True),
        ({"types": ["event"]}, False),
        ({"senders": ["planner"]}, True),
        ({"senders": ["plan"]}, False),
        ({"correlation": "c"}, True),
        ({"correlation": "C"}, False),
        ({"ids": ["10-1"]}, True),
        ({"ids": [UUID]}, True),
        ({"ids": ["20-0"]}, False),
        ({"types": ["task_request"], "senders": ["reviewer"]}, False),
        ({"types": ["task_request"], "senders": ["planner"], "correlation": "c", "ids": [UUID]}, True),
    ],
)
def test_every_given_field_has_to_match_the_same_for_entries_and_dead_letters(
    select: dict[str, Any], *, matches: bool
) -> None:
    data = body(correlation_id="c", key="k")
    found = choosing(**select).verdict(entry(data=data), NOW)
    assert found == (Selected("10-1", "", "k") if matches else None)
    found = choosing(**select).verdict(letter(data), NOW)
    assert found == (Selected("20-0", "", "k") if matches else None)


@pytest.mark.parametrize(("reasons", "matches"), [(["MaxDeliveries"], True), (["Expired", "Odd"], False)])
def test_dead_letters_are_selected_by_their_reasons(reasons: list[str], *, matches: bool) -> None:
    assert (choosing(reasons=reasons).verdict(letter(), NOW) is not None) == matches


def test_a_reason_longer_than_those_that_are_kept_is_found() -> None:
    reason = "x" * 256
    assert choosing(reasons=[reason]).verdict(letter(reason=reason), NOW) == Selected("20-0")


def test_a_letter_that_does_not_tell_its_origin_is_selected_by_its_own_id() -> None:
    assert choosing(ids=["20-0"]).verdict(letter(origin="-"), NOW) == Selected("20-0")


def verdict(selection: Selection, found: Entry | Letter) -> str | None:
    selected = selection.verdict(found, NOW)
    return None if selected is None else selected.skip


@pytest.mark.parametrize(("to", "skip"), [("coder", ""), (BROADCAST, ""), ("reviewer", "notAddressed")])
def test_a_group_gets_what_is_for_it_only_unless_it_gets_everything(to: str, skip: str) -> None:
    for found in (entry(data=body(to=to)), letter(body(to=to))):
        assert verdict(Selection(agent="coder"), found) == skip
        assert verdict(Selection(), found) == ""


@pytest.mark.parametrize(
    ("expires_at", "skip"), [(None, ""), (NOW + 1, ""), (NOW, "expired"), (0, "expired")]
)
def test_what_has_expired_stays_unless_it_is_asked_for(expires_at: float | None, skip: str) -> None:
    for found in (entry(data=body(expires_at=expires_at)), letter(body(expires_at=expires_at))):
        assert verdict(Selection(), found) == skip
        assert verdict(Selection(delivers_expired=True), found) == ""


@pytest.mark.parametrize(
    ("signature", "skip"),
    [(b"k1:5:mac", ""), (b"gone:5:mac", "unknownKey"), (b"k1", ""), (b"", ""), (b":", "unknownKey")],
)
def test_messages_signed_with_a_key_that_is_gone_stay(signature: bytes, skip: str) -> None:
    selection = Selection(keys=frozenset({b"k1", b"k2"}))
    assert verdict(selection, entry(s=signature)) == skip
    assert verdict(selection, letter(s=signature)) == skip
    assert verdict(Selection(), entry(s=signature)) == ""
    assert verdict(selection, entry()) == ""


@pytest.mark.parametrize("data", [b"", b"no JSON", b"[]", b'{"v":1,"id":"x"}', body(payload=7), body(v=2)])
def test_what_cannot_be_read_is_invalid_on_the_stream_and_moved_as_a_dead_letter(data: bytes) -> None:
    assert verdict(Selection(agent="coder"), entry(data=data)) == Skipped.INVALID
    assert verdict(Selection(agent="coder"), letter(data, reason="Malformed")) == ""
    assert verdict(choosing(reasons=["Malformed"]), letter(data, reason="Malformed")) == ""
    assert verdict(choosing(ids=["10-1"]), letter(data)) == ""


def test_an_entry_that_is_too_large_to_be_read_is_invalid_wherever_it_is() -> None:
    large = Entry(Source(KEY, retry=False), "10-1", "10-1", None, withheld=20_000_000)
    assert verdict(Selection(), large) == Skipped.INVALID
    assert verdict(Selection(), read_letter(KEY, "20-0", 20_000_000)) == Skipped.INVALID
    assert verdict(choosing(types=["event"]), large) is None


def test_a_damaged_message_is_found_by_the_id_that_can_be_read() -> None:
    damaged = body(**{"from": 7})
    assert verdict(choosing(ids=[UUID]), letter(damaged)) == ""
    assert verdict(choosing(senders=["planner"]), letter(damaged)) is None


def test_dropping_skips_nothing() -> None:
    selection = Selection(ReplaySelect(reasons=("Expired",)), drops=True, agent="coder", keys=frozenset())
    odd = letter(body(expires_at=0, to="reviewer"), reason="Expired", s=b"gone:1:m")
    assert selection.verdict(odd, NOW) == Selected("20-0")
    assert selection.verdict(letter(), NOW) is None


def test_a_selection_is_what_the_replay_its_group_and_its_stream_say() -> None:
    spec = a_replay(select={"reasons": ["Expired"]}, expired="Deliver").spec
    signed = a_stream(signing={"policy": "Require"})
    assert is_dead(spec)
    assert selection_of(spec, a_group(), signed, ["k1"]) == Selection(
        spec.select, delivers_expired=True, agent="coder", keys=frozenset({b"k1"})
    )
    warned = a_stream(signing={"policy": "Warn"})
    assert selection_of(spec, a_group(deliver="All"), warned, ["k1"]).keys is None
    assert selection_of(spec, a_group(deliver="All"), warned).agent is None
    # while the keys are not known, nothing is said of them
    assert selection_of(spec, a_group(), signed).keys is None


_NAMES = st.sampled_from(["planner", "coder", "reviewer", BROADCAST, "", 7, None])
_MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from([UUID, "x", 7]),
        "from": _NAMES,
        "to": _NAMES,
        "type": st.sampled_from(["task_request", "event", "odd", None]),
        "payload": st.sampled_from([{}, 7, None]),
        "correlation_id": st.sampled_from(["c", "", 7, None]),
        "expires_at": st.sampled_from([0, NOW, NOW + 1, "x", None]),
        "key": st.sampled_from(["k", "", 7, None]),
    },
)
_SELECTS = st.builds(
    ReplaySelect,
    types=st.none() | st.sampled_from([("task_request",), ("event", "task_request")]),
    senders=st.none() | st.just(("planner",)),
    correlation=st.none() | st.just("c"),
    ids=st.none() | st.sampled_from([("10-1",), (UUID,), ("1-1", UUID)]),
)


@trying(300)
@given(changes=_MESSAGES, select=_SELECTS, addressed=st.booleans(), delivers_expired=st.booleans())
def test_only_what_a_group_would_handle_is_moved_from_the_stream(
    changes: dict[str, Any], select: ReplaySelect, *, addressed: bool, delivers_expired: bool
) -> None:
    data = body(**changes)
    selection = Selection(select, delivers_expired=delivers_expired, agent="coder" if addressed else None)
    found = selection.verdict(entry(data=data), NOW)
    try:
        message = decode(data)
    except InvalidMessage:
        assert found is None or found.skip == Skipped.INVALID
        return
    matches = (
        (select.types is None or message.type in select.types)
        and (select.senders is None or message.sender in select.senders)
        and (select.correlation is None or message.correlation_id == select.correlation)
        and (select.ids is None or bool({"10-1", message.id} & {*select.ids}))
    )
    if not matches:
        assert found is None
        return
    mine = not addressed or message.to in {"coder", BROADCAST}
    fresh = delivers_expired or message.expires_at is None or message.expires_at > NOW
    skip = "notAddressed" if not mine else "" if fresh else "expired"
    assert found == Selected("10-1", skip, message.key or "")


@trying(300)
@given(st.binary(max_size=200), st.binary(max_size=50), _SELECTS)
def test_nothing_that_somebody_wrote_raises(data: bytes, signature: bytes, select: ReplaySelect) -> None:
    selection = Selection(select, keys=frozenset({b"k"}))
    for found in (entry(data=data, s=signature), letter(data, s=signature)):
        selected = selection.verdict(found, NOW)
        assert selected is None or selected.skip in {"", *Skipped}
