"""Turns error replies of the server into the SDK's errors, and tells which errors pass by waiting."""

from __future__ import annotations

from agentstream.errors import (
    AccessDenied,
    AgentStreamError,
    Backpressure,
    ConnectionLost,
    InvalidMessage,
    KeyMissing,
    ServerRefused,
    StreamMissing,
    Unanswered,
    WireClosed,
)

_FULL = "ERR max number of clients"
_PROTECTED = "DENIED"
_TOO_LARGE = "ERR Protocol error: invalid bulk length"
_NO_ACCESS = ("NOAUTH", "WRONGPASS", "NOPERM", _PROTECTED)

# The table of `passes`. Errors that are in neither list stay: the same call would fail again.
_PASSES: dict[type[Exception], bool] = {
    # the server comes back, unless this side has ended the connection or must not send twice
    ConnectionLost: True,
    WireClosed: False,
    Unanswered: False,
    # credentials are rotated, rights are granted, Secrets get their keys
    AccessDenied: True,
    KeyMissing: True,
    # consumers drain the stream, the operator creates it
    Backpressure: True,
    StreamMissing: True,
}
_PASSING_CODES = {
    "LOADING",  # the server reads its data
    "BUSY",  # a script runs for long
    "MISCONF",  # the disk is full, or cannot be written
    # a failover is under way
    "READONLY",
    "MASTERDOWN",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "WRONGTYPE",  # somebody uses the key for something else, until it is deleted
}
_PASSING_WORDS = (
    "Function not found",  # the operator loads the library again
    "Script killed",  # an administrator ended what was running
)


def error_from_reply(text: str, address: str) -> AgentStreamError:
    """The SDK's error for the text of an error reply; `address` is without credentials."""
    if text.startswith(("BACKPRESSURE", "OOM")):
        return Backpressure(text)
    if text.startswith("NOSTREAM"):
        return StreamMissing(text)
    # if a function is denied a command, the error of its script says so
    if text.startswith(_NO_ACCESS) or "ACL failure" in text:
        return AccessDenied(f"{address}: {text}")
    if text.startswith(_FULL):
        return ConnectionLost(f"{address}: {text}")
    if text.startswith(_TOO_LARGE):
        # the server closes the connection, too: later commands get no reply
        return InvalidMessage(f"{address}: an argument is larger than proto-max-bulk-len allows: {text}")
    return ServerRefused(text)


def refuses_connections(text: str) -> bool:
    """Whether the server closes a new connection after this error reply."""
    return text.startswith((_FULL, _PROTECTED))


def passes(error: AgentStreamError) -> bool:
    """Whether the same call may succeed later: the one table that everything asks which tries again.

    Loops that read, sweep or renew for as long as a process consumes go on after any error.
    """
    if isinstance(error, ServerRefused):
        text = str(error)
        return text.partition(" ")[0] in _PASSING_CODES or any(words in text for words in _PASSING_WORDS)
    return next((_PASSES[kind] for kind in type(error).__mro__ if kind in _PASSES), False)


def group_is_gone(error: AgentStreamError) -> bool:
    """Whether there is no such group or stream, so that nothing is pending in it."""
    return isinstance(error, ServerRefused) and "NOGROUP" in str(error)
