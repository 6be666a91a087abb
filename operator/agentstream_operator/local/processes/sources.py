"""Watches the Python files that running processes may have loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path

from watchfiles import PythonFilter, awatch

_DEBOUNCE_MS = 200


@dataclass(slots=True, eq=False)
class SourceWatcher:
    """Tells of changed Python files in directories, which may be replaced while it watches."""

    _directories: frozenset[Path] = field(init=False, default=frozenset())
    _replaced: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def watch(self, directories: Collection[Path]) -> None:
        """Watches these directories and what is below them, and no longer others."""
        present = frozenset(directory for directory in directories if directory.is_dir())
        if present != self._directories:
            self._directories = present
            self._replaced.set()

    async def changes(self) -> AsyncIterator[frozenset[Path]]:
        """Yields the files of each burst of changes.

        Raises:
            OSError, RuntimeError: a directory cannot be watched.
        """
        while True:
            self._replaced.clear()
            if not self._directories:
                await self._replaced.wait()
                continue
            # virtual environments, caches and the like are left out
            async for burst in awatch(
                *self._directories,
                watch_filter=PythonFilter(),
                debounce=_DEBOUNCE_MS,
                stop_event=self._replaced,
                ignore_permission_denied=True,
            ):
                yield frozenset(Path(name) for _, name in burst)
