"""What ends a command with an error: lines to print, and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

NOT_SO: Final = 1
"""Exit code: what was asked about is not there or is not so, or what was asked for failed."""

BAD_INPUT: Final = 2
"""Exit code: the command line, or the request that it stands for, makes no sense."""

UNREACHABLE: Final = 3
"""Exit code: the API, or the server behind it, does not answer."""

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as of a shell."""

BROKEN_PIPE: Final = 141
"""Exit code when nobody reads the output any more, as of a shell."""


class CommandFailed(Exception):  # noqa: N818 - it ends a command
    """Ends a command. Each line says what is wrong and what to do about it."""

    def __init__(self, *lines: str, code: int = NOT_SO) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = lines
        self.code = code
