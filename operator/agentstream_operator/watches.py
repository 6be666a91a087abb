"""Runs the watches in a thread, and passes their events to the operator's event loop.

Kopf cancels every task of its event loop when it ends, so it has a loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from agentstream_operator.cluster.kinds import ApiKind
from agentstream_operator.controller import OnEvent, watch

_log = logging.getLogger(__name__)
_STOP_WITHIN = 10.0


@asynccontextmanager
async def watching(
    on_event: OnEvent, namespaces: Sequence[str] | None
) -> AsyncIterator[asyncio.Future[None]]:
    """Watches resources and owned objects; `namespaces` None means everywhere.

    `on_event` is called in this event loop with every event.

    Yields:
        A future that is done when watching has ended: only when it fails, as where a CRD was deleted.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    stop = threading.Event()
    passing = _EventQueue(loop, on_event)

    def run() -> None:
        failure: BaseException | None = None
        try:
            asyncio.run(watch(passing.take, namespaces, stop))
        except BaseException as error:  # noqa: BLE001 - raised where `ended` is awaited
            failure = error
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, ended, failure)

    thread = threading.Thread(target=run, name="kopf", daemon=True)
    thread.start()
    try:
        yield ended
    finally:
        with _silent("kopf"):
            stop.set()
            await asyncio.to_thread(thread.join, _STOP_WITHIN)


@contextmanager
def _silent(logger: str) -> Iterator[None]:
    """Silences a logger: at its end Kopf closes connections in use, and logs the errors."""
    reported = logging.getLogger(logger)
    level = reported.level
    reported.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        reported.setLevel(level)


class _EventQueue:
    """Passes events on in order; several at a time wake the event loop once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_event: OnEvent) -> None:
        self._loop = loop
        self._on_event = on_event
        self._waiting: deque[tuple[ApiKind, str | None, dict[str, Any]]] = deque()
        self._lock = threading.Lock()

    def take(self, kind: ApiKind, change: str | None, found: dict[str, Any]) -> None:
        """Takes an event, in the watches' thread."""
        with self._lock:
            self._waiting.append((kind, change, found))
            first = len(self._waiting) == 1
        if first:
            # the loop may be closed
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._pass_on)

    def _pass_on(self) -> None:
        with self._lock:
            events = tuple(self._waiting)
            self._waiting.clear()
        for event in events:
            try:
                self._on_event(*event)
            except Exception:  # noqa: BLE001 - the next events concern other objects
                _log.exception("could not process a watch event of %s", event[0].plural)


def _settle(ended: asyncio.Future[None], failure: BaseException | None) -> None:
    if ended.done():
        return
    if failure is None:
        ended.set_result(None)
    else:
        ended.set_exception(failure)
