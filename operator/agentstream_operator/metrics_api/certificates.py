"""The server's certificate and whom it asks for theirs: both may change while it serves."""

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
from agentstream_operator.metrics_api import request_header
from agentstream_operator.metrics_api.request_header import NoTrust, RequestHeaderConfig

_log = logging.getLogger(__name__)

FILES_EVERY, TRUST_EVERY = 2.0, 10.0
"""Seconds between two looks at the certificate's files, and at the ConfigMap that says whom to believe."""


class ServingCertificates:
    """Certificate and key from two files, and the authority of the front proxies.

    Args:
        certificate: a file with the server's certificate and those above it, as PEM.
        key: a file with its private key.

    Attributes:
        trust: whom to believe; None before that is known.
        context: for the server. What it does is chosen anew for every connection.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._loaded: tuple[bytes, bytes, str] | None = None
        self._inner: ssl.SSLContext | None = None
        self._trouble: str | None = None
        self.trust: RequestHeaderConfig | None = None
        self.context = _context()
        # it is called whether or not the client names a server
        self.context.sni_callback = self._choose

    @property
    def missing(self) -> str | None:
        """What is missing to serve; None if nothing is."""
        if self.trust is None:
            return "it is not known yet which front proxies to believe"
        return "there is no certificate to serve with" if self._inner is None else None

    def believe(self, found: RequestHeaderConfig) -> bool:
        """Takes up what the cluster says of its front proxies. Returns whether their authority changed."""
        changed = self.trust is not None and self.trust.authority != found.authority
        self.trust = found
        self.load()
        return changed

    def load(self) -> None:
        """Takes up what the files hold, if that is another certificate with its key."""
        if self.trust is None:
            return
        try:
            certificate, key = (file.read_bytes() for file in self._files)
            loading = (certificate, key, self.trust.authority)
            if loading == self._loaded:
                return
            inner = _context()
            inner.load_verify_locations(cadata=self.trust.authority)
            inner.load_cert_chain(*self._files)
        except (OSError, ValueError) as error:
            # half of it may be written
            trouble = f"the certificate cannot be loaded: {error}"
            if trouble != self._trouble:
                _log.warning("%s", trouble)
            self._trouble = trouble
            if self._loaded is not None and self._loaded[2] != self.trust.authority:
                # what was loaded before lets in whom nobody is to believe any more
                self._loaded = self._inner = None
            return
        if self._loaded is not None:
            _log.info("certificates have changed")
        self._loaded, self._inner, self._trouble = loading, inner, None

    async def watch_files(self, every: float = FILES_EVERY) -> None:
        """Loads the files when they change; never returns."""
        while True:
            self.load()
            await asyncio.sleep(every)

    async def watch_trust(self, api: Api, changed: Callable[[], object], every: float = TRUST_EVERY) -> None:
        """Reads whom to believe, again and again; never returns.

        Args:
            api: the API server.
            changed: called when whoever is connected may not be believed any more.
            every: seconds between two looks.
        """
        while True:
            try:
                found = request_header.read(
                    await api.get(CONFIGMAPS, request_header.NAMESPACE, request_header.NAME)
                )
            except (ApiError, ClusterUnavailable, NoTrust) as error:
                _log.warning("whom to believe cannot be read: %s", error)
            else:
                if self.believe(found):
                    changed()
            await asyncio.sleep(every)

    def _choose(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        del name, context
        if self._inner is not None:
            connection.context = self._inner


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # who shows no certificate gets an answer that says so
    context.verify_mode = ssl.CERT_OPTIONAL
    # nobody is to resume a session, which brings along a certificate that is not verified again
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context
