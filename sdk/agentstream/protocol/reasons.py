"""Why a message becomes a dead letter."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """Why a message became a dead letter, where the handler gave no reason of its own.

    `NO_ROUTE`: it returned an answer, and no stream leads to whoever sent the message.
    """

    MALFORMED = "Malformed"
    UNKNOWN_VERSION = "UnknownVersion"
    EXPIRED = "Expired"
    MAX_DELIVERIES = "MaxDeliveries"
    NO_HANDLER = "NoHandler"
    NO_ROUTE = "NoRoute"
    INVALID_PAYLOAD = "InvalidPayload"
    CONTRACT_VIOLATED = "ContractViolated"
    UNSIGNED = "Unsigned"
    FORGED = "Forged"
    UNKNOWN_KEY = "UnknownKey"
    REPLAYED = "Replayed"


FLAWS: Final = {
    Reason.UNSIGNED: "the group takes signed messages only",
    Reason.FORGED: "the signature does not fit the message and its stream",
    Reason.UNKNOWN_KEY: "the message is signed with a key that this agent does not have",
    Reason.REPLAYED: "the message was signed for another time, or came before: it is a copy",
}
"""What can be wrong with a signature, in words."""
