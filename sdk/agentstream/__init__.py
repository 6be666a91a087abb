"""Durable messages between software agents over Redis and Valkey streams.

Importing the package is cheap: each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentstream.agent import Agent
    from agentstream.consuming.delivery import Delivery
    from agentstream.consuming.session import Deliveries
    from agentstream.errors import (
        AccessDenied,
        AgentStreamError,
        Backpressure,
        ConnectionLost,
        EffectInDoubt,
        InvalidMessage,
        InvalidPayload,
        MessageExpired,
        NoConsumerGroup,
        NoReply,
        NoRoute,
        ProtocolError,
        QuorumMissed,
        Reject,
        RequestFailed,
        Retry,
        SendFailed,
        ServerRefused,
        SettingsError,
        StreamMissing,
    )
    from agentstream.identity.settings import Settings
    from agentstream.payloads.types import json_schema_of, to_type
    from agentstream.protocol.envelope import Message, message_schema
    from agentstream.protocol.reasons import Reason
    from agentstream.sending.notifications import Notification, Notifications
    from agentstream.sending.outgoing import MessageOptions, OutgoingMessage, SendOptions
    from agentstream.sending.receipts import Receipt, ReceiptState, ReceiptStatus
    from agentstream.sent import SentMessage

__all__ = [
    "AccessDenied",
    "Agent",
    "AgentStreamError",
    "Backpressure",
    "ConnectionLost",
    "Deliveries",
    "Delivery",
    "EffectInDoubt",
    "InvalidMessage",
    "InvalidPayload",
    "Message",
    "MessageExpired",
    "MessageOptions",
    "NoConsumerGroup",
    "NoReply",
    "NoRoute",
    "Notification",
    "Notifications",
    "OutgoingMessage",
    "ProtocolError",
    "QuorumMissed",
    "Reason",
    "Receipt",
    "ReceiptState",
    "ReceiptStatus",
    "Reject",
    "RequestFailed",
    "Retry",
    "SendFailed",
    "SendOptions",
    "SentMessage",
    "ServerRefused",
    "Settings",
    "SettingsError",
    "StreamMissing",
    "json_schema_of",
    "message_schema",
    "to_type",
]

# modules of the public names; all others are errors
_HOMES = {
    "Agent": "agent",
    "Deliveries": "consuming.session",
    "Delivery": "consuming.delivery",
    "Message": "protocol.envelope",
    "MessageOptions": "sending.outgoing",
    "Notification": "sending.notifications",
    "Notifications": "sending.notifications",
    "OutgoingMessage": "sending.outgoing",
    "Reason": "protocol.reasons",
    "Receipt": "sending.receipts",
    "ReceiptState": "sending.receipts",
    "ReceiptStatus": "sending.receipts",
    "SendOptions": "sending.outgoing",
    "SentMessage": "sent",
    "Settings": "identity.settings",
    "json_schema_of": "payloads.types",
    "message_schema": "protocol.envelope",
    "to_type": "payloads.types",
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})
