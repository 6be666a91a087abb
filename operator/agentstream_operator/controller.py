"""The glue to Kopf: watches that pass on every event. Nothing is decided here, and nothing written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import kopf

from agentstream_operator.cluster.kinds import OWNED_KINDS, RESOURCES, ApiKind
from agentstream_operator.cluster.labels import OURS

Tell = Callable[[ApiKind, str | None, dict[str, Any]], None]
"""Takes a kind, what happened to an object of it (None: it was there at the start), and the object."""


async def watch(tell: Tell, namespaces: Sequence[str] | None, stop: threading.Event) -> None:
    """Watches our resources everywhere, and what carries our label.

    Args:
        tell: called with every event.
        namespaces: where to watch; None for everywhere.
        stop: ends it.
    """
    registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    for kind in (*RESOURCES.values(), *OWNED_KINDS):
        _register(registry, kind, tell)
    kopf.on.login(registry=registry)(_login)
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    settings.queueing.idle_timeout = 0.1
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    for kind in OWNED_KINDS:
        settings.watching.label_selectors[kind.api_version, kind.plural] = OURS
    await kopf.operator(
        registry=registry,
        settings=settings,
        standalone=True,
        clusterwide=namespaces is None,
        namespaces=tuple(namespaces or ()),
        stop_flag=stop,
    )


def _register(registry: kopf.OperatorRegistry, kind: ApiKind, tell: Tell) -> None:
    @kopf.on.event(kind.api_version, kind.plural, id=kind.plural, registry=registry)
    async def seen(event: kopf.RawEvent, **_: object) -> None:
        tell(kind, event["type"], dict(event["object"]))


def _login(**given: Any) -> kopf.ConnectionInfo | None:
    """As a pod by its service account, else as the official client does by a kubeconfig."""
    return kopf.login_with_service_account(**given) or kopf.login_via_client(**given)


class _NoDiffs(kopf.DiffBaseStorage):
    """Kopf compares every object with what it saw last, and copies it whole for that: no handler needs it."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        """Nothing is kept."""


class _NoProgress(kopf.ProgressStorage):
    """There is no progress to remember of handlers that only pass on."""

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
