"""Every error that the SDK raises on purpose, as one small hierarchy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agentstream.printable import text_of
from agentstream.sent import SentMessage

_SAID_OF_A_GROUP = 5
_LONGEST_TIME = 100 * 365 * 86_400.0


class AgentStreamError(Exception):
    """Base of all errors of the SDK."""


def error_name(error: AgentStreamError) -> str:
    """The name of the public class of an error."""
    internal = (WireClosed, Unanswered, KeyMissing)
    public = (kind for kind in type(error).__mro__ if kind.__module__ == __name__ and kind not in internal)
    return next(public).__name__


def error_text(error: BaseException) -> str:
    """The name of an error's class and what it says; of a group, also what the first ones in it are."""
    said = text_of(error)
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if not isinstance(error, BaseExceptionGroup):
        return text
    inner, waiting = list[str](), list[BaseException]([error])
    while waiting and len(inner) < _SAID_OF_A_GROUP:
        one = waiting.pop()
        if isinstance(one, BaseExceptionGroup):
            waiting.extend(reversed(one.exceptions))
        else:
            inner.append(error_text(one))
    return f"{text}: {'; '.join(inner)}"


class SettingsError(AgentStreamError):
    """The environment or the mounted Secret lacks a setting; the message names it."""


class KeyMissing(SettingsError):  # noqa: N818 - named after what is wrong
    """The stream requires signatures, and the agent has no key for it, or not yet."""


class InvalidMessage(AgentStreamError):  # noqa: N818 - a public name says what is wrong
    """A message that does not fit the envelope's schema.

    Attributes:
        reason: `Malformed`, `TooLarge`, or `UnknownVersion` for a version of the envelope that this SDK does
            not know.
    """

    def __init__(self, message: str, *, reason: str = "Malformed") -> None:
        super().__init__(message)
        self.reason = reason


class InvalidPayload(InvalidMessage):
    """A payload that does not fit its handler's type or the stream's contract.

    Attributes:
        reason: `InvalidPayload`, `ContractViolated`, or `UnknownVersion` for a schema version that no handler
            knows.
    """

    def __init__(self, message: str, *, reason: str = "InvalidPayload") -> None:
        super().__init__(message, reason=reason)


class ProtocolError(AgentStreamError):
    """Data on the server that this version cannot read."""


class NoRoute(AgentStreamError):  # noqa: N818
    """No declared stream leads from this agent to the addressee; the message says what is declared."""


class NoConsumerGroup(AgentStreamError):  # noqa: N818
    """The agent consumes no group of the stream; the message says what is declared."""


class Backpressure(AgentStreamError):  # noqa: N818
    """Until the deadline, the stream had as many unsettled entries as it may, or memory was full."""


class MessageExpired(AgentStreamError):  # noqa: N818
    """The message's `expires_at` passed before it could be sent; it was not sent."""


class SendFailed(AgentStreamError):  # noqa: N818
    """Some of several messages were not sent, or it is unknown whether they were.

    Attributes:
        results: the SentMessage or the error of each message, in order.
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
    """This side has closed the connection; another attempt would fail, too."""


class Unanswered(ConnectionLost):
    """No reply until the deadline: sending the message under another number could add it twice."""


class ServerRefused(AgentStreamError):  # noqa: N818
    """The server replied with another error."""


class QuorumMissed(AgentStreamError):  # noqa: N818
    """Too few groups acknowledged a broadcast before the deadline, or too few can still do so.

    Attributes:
        acknowledged: the groups that have.
        outstanding: the groups that have not yet.
        dead: the groups in which the message is a dead letter.
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
    """No answer to a request came before the deadline."""


class RequestFailed(AgentStreamError):  # noqa: N818
    """A request became a dead letter.

    Attributes:
        reason: the reason of the dead letter.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class EffectInDoubt(AgentStreamError):  # noqa: N818
    """An earlier attempt began an effect that must not be repeated; it is unknown whether it came about."""


class Retry(Exception):  # noqa: N818 - names what is to happen
    """Raised in a handler: try the message again later.

    Args:
        reason: stands in the dead letter.
        after: seconds from now; None for the delay of the group's policy.

    Raises:
        ValueError: `after` is no time.
    """

    # of a class of one's own that does not call this one's `__init__`
    reason: str = ""
    after: float | None = None

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        check_delay(after)
        super().__init__(reason)
        self.reason = reason
        self.after = after


class Reject(Exception):  # noqa: N818 - as above
    """Raised in a handler: move the message to the dead letters, as another attempt would fail, too.

    Args:
        reason: stands in the dead letter.
    """

    reason: str = ""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check_timeout(timeout: object) -> None:
    """Raises TypeError if a timeout is not a number of seconds, or infinite."""
    if not isinstance(timeout, int | float) or math.isnan(timeout):
        text = (repr(timeout) if isinstance(timeout, str) else text_of(timeout))[:50]
        raise TypeError(f"timeout= is a number of seconds, or math.inf to wait for ever; not {text}")


def check_delay(after: object) -> None:
    """Raises ValueError if a delay is neither None nor a number of seconds."""
    if after is not None:
        check_seconds(after, "after")


def check_seconds(value: object, name: str) -> None:
    """Raises ValueError if an argument is not a number of seconds, of a hundred years at most."""
    try:
        # not a text with a number in it
        is_time = not isinstance(value, str | bytes) and abs(float(value)) <= _LONGEST_TIME  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        is_time = False
    if not is_time:
        raise ValueError(f"{name}= must be a number of seconds, not {text_of(value)[:50]}")
