"""Notices that a process stood still, as on an overloaded machine: promises of time are void then."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from histories.records import Fault, Recorder

EVERY, LATE = 0.1, 0.2


@contextlib.contextmanager
def watching(recorder: Recorder, target: str | None = None) -> Iterator[None]:
    """Writes down when a thread of this process ran late; a blocked event loop is none of its business.

    Args:
        recorder: where to.
        target: the process that is hit, by default the recorder's; empty for all.
    """
    ended = threading.Event()

    def watch() -> None:
        before = time.monotonic_ns()
        while not ended.wait(EVERY):
            now = time.monotonic_ns()
            if now - before > (EVERY + LATE) * 1e9:
                hit = recorder.who if target is None else target
                recorder.note(Fault(kind="late", since=before, target=hit))
            before = now

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
