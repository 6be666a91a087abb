"""Where one command or reply ends and the next one begins, in what a connection carries.

The format is RESP 2 and 3: https://valkey.io/topics/protocol/
"""

from __future__ import annotations

_BULK = frozenset(b"$=!")
_LISTS = frozenset(b"*~>")
_MAP, _ATTRIBUTES = b"%|"


class Frames:
    """Splits one direction of a connection into whole commands, or whole replies."""

    def __init__(self) -> None:
        self._data = bytearray()
        # up to where the first frame is understood, and how many of its values are still to come
        self._position = 0
        self._missing = 1

    def feed(self, data: bytes) -> list[bytes]:
        """Takes what came next and returns the frames that it completes."""
        self._data += data
        frames: list[bytes] = []
        start = 0
        while (end := self._value_end()) is not None:
            self._position = end
            if not self._missing:
                frames.append(bytes(self._data[start:end]))
                start, self._missing = end, 1
        del self._data[:start]
        self._position -= start
        return frames

    def _value_end(self) -> int | None:
        """Passes one value, or the head of one that has others in it. None if more is to come first."""
        line_end = self._data.find(b"\r\n", self._position)
        if line_end < 0:
            return None
        kind, end = self._data[self._position], line_end + 2
        if kind in _BULK:
            length = self._number(line_end)
            if length >= 0:
                end += length + 2
            if end > len(self._data):
                return None
            self._missing -= 1
        elif kind in _LISTS:
            self._missing += max(self._number(line_end), 0) - 1
        elif kind == _MAP:
            self._missing += 2 * self._number(line_end) - 1
        elif kind == _ATTRIBUTES:
            # what they are attributes of is still to come
            self._missing += 2 * self._number(line_end)
        else:
            self._missing -= 1
        return end

    def _number(self, line_end: int) -> int:
        return int(self._data[self._position + 1 : line_end])
