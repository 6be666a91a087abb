"""Leader election: only the operator that holds the Lease of an installation acts.

As in client-go, a Lease that was not renewed for its duration, by the candidate's clock, may be taken over
(https://pkg.go.dev/k8s.io/client-go/tools/leaderelection). The lock of the official Python client (37) cannot
create a Lease, and ends with the first broken connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from agentstream_operator.cluster.api import Api, ApiError
from agentstream_operator.cluster.kinds import LEASES
from agentstream_operator.cluster.port import ClusterUnavailable

_log = logging.getLogger(__name__)

DURATION = 8
"""Seconds without a renewal after which the Lease may be taken over."""

_DEADLINE = 6.0
"""Seconds without a renewal after which the holder stops, before another candidate may take over."""

_EVERY, _SOON = 2.0, 0.5
_ANSWER = 3.0
_FAILURES = (ApiError, ClusterUnavailable, TimeoutError)


class Leader:
    """Acquires and renews a Lease; a restarted holder with the same identity resumes at once.

    `leads` is whether this operator holds the Lease.
    """

    def __init__(self, api: Api, namespace: str, name: str, identity: str) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seen: tuple[str, str] | None = None
        self._seen_at = self._renewed_at = 0.0
        self._version = ""
        self._since = ""
        self.leads = False

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[asyncio.Task[None]]:
        """Waits for the Lease, yields a task that ends when the Lease is lost, and releases it afterwards."""
        while not await self._try():  # noqa: ASYNC110 - the API server raises no event
            await asyncio.sleep(_EVERY)
        self.leads = True
        renewing = asyncio.create_task(self._renew(), name="renew the Lease")
        try:
            yield renewing
        finally:
            lost = renewing.done()
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            self.leads = False
            if not lost:
                await self._release()

    async def _renew(self) -> None:
        clock, due = asyncio.get_running_loop().time, self._renewed_at + _EVERY
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout_at(self._renewed_at + _DEADLINE):
                    await asyncio.sleep(due - clock())
                    began = clock()
                    due = began + (_EVERY if await self._try() else _SOON)
        self.leads = False
        _log.error("could not renew the Lease %s: leadership is lost", self._name)

    async def _try(self) -> bool:
        """Acquires or renews the Lease. Returns whether this operator holds it."""
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(_ANSWER):
                taken = await self._take()
        except _FAILURES as error:
            _log.warning("could not acquire or renew the Lease %s: %s", self._name, str(error) or "no answer")
            # the request may have succeeded: read the Lease again
            self._version = ""
            return False
        if taken:
            # other candidates count from the write, which came later
            self._renewed_at = began
        return taken

    async def _take(self) -> bool:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if not self._version:
            found = await self._api.get(LEASES, self._namespace, self._name)
            if found is None:
                made = {"metadata": {"name": self._name}, "spec": self._spec(now, now)}
                self._ours(await self._api.create(LEASES, self._namespace, made), now)
                return True
            if not self._is_free(found["spec"]):
                return False
            self._version = found["metadata"]["resourceVersion"]
            ours = found["spec"].get("holderIdentity") == self._identity
            self._since = found["spec"].get("acquireTime", now) if ours else now
        patch = {"metadata": {"resourceVersion": self._version}, "spec": self._spec(self._since, now)}
        try:
            self._ours(await self._api.merge(LEASES, self._namespace, self._name, patch), self._since)
        except ApiError as error:
            self._version = ""
            if error.code in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND):
                return False
            raise
        return True

    def _is_free(self, spec: dict[str, Any]) -> bool:
        """Returns whether the Lease has no holder, or was not renewed for its duration."""
        clock = asyncio.get_running_loop().time()
        holder = spec.get("holderIdentity") or ""
        seen = (holder, spec.get("renewTime", ""))
        if seen != self._seen:
            self._seen, self._seen_at = seen, clock
        return holder in {"", self._identity} or clock - self._seen_at >= DURATION

    def _ours(self, lease: dict[str, Any], since: str) -> None:
        self._version, self._since = lease["metadata"]["resourceVersion"], since

    def _spec(self, since: str, now: str) -> dict[str, Any]:
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": DURATION,
            "acquireTime": since,
            "renewTime": now,
        }

    async def _release(self) -> None:
        """Releases the Lease for the next candidate."""
        with suppress(*_FAILURES):
            async with asyncio.timeout(_ANSWER):
                # a cancelled renewal may have succeeded
                found = await self._api.get(LEASES, self._namespace, self._name)
                if found is None or found["spec"].get("holderIdentity") != self._identity:
                    return
                version = found["metadata"]["resourceVersion"]
                patch = {"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": ""}}
                await self._api.merge(LEASES, self._namespace, self._name, patch)
