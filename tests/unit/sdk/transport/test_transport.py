"""Addresses of servers, the first words on a connection, delays between tries, error replies."""

from __future__ import annotations

from importlib.metadata import version

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentstream import errors
from agentstream.consuming.settling import retry_delay
from agentstream.errors import (
    AccessDenied,
    AgentStreamError,
    Backpressure,
    ConnectionLost,
    EffectInDoubt,
    InvalidMessage,
    InvalidPayload,
    KeyMissing,
    MessageExpired,
    NoConsumerGroup,
    NoReply,
    NoRoute,
    ProtocolError,
    QuorumMissed,
    RequestFailed,
    SendFailed,
    ServerRefused,
    SettingsError,
    StreamMissing,
    Unanswered,
    WireClosed,
)
from agentstream.protocol.routes import Consumes
from agentstream.transport.endpoint import Endpoint, Target, greeted, handshake
from agentstream.transport.error_replies import error_from_reply, group_is_gone, passes
from agentstream.transport.retry import Backoff, retry_until


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("redis://host", Target(host="host")),
        ("redis://host/", Target(host="host")),
        ("redis://host:6390/3", Target(host="host", port=6390, db=3)),
        ("redis://host?db=4", Target(host="host", db=4)),
        ("rediss://host", Target(host="host", tls=True)),
        ("redis://[::1]:6390", Target(host="::1", port=6390)),
        ("redis://[fe80::1%25eth0]", Target(host="fe80::1%eth0")),
        ("redis://user:p%40ss%2F%25@host", Target(host="host", username="user", password="p@ss/%")),
        ("redis://us%3Aer:p@ss@host", Target(host="host", username="us:er", password="p@ss")),
        ("redis://:pass@host", Target(host="host", password="pass")),
        ("redis://user@host", Target(host="host", username="user")),
        ("unix:///run/a%20b.sock", Target(path="/run/a b.sock")),
        (
            "unix://user:pass@/run/a.sock?db=2",
            Target(path="/run/a.sock", db=2, username="user", password="pass"),
        ),
    ],
)
def test_an_address_says_where_and_who(url: str, target: Target) -> None:
    assert Endpoint(url).target() == target


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "write redis://host:port"),
        ("host:6379", "write redis://host:port"),
        ("http://host", "write redis://host:port"),
        ("redis://", "write redis://host:port"),
        ("redis://host:0", "write redis://host:port"),
        ("unix://", "write redis://host:port"),
        ("unix://relative.sock", "write redis://host:port"),
        ("redis://host:port", "cannot be parsed"),
        ("redis://host:70000", "cannot be parsed"),
        ("redis://[::1", "cannot be parsed"),
        ("redis://host?db", "cannot be parsed"),
        ("redis://user:s3cret#1@host", "cannot be parsed"),
        ("127.0.0.1:6379", "write redis://host:port"),
        ("user:s3cret@host:6379", "write redis://host:port"),
        ("//host:6379/0", "write redis://host:port"),
        ("redis:/user:s3cret@host", "the database must be a number"),
        ("s3cret://user@host", "write redis://host:port"),
        ("redis://host#fragment", "`#` must be percent-encoded"),
        ("redis://host?timeout=3", "the only option is db="),
        ("redis://host?password=a@s3cret", "the only option is db="),
        ("redis://host#a@s3cret", "`#` must be percent-encoded"),
        ("redis://host/first", "the database must be a number"),
        ("redis://host?db=²", "the database must be a number"),
        ("redis://a..b", "the host is not a valid name"),
    ],
)
def test_what_is_no_address_is_said_without_the_password(url: str, why: str) -> None:
    with pytest.raises(SettingsError, match="is no address of a server") as raised:
        Endpoint(url).target()
    assert why in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_credentials_that_are_given_apart_come_before_those_of_the_address() -> None:
    target = Endpoint("redis://old:older@host", "new", "newer").target()
    assert (target.username, target.password) == ("new", "newer")
    assert Endpoint("redis://user:old@host", password="new").target().username == "user"


def test_an_endpoint_does_not_show_secrets() -> None:
    endpoint = Endpoint("redis://user:s3cret@host:1/2?db=3", password="s3cret")
    assert repr(endpoint) == "Endpoint(redis://host:1/2)"
    assert endpoint.address == "redis://host:1/2"
    assert repr(endpoint.target()) == "Target(host:1)"
    assert repr(Endpoint("unix:///run/a.sock", password="s3cret").target()) == "Target(/run/a.sock)"


def test_only_an_encrypted_connection_has_a_context() -> None:
    assert Endpoint("redis://host").tls() is None
    context = Endpoint("rediss://host").tls()
    assert context is not None
    assert context.check_hostname


NAMED = [
    ("CLIENT", "SETNAME", "me"),
    ("CLIENT", "SETINFO", "LIB-NAME", "agentstream"),
    ("CLIENT", "SETINFO", "LIB-VER", version("agentstream")),
]


@pytest.mark.parametrize(
    ("url", "protocol", "commands"),
    [
        ("redis://host", 2, NAMED),
        ("redis://host/0", 2, NAMED),
        ("redis://user:pass@host", 2, [("AUTH", "user", "pass"), *NAMED]),
        ("redis://:pass@host", 2, [("AUTH", "default", "pass"), *NAMED]),
        ("redis://user@host/7", 2, [("AUTH", "user", ""), *NAMED, ("SELECT", "7")]),
        ("redis://host", 3, [("HELLO", "3"), *NAMED]),
        ("redis://user:pass@host", 3, [("HELLO", "3", "AUTH", "user", "pass"), *NAMED]),
    ],
)
def test_a_connection_says_first_who_it_is(url: str, protocol: int, commands: list[tuple[str, ...]]) -> None:
    assert handshake(Endpoint(url), "me", protocol) == commands


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("WRONGPASS invalid username-password pair or user is disabled.", AccessDenied),
        ("NOAUTH HELLO must be called with the client already authenticated", AccessDenied),
        ("DENIED Running in protected mode", AccessDenied),
        ("ERR max number of clients reached", ConnectionLost),
        ("NOPROTO unsupported protocol version", ServerRefused),
    ],
)
def test_a_refused_greeting_is_an_error(reply: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        greeted([("AUTH", "user", "pass"), *NAMED], [hiredis.ReplyError(reply), b"OK", b"OK", b"OK"], "here")


def test_what_the_connection_is_called_does_not_matter() -> None:
    refused = hiredis.ReplyError("NOPERM User a has no permissions to run the 'client|setinfo' command")
    greeted(NAMED, [b"OK", refused, refused], "here")
    with pytest.raises(ConnectionLost, match="here: ERR max number"):
        greeted(NAMED, [hiredis.ReplyError("ERR max number of clients reached"), b"OK", b"OK"], "here")


POLICY = Consumes("tasks", "{t}", "coder", backoff_initial=1_000, backoff_factor=2.0, backoff_max=5_000)


def test_delays_follow_the_policy() -> None:
    assert [retry_delay(POLICY, attempt, 0) for attempt in range(1, 6)] == [1_000, 2_000, 4_000, 5_000, 5_000]


@given(st.integers(1, 10**12), st.floats(0, 1))
def test_jitter_only_adds_and_at_most_a_quarter(attempt: int, jitter: float) -> None:
    delay = retry_delay(POLICY, attempt, 0)
    assert delay <= retry_delay(POLICY, attempt, jitter) <= delay * 1.25


def test_pauses_double_up_to_the_longest_and_start_anew_after_success() -> None:
    backoff = Backoff(1, 5, lambda: 1.0)
    assert [backoff.next() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next() == 1


def test_pauses_are_spread_over_their_second_half() -> None:
    assert Backoff(1, 5, lambda: 0.0).next() == 0.5


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("BACKPRESSURE {a} holds 100 entries", Backpressure),
        ("OOM command not allowed when used memory > 'maxmemory'.", Backpressure),
        ("NOSTREAM {a}", StreamMissing),
        ("NOAUTH Authentication required.", AccessDenied),
        ("WRONGPASS invalid username-password pair or user is disabled.", AccessDenied),
        ("NOPERM User a has no permissions to run the 'xadd' command", AccessDenied),
        ("ERR ACL failure in script: User a has no permissions to run the 'xadd' command", AccessDenied),
        ("ERR max number of clients reached", ConnectionLost),
        ("ERR Protocol error: invalid bulk length", InvalidMessage),
        ("LOADING Redis is loading the dataset in memory", ServerRefused),
        ("READONLY You can't write against a read only replica.", ServerRefused),
        ("MASTERDOWN Link with MASTER is down", ServerRefused),
        ("ERR unknown command 'NOPE'", ServerRefused),
    ],
)
def test_an_error_reply_says_what_is_the_matter(text: str, error: type[AgentStreamError]) -> None:
    refused = error_from_reply(text, "redis://host")
    assert type(refused) is error
    assert text in str(refused)


def test_only_a_refusal_says_that_a_group_is_gone() -> None:
    assert group_is_gone(error_from_reply("NOGROUP No such key '{a}' or consumer group 'g'", "redis://host"))
    assert not group_is_gone(error_from_reply("ERR no such key", "redis://host"))
    assert not group_is_gone(ConnectionLost("NOGROUP: the server closed the connection"))


# what the same call may be tried again after: all errors of the SDK, and all codes of replies
PASSING: dict[type[AgentStreamError], bool] = {
    AccessDenied: True,
    Backpressure: True,
    ConnectionLost: True,
    KeyMissing: True,
    StreamMissing: True,
    AgentStreamError: False,
    EffectInDoubt: False,
    InvalidMessage: False,
    InvalidPayload: False,
    MessageExpired: False,
    NoConsumerGroup: False,
    NoReply: False,
    NoRoute: False,
    ProtocolError: False,
    QuorumMissed: False,
    RequestFailed: False,
    SendFailed: False,
    ServerRefused: False,
    SettingsError: False,
    Unanswered: False,
    WireClosed: False,
}


def test_of_every_error_it_is_known_whether_it_passes() -> None:
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, AgentStreamError)
        and kind.__module__ == errors.__name__
    }
    assert kinds == set(PASSING)
    made = {
        kind: kind([])
        if kind is SendFailed
        else kind("no", reason="x")
        if kind is RequestFailed
        else kind("no")
        for kind in kinds
    }
    assert {kind: passes(error) for kind, error in made.items()} == PASSING


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("LOADING Redis is loading the dataset in memory", True),
        ("BUSY Redis is busy running a script.", True),
        ("MISCONF Errors writing to the AOF file: No space left on device", True),
        ("READONLY You can't write against a read only replica.", True),
        ("MASTERDOWN Link with MASTER is down", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("CLUSTERDOWN The cluster is down", True),
        ("TRYAGAIN Multiple keys request during rehashing of slot", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        ("NOSTREAM {a}", True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", True),
        ("ERR Function not found", True),
        ("ERR Error running script: Script killed by user with FUNCTION KILL.", True),
        ("ERR max number of clients reached", True),
        ("WRONGPASS invalid username-password pair or user is disabled.", True),
        ("NOPERM User a has no permissions to run the 'xadd' command", True),
        ("NOGROUP No such key '{a}' or consumer group 'g'", False),
        ("BUSYGROUP Consumer Group name already exists", False),
        ("CROSSSLOT Keys in request don't hash to the same slot", False),
        ("ERR unknown command 'NOPE'", False),
        ("ERR Protocol error: invalid bulk length", False),
        ("ERR Elements are too large to be stored", False),
        ("STALE a later batch was added, or the result of this one has expired", False),
    ],
)
def test_the_text_of_a_refusal_says_whether_it_passes(text: str, *, passing: bool) -> None:
    assert passes(error_from_reply(text, "redis://host")) is passing


@pytest.mark.parametrize(
    "error", [kind for kind, passing in PASSING.items() if not passing and kind is not SendFailed]
)
async def test_what_does_not_pass_is_not_tried_again(error: type[AgentStreamError]) -> None:
    tries = 0

    async def attempt() -> None:
        nonlocal tries
        tries += 1
        raise RequestFailed("no", reason="x") if error is RequestFailed else error("no")

    with pytest.raises(error):
        await retry_until(attempt, 60)
    assert tries == 1
