"""Watches the Python files that running processes may have loaded."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from watchfiles import Change, PythonFilter, awatch

_DEBOUNCE_MS = 200
_LOOK_MS = 1_000
"""How often it looks for directories that came, or were made again: their watches end with them."""


@dataclass(slots=True, eq=False)
class SourceWatcher:
    """Tells of changed Python files in directories, which may be replaced while it watches."""

    _directories: frozenset[Path] = field(init=False, default=frozenset())
    _replaced: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def watch(self, directories: Collection[Path]) -> None:
        """Watches these directories and what is below them, and no longer others; they may not exist yet."""
        present = frozenset(directories)
        if present != self._directories:
            self._directories = present
            self._replaced.set()

    async def changes(self) -> AsyncIterator[frozenset[Path]]:
        """Yields the files of each burst of changes, and directories that came or were made again.

        Raises:
            OSError, RuntimeError: a directory cannot be watched.
        """
        known: dict[Path, tuple[int, int] | None] = {}
        while True:
            self._replaced.clear()
            before, known = known, {directory: _identity(directory) for directory in self._directories}
            there = {directory: identity for directory, identity in known.items() if identity is not None}
            if came := frozenset(d for d in there if d in before and before[d] != there[d]):
                yield came
            if not there:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._replaced.wait(), _LOOK_MS / 1_000)
                continue
            # one of them may go meanwhile
            with suppress(FileNotFoundError):
                async for burst in awatch(
                    *there,
                    watch_filter=_Filter(there),
                    debounce=_DEBOUNCE_MS,
                    stop_event=self._replaced,
                    rust_timeout=_LOOK_MS,
                    yield_on_timeout=True,
                    ignore_permission_denied=True,
                ):
                    files = frozenset(Path(name) for _, name in burst)
                    # its watch has ended, also where another one has its inode
                    known |= dict.fromkeys(files & there.keys())
                    if code := files - there.keys():
                        yield code
                    if any(_identity(directory) != identity for directory, identity in known.items()):
                        self._replaced.set()


class _Filter(PythonFilter):
    """Passes Python files outside virtual environments and caches, and the end of a watched directory."""

    def __init__(self, directories: Collection[Path]) -> None:
        super().__init__()
        self._directories = {str(directory) for directory in directories}

    def __call__(self, change: Change, path: str) -> bool:
        ended = change is Change.deleted and path in self._directories
        return ended or super().__call__(change, path)


def _identity(directory: Path) -> tuple[int, int] | None:
    """Returns what tells a directory from another one of its name; None if there is none."""
    try:
        found = directory.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None
