"""Upcasts payloads of older schema versions, step by step, to the version of a handler."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

from agentstream.errors import InvalidPayload, error_text
from agentstream.payloads.types import is_raw, reader_of, version_of
from agentstream.protocol.contracts import FIRST_VERSION
from agentstream.protocol.envelope import Message
from agentstream.protocol.reasons import Reason
from agentstream.signals import is_of_signal

Upcast = Callable[[dict[str, Any]], dict[str, Any]]
Read = Callable[[Message], Any]
"""Converts the payload of a message to the type and version of its handler, or raises InvalidMessage."""


class Upcasters:
    """Functions from the payload of one version to that of the next, for each type of message."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, int], Upcast] = {}

    def add(self, message_type: str, from_version: int, function: Upcast) -> None:
        """Adds an upcaster.

        Raises:
            ValueError: there is one already, or there is no such version.
            TypeError: the function is asynchronous.
        """
        if from_version < FIRST_VERSION:
            raise ValueError(f"versions are counted from {FIRST_VERSION}")
        if inspect.iscoroutinefunction(function):
            raise TypeError("an upcaster is a plain function, not an asynchronous one")
        if (message_type, from_version) in self._steps:
            raise ValueError(f"there is an upcaster for version {from_version} of {message_type} already")
        self._steps[message_type, from_version] = function

    def bring(self, message: Message, version: int) -> dict[str, Any]:
        """Upcasts a copy of the payload of a message to a version.

        Raises:
            InvalidPayload: an upcaster is missing or failed.
        """
        start = message.schema_version or FIRST_VERSION
        if start == version:
            return message.payload
        payload = copy.deepcopy(message.payload)
        for number, step in enumerate(self._way(message.type, start, version), start):
            try:
                payload = _stepped(step, payload)
            except BaseException as error:  # an upcaster may raise anything
                if is_of_signal(error):
                    raise
                what = f"the upcaster for version {number} of {message.type} failed"
                raise InvalidPayload(f"{what}: {error_text(error)}") from error
        return payload

    def _way(self, message_type: str, start: int, version: int) -> list[Upcast]:
        steps = [self._steps.get((message_type, number)) for number in range(start, version)]
        found = [step for step in steps if step is not None]
        if start > version or len(found) < len(steps):
            what = f"{message_type} has version {start} of its payload"
            known = self._known(message_type, version)
            raise InvalidPayload(f"{what}, and {known} can be handled", reason=Reason.UNKNOWN_VERSION)
        return found

    def _known(self, message_type: str, version: int) -> str:
        oldest = version
        while (message_type, oldest - 1) in self._steps:
            oldest -= 1
        return f"version {version}" if oldest == version else f"versions {oldest} to {version}"


def message_reader(payload_type: Any, version: int | None, upcasters: Upcasters) -> Read:
    """Makes a function that converts payloads to one type and version.

    Args:
        payload_type: the type.
        version: the version; None for the type's own, or the first. Raw payloads are then of any version.
        upcasters: for older ones.

    Raises:
        TypeError: it is no type of payloads.
        ValueError: there is no such version.
    """
    read = reader_of(payload_type)
    if version is None:
        version = version_of(payload_type)
    if version is None:
        if is_raw(payload_type):
            return lambda message: message.payload
        version = FIRST_VERSION
    if version < FIRST_VERSION:
        raise ValueError(f"versions are counted from {FIRST_VERSION}")
    wanted = version
    return lambda message: read(upcasters.bring(message, wanted))


def _stepped(step: Upcast, payload: dict[str, Any]) -> dict[str, Any]:
    brought = step(payload)
    if not isinstance(brought, dict):
        raise TypeError(f"it returned {type(brought).__name__}, not a dict")
    return brought
