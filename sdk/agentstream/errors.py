"""Every error that the SDK raises on purpose, as one small hierarchy."""

from __future__ import annotations


class AgentStreamError(Exception):
    """Base of all errors of the SDK."""


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


class ProtocolError(AgentStreamError):
    """The server holds something that this version cannot read."""


class NoRoute(AgentStreamError):  # noqa: N818
    """No declared stream leads from this agent to the addressee; the message says what is declared."""


class NotConsumer(AgentStreamError):  # noqa: N818
    """The agent consumes no group of the stream; the message says what is declared."""


class Backpressure(AgentStreamError):  # noqa: N818
    """Until the deadline, the stream held as many unsettled entries as it may, or memory was full."""


class StreamMissing(AgentStreamError):  # noqa: N818
    """The stream is declared but does not exist on the server, and did not until the deadline."""


class AccessDenied(AgentStreamError):  # noqa: N818
    """The server refuses the credentials or a command."""


class ConnectionLost(AgentStreamError):  # noqa: N818
    """The server cannot be reached, or the connection broke before the reply: the outcome is unknown."""


class ServerRefused(AgentStreamError):  # noqa: N818
    """The server answered with an error of its own."""
