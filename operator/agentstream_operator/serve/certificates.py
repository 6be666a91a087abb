"""Serving certificate, and CA of front proxies' client certificates, both reloaded while they are in use."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import CONFIGMAPS
from agentstream_operator.cluster.port import ClusterUnavailable
from agentstream_operator.serve import request_header
from agentstream_operator.serve.request_header import InvalidConfigMapError, RequestHeaderConfig

_log = logging.getLogger(__name__)

FILE_POLL, CONFIGMAP_POLL = 2.0, 10.0
"""Seconds between two reads of the certificate files, and of the request-header ConfigMap."""


class ServingCertificates:
    """Certificate chain and key from two PEM files, and the client CA from the request-header configuration.

    Attributes:
        config: the request-header configuration; None before it has been read.
        context: TLS context of the server; chooses the current certificate for every connection.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._loaded: tuple[bytes, bytes, str] | None = None
        self._current: ssl.SSLContext | None = None
        self._failure: str | None = None
        self.config: RequestHeaderConfig | None = None
        self.context = _context()
        # called for each handshake, also without a server name
        self.context.sni_callback = self._choose

    @property
    def missing(self) -> str | None:
        """What is missing for serving; None if nothing is."""
        if self.config is None:
            return f"client CA of the front proxy not read yet (ConfigMap {request_header.NAME})"
        return "no serving certificate loaded" if self._current is None else None

    def apply(self, config: RequestHeaderConfig) -> bool:
        """Takes over a request-header configuration. Returns whether its client CA replaced another one."""
        changed = self.config is not None and self.config.client_ca != config.client_ca
        self.config = config
        self.load()
        return changed

    def load(self) -> None:
        """Loads the certificate files if they have changed and belong together."""
        if self.config is None:
            return
        try:
            certificate, key = (file.read_bytes() for file in self._files)
            loading = (certificate, key, self.config.client_ca)
            if loading == self._loaded:
                return
            fresh = _context()
            if self.config.client_ca:
                fresh.load_verify_locations(cadata=self.config.client_ca)
            else:
                # nobody is known by a certificate, so that none is asked for
                fresh.verify_mode = ssl.CERT_NONE
            fresh.load_cert_chain(*self._files)
        except (OSError, ValueError) as error:
            # one file of the pair may not be written yet
            failure = f"cannot load the serving certificate: {error}"
            if failure != self._failure:
                _log.warning("%s", failure)
            self._failure = failure
            if self._loaded is not None and self._loaded[2] != self.config.client_ca:
                # the loaded context accepts clients of a CA that is no longer trusted
                self._loaded = self._current = None
            return
        if self._loaded is not None:
            _log.info("serving certificate or client CA reloaded")
        self._loaded, self._current, self._failure = loading, fresh, None

    async def watch_files(self, every: float = FILE_POLL) -> None:
        """Reloads the files when they change; never returns."""
        while True:
            self.load()
            await asyncio.sleep(every)

    async def watch_configmap(
        self, api: Api, changed: Callable[[], object], every: float = CONFIGMAP_POLL
    ) -> None:
        """Reads the request-header configuration periodically; never returns.

        Calls `changed` when the client CA has changed, so that open connections may be closed.
        """
        while True:
            try:
                config = request_header.read(
                    await api.get(CONFIGMAPS, request_header.NAMESPACE, request_header.NAME)
                )
            except (ApiError, ClusterUnavailable, InvalidConfigMapError) as error:
                _log.warning("cannot read ConfigMap %s: %s", request_header.NAME, error)
            else:
                if self.apply(config):
                    changed()
            await asyncio.sleep(every)

    def _choose(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        del name, context
        if self._current is not None:
            connection.context = self._current


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # a client without a certificate gets an HTTP response that says so
    context.verify_mode = ssl.CERT_OPTIONAL
    # a resumed session brings along a certificate that is not verified again
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context
