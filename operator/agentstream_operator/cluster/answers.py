"""Decodes answers of the API server; one object that is nested too deeply keeps no other from being read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

DEEPEST = 128
"""Levels of an answer that are decoded; a resource may have half as many, a decoder takes a thousand."""

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]|[\]}]', re.DOTALL)
_DEEPER = b'"..."'


class Metadata(msgspec.Struct):
    """Metadata of a list: its version, and where it goes on."""

    version: str = msgspec.field(name="resourceVersion", default="")
    rest: str = msgspec.field(name="continue", default="")


class Page(msgspec.Struct):
    """Part of a list, with the bytes of its objects: decoded, these may take fifty times as much.

    Iterating decodes one object after the other.
    """

    metadata: Metadata
    items: list[msgspec.Raw]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(decode, self.items)


T = TypeVar("T")


def decode(data: bytes | msgspec.Raw) -> Any:
    """Decodes JSON. What is nested more than `DEEPEST` levels is a text, if not all of it can be decoded.

    Raises:
        msgspec.DecodeError: this is not JSON.
    """
    return _decode(data, object)


def decode_page(data: bytes) -> Page:
    """Decodes an answer to a list.

    Raises:
        msgspec.DecodeError: this is not JSON, or no list.
    """
    return _decode(data, Page)


def _decode(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        return msgspec.json.decode(_cut(bytes(data)), type=kind)


def _cut(data: bytes) -> bytes:
    """Replaces what is nested too deeply."""
    kept, level, start = bytearray(), 0, 0
    for token in _TOKEN.finditer(data):
        match data[token.start()]:
            case 0x5B | 0x7B:
                if level == DEEPEST:
                    kept += data[start : token.start()] + _DEEPER
                level += 1
            case 0x5D | 0x7D:
                level -= 1
                if level == DEEPEST:
                    start = token.end()
    return bytes(kept + data[start:])
