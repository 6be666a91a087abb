"""What error replies mean to callers."""

from __future__ import annotations

import pytest

from agentstream.errors import (
    AccessDenied,
    AgentStreamError,
    Backpressure,
    ConnectionLost,
    InvalidMessage,
    ServerRefused,
    StreamMissing,
)
from agentstream.transport.error_replies import error_from_reply, group_is_gone, is_not_ready


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


@pytest.mark.parametrize(
    ("text", "not_ready"),
    [
        ("LOADING Redis is loading the dataset in memory", True),
        ("READONLY You can't write against a read only replica.", True),
        ("MASTERDOWN Link with MASTER is down", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("ERR Function not found", True),
        ("WRONGPASS invalid username-password pair or user is disabled.", True),
        ("NOGROUP No such key '{a}' or consumer group 'g'", False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
        ("ERR Protocol error: invalid bulk length", False),
    ],
)
def test_a_server_that_is_not_ready_has_done_nothing(text: str, *, not_ready: bool) -> None:
    assert is_not_ready(error_from_reply(text, "redis://host")) is not_ready
