"""The glue to Kopf: watches that pass on every event. Nothing is decided here, and nothing written."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import kopf

from agentstream_operator.cluster.kinds import CHILDREN, RESOURCES, ApiKind
from agentstream_operator.cluster.labels import OURS

_log = logging.getLogger(__name__)

Tell = Callable[[ApiKind, str | None, dict[str, Any]], None]
"""Takes a kind, what happened to an object of it, and the object."""

_STOP_WITHIN = 10.0


@asynccontextmanager
async def watching(tell: Tell, namespaces: Sequence[str] | None) -> AsyncIterator[asyncio.Future[None]]:
    """Watches resources and their children.

    Kopf has a thread and an event loop of its own: it takes every task of its loop for one of its own.

    Args:
        tell: called in this event loop with every event.
        namespaces: where to watch; None for everywhere.

    Yields:
        A future that is done when watching has ended, which it never does by itself unless it fails.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    stop = threading.Event()

    def run() -> None:
        failure: BaseException | None = None
        try:
            asyncio.run(_watch(loop, tell, namespaces, stop))
        except BaseException as error:  # noqa: BLE001 - it comes to light where it is awaited
            failure = error
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, ended, failure)

    thread = threading.Thread(target=run, name="kopf", daemon=True)
    thread.start()
    try:
        yield ended
    finally:
        stop.set()
        await asyncio.to_thread(thread.join, _STOP_WITHIN)


def _settle(ended: asyncio.Future[None], failure: BaseException | None) -> None:
    if ended.done():
        return
    if failure is None:
        ended.set_result(None)
    else:
        ended.set_exception(failure)


def _register(
    registry: kopf.OperatorRegistry, kind: ApiKind, loop: asyncio.AbstractEventLoop, tell: Tell
) -> None:
    @kopf.on.event(kind.api_version, kind.plural, id=kind.plural, registry=registry)
    async def seen(event: kopf.RawEvent, **_: object) -> None:
        loop.call_soon_threadsafe(tell, kind, event["type"], dict(event["object"]))


def _login(**given: Any) -> kopf.ConnectionInfo | None:
    """As a pod by its service account, else as the official client does by a kubeconfig."""
    return kopf.login_with_service_account(**given) or kopf.login_via_client(**given)


async def _watch(
    loop: asyncio.AbstractEventLoop, tell: Tell, namespaces: Sequence[str] | None, stop: threading.Event
) -> None:
    registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    for kind in (*RESOURCES.values(), *CHILDREN):
        _register(registry, kind, loop, tell)
    kopf.on.login(registry=registry)(_login)
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.queueing.idle_timeout = 0.1
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    for kind in CHILDREN:
        settings.watching.label_selectors[kind.api_version, kind.plural] = OURS
    await kopf.operator(
        registry=registry,
        settings=settings,
        standalone=True,
        clusterwide=namespaces is None,
        namespaces=tuple(namespaces or ()),
        stop_flag=stop,
    )
