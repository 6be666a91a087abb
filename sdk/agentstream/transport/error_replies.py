"""What an error reply of the server means."""

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
    """The SDK's error for the text of an error reply; `address` is fit for a log."""
    if text.startswith(("BACKPRESSURE", "OOM")):
        return Backpressure(text)
    if text.startswith("NOSTREAM"):
        return StreamMissing(text)
    # what a function may not do, the error of its script tells
    if text.startswith(_NO_ACCESS) or "ACL failure" in text:
        return AccessDenied(f"{address}: {text}")
    if text.startswith(_FULL):
        return ConnectionLost(f"{address}: {text}")
    if text.startswith(_TOO_LARGE):
        # the server hangs up, too: what was sent after it has no reply
        return InvalidMessage(f"{address}: larger than the server takes, by its proto-max-bulk-len: {text}")
    return ServerRefused(text)


def refuses_connections(text: str) -> bool:
    """Whether an error reply is what the server says to a new connection before it hangs up."""
    return text.startswith((_FULL, _PROTECTED))


def is_not_ready(error: AgentStreamError) -> bool:
    """Whether the server did nothing because it loads its data, fails over or is being restored."""
    return isinstance(error, AccessDenied) or (
        isinstance(error, ServerRefused) and any(words in str(error) for words in _NOT_READY)
    )


def group_is_gone(error: AgentStreamError) -> bool:
    """Whether an error says that there is no such group or stream, so that nothing is pending in it."""
    return isinstance(error, ServerRefused) and "NOGROUP" in str(error)
