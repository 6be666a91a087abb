"""Signatures: what is valid, what is wrong with what is not, and where the keys come from."""

from __future__ import annotations

import hashlib
import hmac
import math
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream.consuming.hold import DELIVERED, Hold
from agentstream.consuming.triage import Defer, Deliver, Undeliverable, triage
from agentstream.errors import SettingsError
from agentstream.identity.keyring import Keyring, Verifier
from agentstream.identity.settings import Binding, Settings
from agentstream.protocol.entry import Entry, Source, parse_entry
from agentstream.protocol.reasons import Reason
from agentstream.protocol.routes import Consumes, Produces
from agentstream.protocol.signatures import (
    SKEW,
    WINDOW,
    Keys,
    SigningEntry,
    SigningKey,
    decode_keys,
    decode_signing,
    encode_keys,
    encode_signing,
    entry_name,
    key_that_signs,
    sign,
    verify,
)
from agentstream.telemetry.counters import UNVERIFIED, Counters
from agentstream.transport.endpoint import Endpoint

STREAM = "{team.tasks}"
MAIN, RETRIES = Source(STREAM, retry=False), Source(f"{STREAM}:retry:coder", retry=True)
NOW = 1_800_000_000.0
NEW = SigningKey("new", "n" * 43, signs_from=int(NOW) + 100, rotation=2)
OLD = SigningKey("old", "o" * 43, signs_from=int(NOW) - 100, rotation=1)
KEYS: Keys = (NEW, OLD)
BODY = (
    b'{"v":1,"id":"0b0e9d3e-4b55-4f6e-8f1c-2f6f0d6f3a11","from":"planner","to":"coder","type":"event",'
    b'"payload":{"n":0},"timestamp":1800000000}'
)


def entry(
    body: bytes | None = BODY,
    signature: bytes | None = None,
    added: float = NOW,
    *,
    origin: str | None = None,
) -> Entry:
    """An entry that the server added at a time; with an origin, on the retry stream."""
    fields = [*((b"m", body) if body is not None else ()), *((b"s", signature) if signature else ())]
    if origin is not None:
        fields += [b"x", b'{"origin":"%s","attempts":1}' % origin.encode()]
    source = MAIN if origin is None else RETRIES
    return parse_entry(source, f"{int(added * 1000)}-0", fields)


def signed(body: bytes = BODY, at: float = NOW, key: SigningKey = OLD, stream: str = STREAM) -> bytes:
    return sign(key, stream, body, at)


@given(body=st.binary(max_size=300), at=st.floats(0, 4e9), key=st.sampled_from(KEYS))
def test_what_was_signed_is_valid(body: bytes, at: float, key: SigningKey) -> None:
    assert verify(KEYS, STREAM, entry(body, sign(key, STREAM, body, at), added=at)) is None


def test_a_signature_is_what_any_language_makes_of_its_definition() -> None:
    text = b"agentstream1\0" + STREAM.encode() + b"\0" + b"1800000000" + b"\0" + BODY
    mac = urlsafe_b64encode(hmac.new(OLD.secret.encode(), text, hashlib.sha256).digest()).rstrip(b"=")
    assert signed() == b"old:1800000000:" + mac


@given(st.data())
def test_no_byte_of_a_message_can_be_altered(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(BODY) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != BODY[place]))
    altered = BODY[:place] + bytes([byte]) + BODY[place + 1 :]
    assert verify(KEYS, STREAM, entry(altered, signed())) is Reason.FORGED


@given(st.data())
def test_no_byte_of_a_signature_can_be_altered(data: st.DataObject) -> None:
    signature = signed()
    place = data.draw(st.integers(0, len(signature) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != signature[place]))
    altered = signature[:place] + bytes([byte]) + signature[place + 1 :]
    expected = Reason.UNKNOWN_KEY if place < len(OLD.id) and byte != ord(":") else Reason.FORGED
    assert verify(KEYS, STREAM, entry(signature=altered)) is expected


@given(cut=st.integers(1, 60), junk=st.binary(min_size=1, max_size=10))
def test_nothing_can_be_cut_off_or_added(cut: int, junk: bytes) -> None:
    for body, signature in (
        (BODY[:-cut], signed()),
        (BODY + junk, signed()),
        (BODY, signed() + junk),
        (BODY, signed()[:-cut]),
    ):
        assert verify(KEYS, STREAM, entry(body, signature)) in (
            Reason.FORGED,
            Reason.UNKNOWN_KEY,
            Reason.UNSIGNED,
        )


@given(st.binary(max_size=80))
def test_any_bytes_in_place_of_a_signature_are_refused(junk: bytes) -> None:
    assert verify(KEYS, STREAM, entry(signature=junk)) is not None


def test_a_message_cannot_be_moved_to_another_stream() -> None:
    assert verify(KEYS, "{team.orders}", entry(signature=signed())) is Reason.FORGED


def test_a_message_cannot_be_passed_off_as_signed_with_another_key() -> None:
    assert verify(KEYS, STREAM, entry(signature=signed().replace(b"old", b"new"))) is Reason.FORGED


def test_without_a_signature_it_is_unsigned() -> None:
    assert verify(KEYS, STREAM, entry()) is Reason.UNSIGNED


def test_a_key_that_is_not_there_is_told_of() -> None:
    assert verify((NEW,), STREAM, entry(signature=signed())) is Reason.UNKNOWN_KEY
    assert verify((), STREAM, entry(signature=signed())) is Reason.UNKNOWN_KEY


@pytest.mark.parametrize(
    ("late", "flaw"),
    [
        (0, None),
        (WINDOW + SKEW, None),
        (WINDOW + SKEW + 1, Reason.REPLAYED),
        (-SKEW, None),
        (-SKEW - 1, Reason.REPLAYED),
    ],
)
def test_a_message_is_valid_only_at_the_time_it_was_signed_for(late: float, flaw: Reason | None) -> None:
    assert verify(KEYS, STREAM, entry(signature=signed(), added=NOW + late)) is flaw


@pytest.mark.parametrize(
    ("origin", "flaw"),
    [
        (f"{int(NOW)}000-3", None),
        (f"{int(NOW) + 4000}000-3", Reason.REPLAYED),
        ("once upon a time", Reason.REPLAYED),
        ("9" * 5000, Reason.REPLAYED),
    ],
)
def test_a_retry_counts_as_added_when_the_message_was(origin: str, flaw: Reason | None) -> None:
    assert verify(KEYS, STREAM, entry(signature=signed(), added=NOW + 9000, origin=origin)) is flaw


def test_a_new_key_signs_only_when_it_is_everywhere() -> None:
    assert key_that_signs(KEYS, NOW) is OLD
    assert key_that_signs(KEYS, NEW.signs_from) is NEW
    assert key_that_signs((NEW,), NOW) is NEW, "a clock that is behind has to sign with something"


def test_keys_are_read_as_they_were_written() -> None:
    assert decode_keys(encode_keys(KEYS)) == KEYS


KEY = '"id":"a","secret":"%s"' % ("s" * 43)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '[{"id":"a:b","secret":"%s"}]' % ("s" * 43),
        '[{"id":"a","secret":"hush"}]',
        '[{"id":"a","secret":"%s"}]' % ("s" * 100_000),
        "[" + ",".join(["{" + KEY + "}"] * 17) + "]",
        # as deep as a Secret may be
        "[{" + KEY + ',"x":' + "[" * 100_000 + "]" * 100_000 + "}]",
        "[{" + KEY + ',"x":' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}]",
    ],
    ids=lambda text: text[:60],
)
def test_what_is_no_list_of_keys_is_refused_without_repeating_it(text: str) -> None:
    for decode, text_of in ((decode_keys, text), (decode_signing, f'{{"keys":{text or 0}}}')):
        with pytest.raises(SettingsError, match=r"is not a list of keys|has no policy and keys") as raised:
            decode(text_of)
        assert "hush" not in str(raised.value)
        assert raised.value.__cause__ is None


def test_a_secret_is_in_no_representation() -> None:
    settings = Settings(
        namespace="t",
        agent="a",
        source=Endpoint("redis://h"),
        pod="p",
        signing={"tasks": SigningEntry("Require", KEYS)},
    )
    for shown in (repr(OLD), str(OLD), repr(KEYS), repr(settings)):
        assert OLD.secret not in shown
    assert "old" in repr(OLD)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Reading:
    """Keys as they are at present, and how often they were read."""

    def __init__(self, *keys: SigningKey) -> None:
        self.keys: Keys = keys
        self.policy = "Off"
        self.error: SettingsError | None = None
        self.count = 0

    def __call__(self, stream: str) -> SigningEntry | None:
        assert stream == "tasks"
        self.count += 1
        if self.error is not None:
            raise self.error
        return SigningEntry(self.policy, self.keys)


def test_keys_are_read_again_now_and_then() -> None:
    clock, reading = Clock(), Reading(OLD)
    keyring = Keyring(reading, clock)
    assert keyring.keys("tasks") == keyring.keys("tasks") == (OLD,)
    assert reading.count == 1
    reading.keys = KEYS
    clock.now = 14.9
    assert keyring.keys("tasks") == (OLD,)
    clock.now = 15.0
    assert keyring.keys("tasks") == KEYS


def test_keys_that_are_not_there_are_looked_for_every_second() -> None:
    clock, reading = Clock(), Reading()
    keyring = Keyring(reading, clock)
    assert keyring.keys("tasks") == ()
    reading.keys = KEYS
    clock.now = 0.9
    assert keyring.keys("tasks") == ()
    clock.now = 1.0
    assert keyring.keys("tasks") == KEYS


def test_keys_that_cannot_be_read_are_none() -> None:
    clock, reading = Clock(), Reading(OLD)
    keyring = Keyring(reading, clock)
    assert keyring.keys("tasks") == (OLD,)
    reading.error = SettingsError("no")
    clock.now = 15.0
    assert keyring.keys("tasks") == ()


PRODUCES = Produces("tasks", STREAM, signatures="Require")


def test_a_message_gets_the_signature_of_the_key_that_signs() -> None:
    assert Keyring(Reading(*KEYS)).signature(PRODUCES, BODY, NOW) == ("s", signed())


@pytest.mark.parametrize("of_route", ["Off", "Warn", "Require"])
@pytest.mark.parametrize("of_secret", ["Off", "Warn", "Require"])
def test_whoever_has_a_key_signs_whatever_the_policy(of_route: str, of_secret: str) -> None:
    reading = Reading(*KEYS)
    reading.policy = of_secret
    keyring, stream = Keyring(reading), Produces("tasks", STREAM, signatures=of_route)
    assert keyring.signs(stream)
    assert keyring.signature(stream, BODY, NOW) == ("s", signed())


def test_on_a_stream_without_policy_and_keys_nothing_is_signed() -> None:
    keyring, stream = Keyring(Reading()), Produces("tasks", STREAM)
    assert not keyring.signs(stream)
    assert keyring.signature(stream, BODY, NOW) == ()


@pytest.mark.parametrize("of_route", ["Off", "Warn", "Require", "", "off", "require\n"])
@pytest.mark.parametrize("of_secret", ["Off", "Warn", "Require"])
def test_a_route_can_only_raise_the_policy(of_route: str, of_secret: str) -> None:
    reading = Reading(*KEYS)
    reading.policy = of_secret
    strength = ["Off", "Warn", "Require"]
    known = of_route if of_route in strength else "Require"
    expected = strength[max(strength.index(known), strength.index(of_secret))]
    assert Keyring(reading).policy(Consumes("tasks", STREAM, "coder", signatures=of_route)) == expected
    enforced = Keyring(reading).enforced(Consumes("tasks", STREAM, "coder", signatures=of_route))
    assert enforced == Consumes("tasks", STREAM, "coder", signatures=expected)


def test_a_secret_that_cannot_be_read_any_more_lowers_no_policy() -> None:
    clock, reading = Clock(), Reading(*KEYS)
    reading.policy = "Require"
    keyring = Keyring(reading, clock)
    assert keyring.policy(Produces("tasks", STREAM)) == "Require"
    reading.error = SettingsError("no")
    clock.now = 15.0
    assert keyring.policy(Produces("tasks", STREAM)) == "Require"
    with pytest.raises(SettingsError, match="there is no key"):
        keyring.signature(Produces("tasks", STREAM), BODY)


def test_where_signatures_are_only_warned_of_a_message_goes_without_a_key() -> None:
    assert Keyring(Reading()).signature(Produces("tasks", STREAM, signatures="Warn"), BODY) == ()


def test_where_signatures_are_required_no_message_goes_without_a_key() -> None:
    with pytest.raises(SettingsError, match="no readable entry `signing-tasks`; mount the Secret"):
        Keyring(Reading()).signature(PRODUCES, BODY)


def settings_of(directory: Path) -> Settings:
    return Settings(namespace="team", agent="coder", source=Binding(directory), pod="p")


def test_keys_are_in_the_mounted_secret(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    assert settings.signing_of("tasks") == SigningEntry()
    entry = SigningEntry("Require", KEYS)
    (tmp_path / entry_name("tasks")).write_text(encode_signing(entry))
    assert settings.signing_of("tasks") == entry
    assert settings.signing_of("orders") is None, "beside a stream that is named, it may be a way around it"
    (tmp_path / entry_name("orders")).write_text(encode_signing(SigningEntry()))
    assert settings.signing_of("orders") == SigningEntry()


def test_keys_can_be_given_without_a_secret() -> None:
    settings = Settings(
        namespace="t",
        agent="a",
        source=Endpoint("redis://h"),
        pod="p",
        signing={"tasks": SigningEntry("Require", KEYS)},
    )
    assert settings.signing_of("tasks") == SigningEntry("Require", KEYS)
    assert settings.signing_of("orders") is None
    plain = Settings(namespace="t", agent="a", source=Endpoint("redis://h"), pod="p")
    assert plain.signing_of("orders") == SigningEntry()


def verifier(reading: Reading | None = None, clock: Clock | None = None) -> Verifier:
    return Verifier(Keyring(reading or Reading(*KEYS), clock or Clock()), "tasks", STREAM)


def test_an_unknown_key_is_looked_for_at_once_and_then_every_second() -> None:
    clock, reading = Clock(), Reading(OLD)
    checking = verifier(reading, clock)
    strange = entry(signature=signed(key=NEW))
    assert checking.flaw(entry(signature=signed())) is None
    clock.now = 1.0
    assert checking.flaw(strange) is Reason.UNKNOWN_KEY
    assert checking.flaw(strange) is Reason.UNKNOWN_KEY
    assert reading.count == 2
    reading.keys = KEYS
    clock.now = 2.0
    assert checking.flaw(strange) is None


def test_whether_an_entry_is_a_copy_the_server_says() -> None:
    checking, message = verifier(), entry(signature=signed())
    assert checking.flaw(message) is None
    assert checking.copy_flaw(message, message.origin) is None
    assert checking.copy_flaw(message, message.origin) is None, "the same entry, claimed again"
    again = entry(signature=signed(), added=NOW + 90, origin=message.origin)
    assert checking.copy_flaw(again, message.origin) is None, "its retry"
    copy = entry(signature=signed(at=NOW - 30), added=NOW + 1)
    assert checking.copy_flaw(copy, message.origin) is Reason.REPLAYED


def test_a_copy_that_comes_before_its_message_does_not_take_its_place() -> None:
    checking, message = verifier(), entry(signature=signed())
    assert checking.copy_flaw(entry(signature=signed(), added=NOW + 1), message.origin) is Reason.REPLAYED
    assert checking.copy_flaw(message, message.origin) is None


def test_what_somebody_removes_from_the_server_a_process_still_knows() -> None:
    checking, message = verifier(), entry(signature=signed())
    copy = entry(signature=signed(), added=NOW + 1)
    assert checking.copy_flaw(message, message.origin) is None
    assert checking.copy_flaw(copy, copy.origin) is Reason.REPLAYED


def test_a_process_remembers_no_more_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentstream.identity.keyring._REMEMBERED", 10)
    checking = verifier()
    for number in range(100):
        checking.copy_flaw(entry(b"%d" % number), f"{number}-0")
    assert len(checking._firsts) == 10


WARN, REQUIRE = (
    Consumes("tasks", STREAM, "coder", signatures=policy, max_deliveries=3) for policy in ("Warn", "Require")
)


def decide(read: Entry, policy: Consumes, flaw: Reason | None, now: float = NOW) -> object:
    hold = Hold(read, 1, DELIVERED, math.inf)
    hold.verified(flaw)
    return triage(
        hold,
        policy,
        now,
        agent="coder",
        read=lambda _: None,
    )


@pytest.mark.parametrize("flaw", [Reason.UNSIGNED, Reason.FORGED, Reason.UNKNOWN_KEY, Reason.REPLAYED])
def test_where_it_is_only_warned_of_a_message_is_delivered(flaw: Reason) -> None:
    verdict = decide(entry(), WARN, flaw)
    assert isinstance(verdict, Deliver)
    assert verdict.flaw is flaw


@pytest.mark.parametrize("flaw", [Reason.UNSIGNED, Reason.FORGED, Reason.REPLAYED])
def test_where_signatures_are_required_a_message_without_a_valid_one_is_given_up(flaw: Reason) -> None:
    verdict = decide(entry(b"{"), REQUIRE, flaw)
    assert isinstance(verdict, Undeliverable)
    assert verdict.reason == flaw


def test_what_is_validly_signed_and_no_message_is_malformed() -> None:
    verdict = decide(entry(b"{"), REQUIRE, None)
    assert isinstance(verdict, Undeliverable)
    assert verdict.reason == Reason.MALFORMED


def test_a_policy_that_is_not_known_is_a_strict_one() -> None:
    assert isinstance(
        decide(entry(), Consumes("tasks", STREAM, "coder", signatures="New"), Reason.FORGED), Undeliverable
    )


@pytest.mark.parametrize(
    ("age", "retried", "delay"),
    [(0, False, 1), (9_000, False, 1), (0, True, 1), (7, True, 7), (299, True, 30), (300, True, None)],
)
def test_a_key_that_is_not_known_is_waited_for(age: float, delay: float | None, *, retried: bool) -> None:
    read = entry(origin=f"{int(NOW)}000-0" if retried else None)
    verdict = decide(read, REQUIRE, Reason.UNKNOWN_KEY, NOW + age)
    if delay is None:
        assert isinstance(verdict, Undeliverable)
    else:
        assert isinstance(verdict, Defer)
        assert verdict.delay == delay
    assert verdict.reason == Reason.UNKNOWN_KEY


def test_counts_only_grow() -> None:
    counters = Counters()
    assert [counters.add(UNVERIFIED, "tasks", "coder", "Forged") for _ in range(2)] == [1, 2]
    assert counters.of(UNVERIFIED, "tasks", "coder", "Forged") == 2
    assert counters.of(UNVERIFIED, "tasks", "coder", "Unsigned") == 0
    assert dict(counters) == {(UNVERIFIED, "tasks", "coder", "Forged"): 2}
