"""Which files of a directory are worth asking the analysts for."""

from __future__ import annotations

import os
from pathlib import Path

from analysis import language_of

_SKIPPED = frozenset({"__pycache__", "build", "dist", "node_modules", "venv"})


def find_files(root: Path, *, but: Path) -> list[str]:
    """The paths of the readable kinds of files, relative to `root` and sorted by directory.

    Left out are hidden directories and those that tools make.

    Args:
        root: the directory.
        but: one file that is left out.
    """
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        found += [Path(folder, name) for name in sorted(names) if language_of(name)]
    return [str(path.relative_to(root)) for path in found if path != but and _can_be_asked_for(path)]


def _can_be_asked_for(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # a name of bytes that are no text does not fit into a message
        return False
    # reading a pipe would never end; and unlike Path.is_file this raises nothing
    return os.path.isfile(path)  # noqa: PTH113
