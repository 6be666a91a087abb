"""What becomes of an entry before a handler sees it."""

from __future__ import annotations

import pytest

from agentstream.consuming.hold import CLAIMED, DELIVERED, Hold
from agentstream.consuming.triage import Count, Deliver, Skip, Undeliverable, Verdict, triage
from agentstream.errors import InvalidMessage
from agentstream.protocol.envelope import Message, encode
from agentstream.protocol.routes import Consumes
from support.holds import MAIN, RETRIES, a_hold

POLICY = Consumes("tasks", "{t}", "coder", max_deliveries=3)


def body(to: str = "coder", expires_at: float | None = None) -> bytes:
    return encode(
        Message(
            v=1,
            id="0b0e9d3e-4b55-4f6e-8f1c-2f6f0d6f3a11",
            sender="planner",
            to=to,
            type="event",
            payload={},
            timestamp=1.0,
            expires_at=expires_at,
        )
    )


def entry(data: bytes, counter: int = 1, attempts: int | None = None, *, started: bool = True) -> Hold:
    fields = [b"m", data]
    if attempts is not None:
        fields += [b"x", b'{"origin":"1-0","attempts":%d}' % attempts]
    source, state = MAIN if attempts is None else RETRIES, DELIVERED if started else CLAIMED
    return a_hold("5-0", fields, counter, source=source, state=state)


def decide(read: Hold, policy: Consumes = POLICY) -> Verdict:
    return triage(read, policy, now=100.0, agent="coder", read=lambda message: message.payload)


@pytest.mark.parametrize("to", ["coder", "broadcast"])
def test_what_is_addressed_to_the_agent_or_to_all_is_delivered(to: str) -> None:
    assert isinstance(decide(entry(body(to))), Deliver)


def test_what_has_expired_is_delivered_if_it_was_replayed() -> None:
    past = body(expires_at=99.0)
    assert isinstance(decide(entry(past, attempts=0)), Undeliverable)
    header = b'{"origin":"1-0","attempts":0,"replay":"again.01234567"}'
    assert isinstance(decide(a_hold("5-0", [b"m", past, b"x", header], source=RETRIES)), Deliver)


def test_what_is_addressed_to_others_is_skipped() -> None:
    assert decide(entry(body("tester"))) == Skip()


def test_a_group_that_wants_all_gets_what_is_addressed_to_others() -> None:
    everything = Consumes("tasks", "{t}", "coder", deliver_all=True)
    assert isinstance(decide(entry(body("tester")), everything), Deliver)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "Malformed"),
        (b'{"v":2}', "UnknownVersion"),
        (body(expires_at=100.0), "Expired"),
    ],
)
def test_what_cannot_be_handled_is_given_up_with_a_reason(data: bytes, reason: str) -> None:
    verdict = decide(entry(data))
    assert isinstance(verdict, Undeliverable)
    assert verdict.reason == reason


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize(("size", "fits"), [(1024, True), (1025, False)])
def test_a_message_beyond_what_the_stream_takes_is_given_up_unread(
    size: int, *, fits: bool, started: bool
) -> None:
    small = Consumes("tasks", "{t}", "coder", max_message_bytes=1024)
    verdict = decide(entry(body().ljust(size), started=started), small)
    if fits:
        assert isinstance(verdict, Deliver if started else Count)
    else:
        what = "the message has 1025 bytes, and the stream takes 1024 at most"
        assert verdict == Undeliverable("TooLarge", what)


def test_a_delivery_that_was_not_settled_counts_its_next_attempt_before_the_message_is_read() -> None:
    assert decide(entry(b"{", started=False)) == Count()
    assert isinstance(decide(entry(b"{", started=True)), Undeliverable)


def test_an_entry_without_a_message_is_malformed() -> None:
    verdict = decide(a_hold("5-0", [b"other", b"1"]))
    assert isinstance(verdict, Undeliverable)
    assert verdict.reason == "Malformed"


def test_what_expires_later_is_delivered() -> None:
    assert isinstance(decide(entry(body(expires_at=100.1))), Deliver)


@pytest.mark.parametrize(
    ("counter", "attempts", "started", "delivered"),
    [
        (1, None, True, True),
        (2, None, False, True),
        (3, None, False, False),
        (1, 2, True, True),
        (1, 2, False, False),
        (0, 2, False, True),
        (1, 3, True, False),
    ],
)
def test_an_attempt_beyond_the_last_is_not_begun(
    counter: int, attempts: int | None, *, started: bool, delivered: bool
) -> None:
    verdict = decide(entry(body(), counter, attempts, started=started))
    assert isinstance(verdict, Deliver if started else Count) is delivered
    if not delivered:
        assert isinstance(verdict, Undeliverable)
        assert verdict.reason == "MaxDeliveries"


def test_without_dead_letters_a_further_attempt_is_begun_after_its_delay() -> None:
    for_ever = Consumes("tasks", "{t}", "coder", max_deliveries=3, dead_letters=False)
    assert isinstance(decide(entry(body(), 1, 9), for_ever), Deliver)
    assert isinstance(decide(entry(body(), 1, 9, started=False), for_ever), Undeliverable)


def test_the_header_counts_only_on_the_retry_stream() -> None:
    forged = a_hold("5-0", [b"m", body(), b"x", b'{"origin":"1-0","attempts":99}'])
    assert forged.attempts == 1
    assert forged.entry.origin == "5-0"


def test_a_header_that_is_none_counts_nothing() -> None:
    assert a_hold("5-0", [b"m", body(), b"x", b"{"], source=RETRIES).attempts == 1


def test_what_is_delivered_has_its_payload_as_the_handler_wants_it() -> None:
    verdict = triage(
        entry(body()),
        POLICY,
        now=100.0,
        agent="coder",
        read=lambda message: message.type,
    )
    assert isinstance(verdict, Deliver)
    assert verdict.payload == "event"


def test_what_the_handler_cannot_read_is_given_up_with_the_reason_for_that() -> None:
    def read(_: Message) -> None:
        raise InvalidMessage("no handler takes event", reason="NoHandler")

    verdict = triage(entry(body()), POLICY, now=100.0, agent="coder", read=read)
    assert verdict == Undeliverable("NoHandler", "no handler takes event")
