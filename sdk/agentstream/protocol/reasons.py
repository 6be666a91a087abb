"""Reasons of dead letters."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Reason(StrEnum):
    """The reason of a dead letter, unless the handler gave one of its own.

    `NO_ROUTE`: the handler returned an answer, and no stream leads to the sender of the message.
    `INVALID_ANSWER`: it returned what cannot be sent as an answer.
    """

    MALFORMED = "Malformed"
    TOO_LARGE = "TooLarge"
    UNKNOWN_VERSION = "UnknownVersion"
    EXPIRED = "Expired"
    MAX_DELIVERIES = "MaxDeliveries"
    NO_HANDLER = "NoHandler"
    NO_ROUTE = "NoRoute"
    INVALID_ANSWER = "InvalidAnswer"
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
    Reason.REPLAYED: "the message is a copy: it was signed at another time, or came on another entry before",
}
"""Explains each reason for which a signature is not valid."""
