"""Durable messages between software agents over Redis and Valkey streams.

Importing the package costs next to nothing: a name is loaded when it is first used.
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

_HOMES = {
    "agent": ("Agent",),
    "consuming.delivery": ("Delivery",),
    "consuming.session": ("Deliveries",),
    "errors": (
        "AccessDenied",
        "AgentStreamError",
        "Backpressure",
        "ConnectionLost",
        "EffectInDoubt",
        "InvalidMessage",
        "InvalidPayload",
        "MessageExpired",
        "NoReply",
        "NoRoute",
        "NoConsumerGroup",
        "ProtocolError",
        "QuorumMissed",
        "Reject",
        "RequestFailed",
        "Retry",
        "SendFailed",
        "ServerRefused",
        "SettingsError",
        "StreamMissing",
    ),
    "identity.settings": ("Settings",),
    "payloads.types": ("json_schema_of", "to_type"),
    "protocol.envelope": ("Message", "message_schema"),
    "protocol.reasons": ("Reason",),
    "sending.notifications": ("Notification", "Notifications"),
    "sending.receipts": ("Receipt", "ReceiptStatus", "ReceiptState"),
    "sending.outgoing": ("MessageOptions", "OutgoingMessage", "SendOptions"),
    "sent": ("SentMessage",),
}
_home_of = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used (PEP 562)."""
    if name not in _home_of:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_home_of[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})
