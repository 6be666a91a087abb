"""Notices that manifests changed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from watchfiles import awatch

from agentstream_operator.local.manifests.load import SUFFIXES

_GATHER_MS = 200


async def changes(paths: Sequence[Path]) -> AsyncIterator[None]:
    """Yields once after each burst of changes to manifests of these paths."""
    # editors replace files: what is watched is the directory
    directories = {path if path.is_dir() else path.parent for path in paths}
    given = {path.resolve() for path in paths}

    def concerns(_: object, name: str) -> bool:
        path = Path(name)
        return path.suffix in SUFFIXES and (path.resolve() in given or path.resolve().parent in given)

    async for _ in awatch(*directories, watch_filter=concerns, debounce=_GATHER_MS, recursive=False):
        yield
