"""Watches resources and owned objects by Kopf, and passes on every event."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import kopf

from agentstream_operator.cluster.kinds import OWNED_KINDS, RESOURCES, ApiKind
from agentstream_operator.cluster.labels import OURS

_AT_A_TIME = 8
"""Objects of a list that are decoded together: one of 1 MB may take 30 MB then."""

OnEvent = Callable[[ApiKind, str | None, dict[str, Any]], None]
"""Takes a kind, the event type (None: of the initial list), and the object."""


async def watch(on_event: OnEvent, namespaces: Sequence[str] | None, stop: threading.Event) -> None:
    """Watches resources and labelled objects until `stop` is set; `namespaces` None means everywhere.

    Raises what ends a watch, for example the error of Kopf for a kind whose CRD has been deleted.
    """
    registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    for kind in (*RESOURCES.values(), *OWNED_KINDS):
        _register(registry, kind, on_event)
    kopf.on.login(registry=registry)(_login)
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    settings.queueing.idle_timeout = 0.1
    settings.watching.chunk_size = _AT_A_TIME
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    for kind in OWNED_KINDS:
        settings.watching.label_selectors[kind.api_version, kind.plural] = OURS
    try:
        await kopf.operator(
            registry=registry,
            settings=settings,
            standalone=True,
            clusterwide=namespaces is None,
            namespaces=tuple(namespaces or ()),
            stop_flag=stop,
        )
    finally:
        # a thread waits for it, and the event loop for the thread
        stop.set()


def _register(registry: kopf.OperatorRegistry, kind: ApiKind, on_event: OnEvent) -> None:
    @kopf.on.event(kind.api_version, kind.plural, id=kind.plural, registry=registry)
    async def seen(event: kopf.RawEvent, **_: object) -> None:
        on_event(kind, event["type"], dict(event["object"]))


def _login(**given: Any) -> kopf.ConnectionInfo | None:
    """Logs in by the pod's service account, else by a kubeconfig."""
    return kopf.login_with_service_account(**given) or kopf.login_via_client(**given)


class _NoDiffs(kopf.DiffBaseStorage):
    """Keeps no last version of objects: Kopf would copy each object, and no handler needs it."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        """Nothing is kept."""


class _NoProgress(kopf.ProgressStorage):
    """Keeps no progress of handlers: they only pass on events."""

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        """Nothing is kept."""

    def purge(self, **_: Any) -> None:
        """Nothing was kept."""

    def touch(self, **_: Any) -> None:
        """Nothing is kept."""

    def clear(self, *, essence: Any) -> Any:
        return essence
