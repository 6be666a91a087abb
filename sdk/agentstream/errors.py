"""Every error that the SDK raises on purpose, as one small hierarchy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agentstream.sent import SentMessage


class AgentStreamError(Exception):
    """Base of all errors of the SDK."""


def error_name(error: AgentStreamError) -> str:
    """The public name of what an error is."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)


class SettingsError(AgentStreamError):
    """The environment or the mounted Secret does not say how to connect; the message says what is missing."""


class InvalidMessage(AgentStreamError):  # noqa: N818 - a public name says what is wrong
    """A message that does not fit the envelope's schema.

    Attributes:
        reason: `Malformed`, or `UnknownVersion` for an envelope of a version that this SDK does not know.
    """

    def __init__(self, message: str, *, reason: str = "Malformed") -> None:
        super().__init__(message)
        self.reason = reason


class InvalidPayload(InvalidMessage):
    """A payload that does not fit the type its handler wants, or the stream's contract.

    Attributes:
        reason: `InvalidPayload`, `ContractViolated`, or `UnknownVersion` for a schema version that no handler
            knows.
    """

    def __init__(self, message: str, *, reason: str = "InvalidPayload") -> None:
        super().__init__(message, reason=reason)


class ProtocolError(AgentStreamError):
    """The server holds something that this version cannot read."""


class NoRoute(AgentStreamError):  # noqa: N818
    """No declared stream leads from this agent to the addressee; the message says what is declared."""


class NoConsumerGroup(AgentStreamError):  # noqa: N818
    """The agent consumes no group of the stream; the message says what is declared."""


class Backpressure(AgentStreamError):  # noqa: N818
    """Until the deadline, the stream held as many unsettled entries as it may, or memory was full."""


class MessageExpired(AgentStreamError):  # noqa: N818
    """A message lost its meaning while it waited to be sent; it was not sent."""


class SendFailed(AgentStreamError):  # noqa: N818
    """Some of several messages were not sent, or it is not known whether they were.

    Attributes:
        results: of each message, in their order, the SentMessage or the error.
    """

    def __init__(self, results: Sequence[SentMessage | BaseException]) -> None:
        errors = [result for result in results if isinstance(result, BaseException)]
        first = f": {errors[0]}" if errors else ""
        super().__init__(f"{len(errors)} of {len(results)} messages were not sent{first}")
        self.results: tuple[SentMessage | BaseException, ...] = tuple(results)


class StreamMissing(AgentStreamError):  # noqa: N818
    """The stream is declared but does not exist on the server, and did not until the deadline."""


class AccessDenied(AgentStreamError):  # noqa: N818
    """The server refuses the credentials or a command."""


class ConnectionLost(AgentStreamError):  # noqa: N818
    """The server cannot be reached, or the connection broke before the reply: the outcome is unknown."""


class WireClosed(ConnectionLost):
    """This side has closed the connection: trying again is of no use."""


class ServerRefused(AgentStreamError):  # noqa: N818
    """The server answered with an error of its own."""


class QuorumMissed(AgentStreamError):  # noqa: N818
    """Too few groups acknowledged a broadcast before the deadline, or too few can still do so.

    Attributes:
        acknowledged: the groups that have.
        outstanding: the groups that have not yet.
        dead: the groups that gave the message up.
    """

    def __init__(
        self,
        message: str,
        *,
        acknowledged: tuple[str, ...] = (),
        outstanding: tuple[str, ...] = (),
        dead: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.acknowledged = acknowledged
        self.outstanding = outstanding
        self.dead = dead


class NoReply(AgentStreamError):  # noqa: N818
    """Nobody answered a request before the deadline."""


class RequestFailed(AgentStreamError):  # noqa: N818
    """Whoever was asked gave the request up.

    Attributes:
        reason: why the request became a dead letter.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class EffectInDoubt(AgentStreamError):  # noqa: N818
    """An earlier attempt began an effect that must not be repeated; whether it came about is not known."""


class Retry(Exception):  # noqa: N818 - says what is to happen, not that something is wrong
    """Raised in a handler: try the message again later.

    Args:
        reason: why, for whoever reads the dead letter.
        after: seconds from now; by the group's policy if None.

    Raises:
        ValueError: `after` is no time.
    """

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        check_delay(after)
        super().__init__(reason)
        self.reason = reason
        self.after = after


class Reject(Exception):  # noqa: N818 - as above
    """Raised in a handler: trying the message again is of no use, it becomes a dead letter.

    Args:
        reason: why, for whoever reads the dead letter.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_delay(after: float | None) -> None:
    """What is no time must be found out before it is decided what becomes of a message."""
    if after is not None and not math.isfinite(after * 1000):
        raise ValueError(f"after= is a number of seconds, not {after}")
