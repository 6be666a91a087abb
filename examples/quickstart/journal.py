"""What the reporter knows of the newest run, in a file: it acknowledges a message only after it stands here.

A run is named by the id that the server gave to the event that started it, so a later run has a higher
name. Messages come in any order, some more than once: a result counts once per path, and an older run not
at all. While one reporter takes the place of another both may note: each reads what the other one has.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
"""The payload of a message, with `run`."""


class Journal:
    """The newest run.

    Args:
        path: a file with one record per line; made if it is not there.

    Attributes:
        run: its name.
        started: the event that started it, which names the files; None before it has come.
        results: the results by path.
        finished: whether it is known to everyone that its report is written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._size = 0
        with self._alone():
            self._load()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def complete(self) -> bool:
        """Whether there is a result for every file."""
        return self.started is not None and self.results.keys() >= set(self.started["files"])

    @property
    def root(self) -> str:
        """The directory that the run is about."""
        return str(self.started["root"]) if self.started is not None else ""

    def add(self, record: Record) -> None:
        """Notes a record; it is on the disk when this returns.

        Raises:
            OSError: it cannot be written.
        """
        with self._alone():
            if self._file.seek(0, os.SEEK_END) != self._size:
                self._load()
            if order(record["run"]) < order(self.run):
                return
            if record["run"] != self.run:
                self._file.truncate(0)
            elif record.get("path") in self.results:
                return
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._size = self._file.tell()
            self._take(record)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else notes meanwhile."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _load(self) -> None:
        self._begin("0-0")
        self._file.seek(0)
        self._size = 0
        for line in self._file:
            # a process may have died in the middle of the last line: that message is delivered again
            if line.endswith(b"\n"):
                self._size += len(line)
                self._take(json.loads(line))
        self._file.truncate(self._size)

    def _begin(self, run: str) -> None:
        self.run = run
        self.started: Record | None = None
        self.results: dict[str, Record] = {}
        self.finished = False

    def _take(self, record: Record) -> None:
        if record["run"] != self.run:
            self._begin(record["run"])
        if "path" in record:
            self.results[record["path"]] = record
        elif record["event"] == "started":
            self.started = record
        else:
            self.finished = True


def order(run: str) -> tuple[int, ...]:
    """By what runs are ordered: a later one has a higher value."""
    return tuple(int(part) for part in run.split("-"))
