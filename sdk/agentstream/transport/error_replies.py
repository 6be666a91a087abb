"""Turns error replies of the server into the SDK's errors, and tells them apart."""

from __future__ import annotations

from agentstream.errors import (
    AccessDenied,
    AgentStreamError,
    Backpressure,
    ConnectionLost,
    InvalidMessage,
    ServerRefused,
    StreamMissing,
)

_FULL = "ERR max number of clients"
_PROTECTED = "DENIED"
_TOO_LARGE = "ERR Protocol error: invalid bulk length"
_NOT_READY = ("LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "Function not found")
_NO_ACCESS = ("NOAUTH", "WRONGPASS", "NOPERM", _PROTECTED)


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
        return InvalidMessage(
            f"{address}: an argument is larger than the server's proto-max-bulk-len allows: {text}"
        )
    return ServerRefused(text)


def refuses_connections(text: str) -> bool:
    """Whether the server closes a new connection after this error reply."""
    return text.startswith((_FULL, _PROTECTED))


def is_not_ready(error: AgentStreamError) -> bool:
    """Whether the server refused because it loads its data, fails over or is being restored."""
    return isinstance(error, AccessDenied) or (
        isinstance(error, ServerRefused) and any(words in str(error) for words in _NOT_READY)
    )


def group_is_gone(error: AgentStreamError) -> bool:
    """Whether there is no such group or stream, so that nothing is pending in it."""
    return isinstance(error, ServerRefused) and "NOGROUP" in str(error)
