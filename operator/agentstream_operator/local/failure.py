"""What ends `agentstream dev` through a mistake or the machine's state: lines to read, no traceback."""

from __future__ import annotations

from collections.abc import Sequence


class LocalError(Exception):
    """Something is wrong that the person who typed the command can put right.

    Attributes:
        lines: what is wrong, one finding per line, each complete in itself.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = lines


def cannot(doing: str, error: OSError) -> LocalError:
    """The error for something that the operating system refused, such as `cannot write to DIR: …`."""
    return LocalError(f"cannot {doing}: {error.strerror or error}")
